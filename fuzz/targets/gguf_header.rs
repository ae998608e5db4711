//! The head of a model file or of an adapter from anywhere, before llama.cpp sees it.
//!
//! Nothing may make the reader panic, hang or allocate beyond the file, and a
//! header that is read keeps the bounds that what plans with it relies on.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The reader's own source: its package would compile llama.cpp, which no byte
/// here reaches. In a module of its own, so that the reader's children are
/// found where they lie.
#[path = "../../plugins/llama/src"]
mod llama {
    #[expect(dead_code, reason = "of what the plugin sees, only the reader of bytes is called")]
    pub mod gguf;
}
use llama::gguf;

fuzz_target!(|bytes: &[u8]| {
    // The file ends with its head, or tensor data of any size follows.
    for size_bytes in [bytes.len() as u64, 1 << 40] {
        if let Ok(header) = gguf::parse(bytes, size_bytes) {
            assert!((1..=512).contains(&header.block_count), "llama.cpp has tables of that size");
            assert!(header.context_length > 0 && header.embedding_length > 0 && header.parameters > 0);
            assert!(header.vocabulary <= bytes.len(), "each entry stands in the file");
            assert_eq!(header.size_bytes, size_bytes);
            assert!(header.memory_bytes_per_token <= 1 << 47, "far from overflow");
        }
        let _ = gguf::parse_adapter(bytes, size_bytes);
    }
});
