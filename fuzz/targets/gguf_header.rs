//! The head of a model file from anywhere, before llama.cpp sees it.
//!
//! Nothing may make the reader panic, hang or allocate beyond the file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = plugin_llama::gguf::parse(bytes, bytes.len() as u64);
    // The same head in front of tensor data that is there.
    let _ = plugin_llama::gguf::parse(bytes, 1 << 40);
    let _ = plugin_llama::gguf::parse_adapter(bytes, 1 << 40);
});
