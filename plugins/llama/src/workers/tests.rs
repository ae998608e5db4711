//! Keys of models.

use ksi_sdk::protocol::system::is_instance_key;

use super::*;

#[test]
fn a_model_has_its_name_as_its_key_or_one_that_is_like_it_and_no_other_has() {
    assert_eq!(key_of("ksi-tiny"), "ksi-tiny");
    let long = "a".repeat(300);
    let names = ["ksi-tiny", "Ksi-Tiny", "ksi_tiny", "qwen2.5 0.5B", "qwen2.5-0.5B", "ünï", "", "@", &long];
    let keys: std::collections::BTreeSet<String> = names.iter().map(|name| key_of(name)).collect();
    assert_eq!(keys.len(), names.len(), "{keys:?}");
    assert!(keys.iter().all(|key| is_instance_key(key)), "{keys:?}");
    assert!(key_of("qwen2.5 0.5B").starts_with("qwen2-5-0-5b_"));
}
