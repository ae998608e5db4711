//! What the plugin `llama` answers, as far as it is shown to people.
//!
//! The types that it answers with stand in its library, and llama.cpp comes with
//! that. So there is one here for each answer that is read. What is always told
//! has no default: where it is missing, whoever asks is told so, and is not shown
//! that there is none of it.

use serde::Deserialize;
use serde_json::Value;

/// `llama:models`.
#[derive(Debug, Deserialize)]
pub(crate) struct Models {
    pub(crate) models: Vec<ModelInfo>,
    /// What of the models directory was not looked at; left out where there is none.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

/// One model. What a broken file does not say is told as null.
#[derive(Debug, Deserialize)]
pub(crate) struct ModelInfo {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) builtin: bool,
    pub(crate) toy: bool,
    pub(crate) loaded: bool,
    /// Left out of one that is not loaded.
    #[serde(default)]
    pub(crate) settings: Vec<Setting>,
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) architecture: Option<String>,
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) parameters: Option<u64>,
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) quantization: Option<String>,
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) context_length: Option<u64>,
    pub(crate) size_bytes: u64,
    /// Left out of a model.
    #[serde(default)]
    pub(crate) adapter: bool,
    /// Left out where nothing is wrong.
    pub(crate) error: Option<String>,
}

/// What a model in memory runs with, and who says so.
#[derive(Debug, Deserialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) from: String,
}

/// A chunk of `llama:load`.
#[derive(Debug, Deserialize)]
pub(crate) struct LoadProgress {
    /// From 0 to 1.
    pub(crate) progress: f64,
}

/// `llama:load`.
#[derive(Debug, Deserialize)]
pub(crate) struct Loaded {
    pub(crate) load_ms: u64,
    pub(crate) context: u32,
    pub(crate) notes: Vec<String>,
}

/// `llama:unload`.
#[derive(Debug, Deserialize)]
pub(crate) struct Unloaded {
    pub(crate) unloaded: bool,
}

/// What `llama:models` says of one model, but for some of it.
#[cfg(test)]
pub(crate) fn model(name: &str, more: Value) -> Value {
    let mut model = serde_json::json!({
        "name": name, "path": format!("/m/{name}.gguf"), "builtin": false, "toy": false, "loaded": false,
        "capabilities": [], "architecture": null, "parameters": null, "quantization": null,
        "context_length": null, "size_bytes": 1,
    });
    model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    model
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::invocation::shaped;

    #[test]
    fn what_is_always_told_is_missed_under_another_name() {
        let read = |model: Value| shaped::<Models>("llama:models", &json!({ "models": [model] }));
        let whole = model("x", json!({"something_newer": 1}));
        assert!(read(whole.clone()).is_ok());
        for name in [
            "name",
            "path",
            "builtin",
            "toy",
            "loaded",
            "architecture",
            "parameters",
            "quantization",
            "context_length",
            "size_bytes",
        ] {
            let mut other = whole.clone();
            let value = other.as_object_mut().unwrap().remove(name).unwrap();
            other["by_another_name"] = value;
            let failure = read(other).unwrap_err();
            assert!(failure.message.contains(name), "{}", failure.message);
            assert!(failure.hint.contains("ksi restart"), "{}", failure.hint);
        }
    }
}
