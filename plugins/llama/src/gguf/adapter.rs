//! Adapters: small files that change a model while it is loaded (LoRA).
//!
//! llama.cpp compares an adapter with its model and refuses what does not fit.
//! What it does not look at, or asserts on, is checked here: types of values, the
//! kinds of numbers, and the shapes that meet in a computation.

use std::collections::HashMap;

use super::{Error, Metadata, Value, kinds, tensors::Tensor};

/// What an adapter says it is.
pub(super) const TYPE: &str = "adapter";

/// Kinds of numbers that every backend can compute with.
const KINDS: [&str; 4] = ["F32", "F16", "BF16", "Q8_0"];

/// What is known of an adapter from its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// The family of the models that it changes.
    pub architecture: String,
    /// Size of the whole file.
    pub size_bytes: u64,
}

/// Checks the header of an adapter whose parts are right by themselves.
pub(super) fn check(metadata: &Metadata, tensors: &[Tensor], size_bytes: u64) -> Result<Adapter, Error> {
    if metadata.text("general.type")? != Some(TYPE) {
        return Err(Error::NoAdapter);
    }
    match metadata.text("adapter.type")? {
        Some("lora") => {}
        kind => return Err(Error::AdapterKind(kind.unwrap_or_default().to_owned())),
    }
    match metadata.entries.get("adapter.lora.alpha") {
        None | Some(Value::Float(kinds::FLOAT32)) => {}
        Some(_) => return Err(Error::WrongType("adapter.lora.alpha".to_owned())),
    }
    // It is in force only after certain tokens, which nobody looks for here.
    if metadata.entries.contains_key("adapter.alora.invocation_tokens") {
        return Err(Error::AdapterKind("alora".to_owned()));
    }
    check_pairs(tensors)?;
    Ok(Adapter { architecture: metadata.architecture()?.to_owned(), size_bytes })
}

/// Each changed tensor has two that are multiplied: `lora_a` makes few numbers of
/// many, `lora_b` many of few.
fn check_pairs(tensors: &[Tensor]) -> Result<(), Error> {
    let mut ranks: HashMap<&str, [Option<u64>; 2]> = HashMap::new();
    for tensor in tensors {
        let unadaptable = |why| Error::Unadaptable { name: tensor.name.clone(), why };
        // llama.cpp passes them over.
        if tensor.name.ends_with("_norm.weight") {
            continue;
        }
        let half = |ending| tensor.name.strip_suffix(ending);
        let (of, part, rank) = match (half(".lora_a"), half(".lora_b")) {
            (Some(of), _) => (of, 0, tensor.shape[1]),
            (_, Some(of)) => (of, 1, tensor.shape[0]),
            _ => return Err(unadaptable("which is no part of a LoRA adapter")),
        };
        if of.ends_with("token_embd.weight") {
            return Err(unadaptable("and tokens cannot be adapted"));
        }
        // Of these the model has many in one, and llama.cpp does not compare how many.
        if tensor.shape[2..] != [1, 1] || of.contains("exps") {
            return Err(unadaptable("and experts cannot be adapted"));
        }
        if !KINDS.contains(&tensor.kind.name) {
            return Err(unadaptable("whose kind of numbers is none of adapters"));
        }
        ranks.entry(of).or_default()[part] = Some(rank);
    }
    for (of, [a, b]) in ranks {
        if a.is_none() || a != b {
            let why = "whose two parts do not fit together";
            return Err(Error::Unadaptable { name: of.to_owned(), why });
        }
    }
    Ok(())
}
