//! llama.cpp itself, made ready once for the process.
//!
//! Checks first that the processor has what the library was compiled for: the
//! first instruction that it lacks would kill the process without a word.

use std::sync::{Mutex, OnceLock, PoisonError};

use ksi_sdk::prelude::{Code, Refusal, json};
use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices, llama_backend::LlamaBackend};

use super::log;
use crate::metrics::Card;

/// The one backend. Never freed: models on other threads may still use it.
static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
/// Held while the backend is made, since a second attempt at the same time
/// would fail.
static MAKING: Mutex<()> = Mutex::new(());

/// The backend, made at the first call.
///
/// # Errors
///
/// `unavailable` where the processor is too old for this build.
pub fn get() -> Result<&'static LlamaBackend, Refusal> {
    fitting(&missing_features())?;
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(backend) = BACKEND.get() {
        return Ok(backend);
    }
    log::capture();
    #[cfg(feature = "dynamic-backends")]
    llama_cpp_2::llama_backend::load_backends();
    let backend = LlamaBackend::init()
        .map_err(|error| Refusal::new(Code::Internal, format!("llama.cpp cannot be set up: {error}")))?;
    Ok(BACKEND.get_or_init(|| backend))
}

/// Graphics cards that models can be put on, none in a build that knows none;
/// `None` before the backend is made, when nobody can tell.
#[must_use]
pub fn cards() -> Option<Vec<Card>> {
    BACKEND.get()?;
    let cards = list_llama_ggml_backend_devices().into_iter().filter(|device| {
        matches!(device.device_type, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu)
    });
    let seen = cards.map(|device| Card {
        shared: matches!(device.device_type, LlamaBackendDeviceType::IntegratedGpu),
        name: device.name,
        about: device.description,
        memory_bytes: device.memory_total as u64,
        free_bytes: device.memory_free as u64,
    });
    Some(seen.collect())
}

/// Whether this build runs on a processor that lacks these.
fn fitting(missing: &[&str]) -> Result<(), Refusal> {
    if missing.is_empty() {
        return Ok(());
    }
    let lacks = format!("the processor lacks {}, which this build of llama.cpp needs", missing.join(", "));
    let mut refusal = Refusal::new(Code::Unavailable, lacks)
        .hint(
            "use a processor from 2013 or later, or build for this one: \
             cargo build --release -p plugin-llama --features dynamic-backends",
        )
        .details(json!({ "missing": missing }));
    refusal.retryable = false;
    Err(refusal)
}

/// Instruction sets that the build uses and the processor does not have.
fn missing_features() -> Vec<&'static str> {
    #[cfg(all(target_arch = "x86_64", not(feature = "dynamic-backends")))]
    {
        let present = [
            ("avx", std::is_x86_feature_detected!("avx")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("f16c", std::is_x86_feature_detected!("f16c")),
            ("bmi2", std::is_x86_feature_detected!("bmi2")),
        ];
        present.into_iter().filter(|(_, present)| !present).map(|(name, _)| name).collect()
    }
    #[cfg(not(all(target_arch = "x86_64", not(feature = "dynamic-backends"))))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_the_build_does_not_fit_is_refused_by_name() {
        let refusal = fitting(&["avx2", "fma"]).unwrap_err();
        assert_eq!((refusal.code, refusal.retryable), (Code::Unavailable, false));
        assert!(refusal.message.contains("avx2, fma"), "{refusal}");
        assert!(fitting(&[]).is_ok());
    }
}
