//! Adapters: read once for a model, laid over it in each of its contexts.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;

use ksi_sdk::prelude::{Code, Refusal};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::{log, raw};
use crate::vetting::Overlay;

/// An adapter that was read for a model, which frees it at its own end, and how
/// much of it is wanted.
pub(in crate::engine) struct Adapter {
    pointer: NonNull<sys::llama_adapter_lora>,
    scale: f32,
}

// SAFETY: it is only read once it is made.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

impl Adapter {
    /// Reads an adapter for a model that nobody uses yet. Its file has been checked.
    ///
    /// # Errors
    ///
    /// `unavailable` with llama.cpp's words where it does not fit the model.
    pub(in crate::engine) fn read(model: &LlamaModel, overlay: &Overlay) -> Result<Self, Refusal> {
        let Overlay { lora, path, .. } = overlay;
        let refused = |why: String| {
            let message = format!("the adapter `{}` cannot be laid over the model: {why}", lora.name);
            let mut refusal = Refusal::new(Code::Unavailable, message)
                .hint("use one that was made for this model, or take it out of `lora`");
            refusal.retryable = false;
            refusal
        };
        let text = CString::new(path.as_os_str().as_bytes()).map_err(|error| refused(error.to_string()))?;
        log::clear();
        // SAFETY: the model is loaded, and has no context and no other user yet; the
        // text ends with a NUL and lives for this call.
        let pointer = unsafe { sys::llama_adapter_lora_init(raw(model), text.as_ptr()) };
        let pointer = NonNull::new(pointer);
        let pointer = pointer
            .ok_or_else(|| refused(log::last_errors().unwrap_or_else(|| "no reason given".to_owned())))?;
        Ok(Self { pointer, scale: lora.scale })
    }
}

/// Lays adapters over the model of a context.
pub(super) fn lay_over(context: NonNull<sys::llama_context>, adapters: &[Adapter]) -> Result<(), i32> {
    let mut pointers: Vec<_> = adapters.iter().map(|adapter| adapter.pointer.as_ptr()).collect();
    let mut scales: Vec<_> = adapters.iter().map(|adapter| adapter.scale).collect();
    if pointers.is_empty() {
        return Ok(());
    }
    // SAFETY: the context is of the model that the adapters were read for, and
    // both arrays have as many elements as is said.
    let code = unsafe {
        sys::llama_set_adapters_lora(
            context.as_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
            scales.as_mut_ptr(),
        )
    };
    if code == 0 { Ok(()) } else { Err(code) }
}
