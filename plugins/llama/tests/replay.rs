//! The fuzzing corpus of the headers of models and adapters, replayed: what the
//! fuzzer has found once stays found.

use std::{fs, path::Path};

use plugin_llama::gguf;

#[test]
fn the_corpus_of_headers_is_read_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf_header");
    let (mut read, mut adapters, mut refused) = (0, 0, 0);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        for size in [bytes.len() as u64, 1 << 40] {
            match gguf::parse(&bytes[..], size) {
                Ok(_) => read += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty(), "{}", path.display());
                    refused += 1;
                }
            }
            match gguf::parse_adapter(&bytes[..], size) {
                Ok(_) => adapters += 1,
                Err(error) => assert!(!error.to_string().is_empty(), "{}", path.display()),
            }
        }
    }
    assert!(read > 0 && refused >= 10, "{read} read, {refused} refused");
    assert!(adapters > 0, "none is an adapter");
}
