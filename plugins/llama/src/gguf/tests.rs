//! The reader against headers that are written here, byte by byte: a good one,
//! every rule broken once, and damage at random.

use super::*;
use proptest::prelude::*;

/// A value as it is written into a test file.
#[derive(Clone)]
enum Written {
    Text(&'static str),
    U32(u32),
    U64(u64),
    F32(f32),
    Bool(u8),
    Texts(Vec<&'static str>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A type number and the bytes that follow it.
    Raw(u32, Vec<u8>),
}

/// Builds GGUF files, whole ones and broken ones.
#[derive(Clone)]
struct Builder {
    magic: [u8; 4],
    version: u32,
    tensor_count: Option<u64>,
    entry_count: Option<u64>,
    entries: Vec<(&'static str, Written)>,
    /// Name, dimensions, type, offset.
    tensors: Vec<(&'static str, Vec<u64>, u32, u64)>,
    data: usize,
}

impl Builder {
    fn good() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: vec![
                ("general.architecture", Written::Text("llama")),
                ("general.file_type", Written::U32(1)),
                ("llama.block_count", Written::U32(2)),
                ("llama.context_length", Written::U32(128)),
                ("llama.embedding_length", Written::U32(64)),
                ("llama.attention.head_count", Written::U32(4)),
                ("llama.attention.head_count_kv", Written::I32s(vec![2, 1])),
                ("llama.rope.freq_base", Written::F32(1e4)),
                ("tokenizer.ggml.model", Written::Text("llama")),
                ("tokenizer.ggml.tokens", Written::Texts(vec!["<s>", "", "", "<0x0A>"])),
                ("tokenizer.ggml.token_type", Written::I32s(vec![3, 1, 1, 6])),
                ("tokenizer.ggml.scores", Written::F32s(vec![0.0; 4])),
                ("tokenizer.ggml.add_bos_token", Written::Bool(1)),
                ("tokenizer.chat_template", Written::Text("{{ messages }}")),
            ],
            tensors: vec![("a", vec![64, 2], 1, 0), ("b", vec![32], 8, 256)],
            data: 256 + 34,
        }
    }

    fn set(mut self, key: &'static str, value: Written) -> Self {
        self.entries.retain(|(name, _)| *name != key);
        self.entries.push((key, value));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(name, _)| *name != key);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            text(&mut bytes, key);
            write_value(&mut bytes, value);
        }
        for (name, dimensions, kind, offset) in &self.tensors {
            text(&mut bytes, name);
            bytes.extend((dimensions.len() as u32).to_le_bytes());
            bytes.extend(dimensions.iter().flat_map(|length| length.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }

    fn parse(&self) -> Result<Header, Error> {
        parse_bytes(&self.bytes())
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn write_value(bytes: &mut Vec<u8>, value: &Written) {
    let mut head = |kind: u32, of: Option<(u32, usize)>| {
        bytes.extend(kind.to_le_bytes());
        if let Some((element, count)) = of {
            bytes.extend(element.to_le_bytes());
            bytes.extend((count as u64).to_le_bytes());
        }
    };
    match value {
        Written::Text(value) => {
            head(kinds::TEXT, None);
            text(bytes, value);
        }
        Written::U32(value) => {
            head(kinds::UINT32, None);
            bytes.extend(value.to_le_bytes());
        }
        Written::U64(value) => {
            head(kinds::UINT64, None);
            bytes.extend(value.to_le_bytes());
        }
        Written::F32(value) => {
            head(kinds::FLOAT32, None);
            bytes.extend(value.to_le_bytes());
        }
        Written::Bool(value) => {
            head(kinds::BOOL, None);
            bytes.push(*value);
        }
        Written::Texts(values) => {
            head(kinds::ARRAY, Some((kinds::TEXT, values.len())));
            values.iter().for_each(|value| text(bytes, value));
        }
        Written::I32s(values) => {
            head(kinds::ARRAY, Some((kinds::INT32, values.len())));
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Written::F32s(values) => {
            head(kinds::ARRAY, Some((kinds::FLOAT32, values.len())));
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Written::Raw(kind, raw) => {
            head(*kind, None);
            bytes.extend(raw);
        }
    }
}

fn parse_bytes(bytes: &[u8]) -> Result<Header, Error> {
    parse(bytes, bytes.len() as u64)
}

fn raw_array(kind: u32, count: u64) -> Written {
    let mut raw = kind.to_le_bytes().to_vec();
    raw.extend(count.to_le_bytes());
    Written::Raw(kinds::ARRAY, raw)
}

#[test]
fn a_good_file_says_what_it_is() {
    let header = Builder::good().parse().unwrap();
    let expected = Header {
        name: None,
        version: 3,
        architecture: "llama".to_owned(),
        parameters: 64 * 2 + 32,
        quantization: "F16".to_owned(),
        context_length: 128,
        block_count: 2,
        embedding_length: 64,
        tied_output: true,
        pooling: None,
        memory_bytes_per_token: 2 * 2 * (16 + 16) * 2,
        chat_template: Some("{{ messages }}".to_owned()),
        vocabulary: 4,
        size_bytes: header.size_bytes,
    };
    assert_eq!(header, expected);
    let unnamed = Builder::good().without("general.file_type").parse().unwrap();
    assert_eq!(unnamed.quantization, "F16", "the kind with the most bytes names the file");
}

#[test]
fn a_broken_head_is_refused_with_the_rule_that_it_breaks() {
    let good = Builder::good;
    check(vec![
        (good().with(|b| b.magic = *b"GGML"), "not a GGUF file"),
        (good().with(|b| b.version = 1), "version 1"),
        (good().with(|b| b.version = u32::MAX), "version 4294967295"),
        (good().with(|b| b.tensor_count = Some(1 << 60)), "claims 1152921504606846976 tensors"),
        (good().with(|b| b.tensor_count = Some(u64::MAX)), "tensors; at most 65536"),
        (good().with(|b| b.entry_count = Some(1 << 60)), "metadata entries; at most 65536"),
        (good().with(|b| b.tensors.clear()), "no tensors"),
        (good().without("general.architecture"), "lacks `general.architecture`"),
        (good().set("general.architecture", Written::U32(1)), "wrong type at `general.architecture`"),
        (good().set("general.architecture", Written::Text("")), "lacks `general.architecture`"),
        (good().set("llama.block_count", Written::U32(0)), "0 at `llama.block_count`"),
        (good().set("llama.block_count", Written::U32(513)), "accepted is 1 to 512"),
        (good().set("llama.block_count", Written::U32(100_000)), "100000 at `llama.block_count`"),
        (good().set("llama.block_count", Written::F32(2.0)), "wrong type at `llama.block_count`"),
        (good().without("llama.block_count"), "lacks `llama.block_count`"),
        (good().set("llama.context_length", Written::U32(0)), "0 at `llama.context_length`"),
        (good().set("llama.context_length", Written::U64(u64::MAX)), "wrong type at `llama.context_length`"),
        (good().set("llama.embedding_length", Written::U32(0)), "`llama.embedding_length`"),
        (good().set("general.alignment", Written::U32(0)), "alignment 0"),
        (good().set("general.alignment", Written::U32(48)), "alignment 48"),
        (good().set("general.alignment", Written::U32(4)), "alignment 4"),
        (good().set("general.alignment", Written::U32(1 << 17)), "alignment 131072"),
        (good().set("split.count", Written::U32(3)), "part 1 of 3"),
        (good().set("x", Written::Raw(13, vec![0; 8])), "unknown value type 13 at `x`"),
        (good().set("x", Written::Bool(2)), "wrong type at `x`"),
        (good().set("x", raw_array(kinds::ARRAY, 1)), "array of arrays at `x`"),
        (good().set("x", raw_array(99, 1)), "unknown value type 99 at `x`"),
        (good().set("x", raw_array(kinds::UINT8, u64::MAX)), "array elements"),
        (good().set("x", raw_array(kinds::FLOAT64, 1 << 61)), "array elements"),
        (good().set("x", raw_array(kinds::TEXT, 1 << 62)), "array elements"),
        (
            good().set("x", Written::Raw(kinds::TEXT, u64::MAX.to_le_bytes().to_vec())),
            "string of 18446744073709551615",
        ),
        (good().set("x", Written::Raw(kinds::TEXT, (1_u64 << 20).to_le_bytes().to_vec())), "truncated"),
        (
            good().with(|b| b.entries.push(("general.file_type", Written::U32(1)))),
            "`general.file_type` twice",
        ),
        (good().set("", Written::U32(1)), "empty, not UTF-8"),
    ]);
}

#[test]
fn a_broken_vocabulary_is_refused_with_the_rule_that_it_breaks() {
    let good = Builder::good;
    check(vec![
        (
            good().set("tokenizer.ggml.tokens", Written::Texts(vec!["a", "b", "a\0c", "<0x0A>"])),
            "same text, at 2",
        ),
        (
            good().set("tokenizer.ggml.tokens", Written::I32s(vec![1])),
            "wrong type at `tokenizer.ggml.tokens`",
        ),
        (good().set("tokenizer.ggml.tokens", Written::Texts(vec![])), "no vocabulary"),
        (good().without("tokenizer.ggml.model"), "no vocabulary"),
        (good().set("tokenizer.ggml.model", Written::Text("no_vocab")), "no vocabulary"),
        (
            good().set("tokenizer.ggml.tokens", Written::Texts(vec!["a", "b", "a", "<0x0A>"])),
            "same text, at 2",
        ),
        (
            good().set("tokenizer.ggml.tokens", Written::Texts(vec!["a", "", "[EMPTY_1]", "<0x0A>"])),
            "same text, at 2",
        ),
        (
            good().set("tokenizer.ggml.tokens", Written::Texts(vec!["a", "b", "c", "<0x0g>"])),
            "byte token at 3",
        ),
        (good().set("tokenizer.ggml.token_type", Written::I32s(vec![1])), "different lengths"),
        (
            good().set("tokenizer.ggml.token_type", Written::F32s(vec![1.0; 4])),
            "wrong type at `tokenizer.ggml.token_type`",
        ),
        (good().set("tokenizer.ggml.scores", Written::F32s(vec![1.0; 3])), "different lengths"),
        (
            good().set("tokenizer.ggml.scores", Written::I32s(vec![1; 4])),
            "wrong type at `tokenizer.ggml.scores`",
        ),
        (
            good().set("tokenizer.ggml.merges", Written::I32s(vec![1])),
            "wrong type at `tokenizer.ggml.merges`",
        ),
    ]);
}

#[test]
fn a_broken_table_of_tensors_is_refused_with_the_rule_that_it_breaks() {
    let good = Builder::good;
    check(vec![
        (good().with(|b| b.tensors[0].1 = vec![]), "0 dimensions"),
        (good().with(|b| b.tensors[0].1 = vec![1; 5]), "5 dimensions"),
        (good().with(|b| b.tensors[0].1 = vec![64, 0]), "dimension of zero"),
        (good().with(|b| b.tensors[0].1 = vec![1 << 32, 1 << 32]), "overflowing size"),
        (good().with(|b| b.tensors[0].1 = vec![u64::MAX]), "overflowing size"),
        (good().with(|b| b.tensors[0].1 = vec![1 << 62, 2]), "overflowing size"),
        (good().with(|b| b.tensors[0] = ("a", vec![1 << 62], 28, 0)), "overflowing size"),
        (good().with(|b| b.tensors[1].1 = vec![33]), "overflowing size"),
        (good().with(|b| b.tensors[0].2 = 4), "unknown type 4"),
        (good().with(|b| b.tensors[0].2 = 43), "unknown type 43"),
        (good().with(|b| b.tensors[1].3 = 257), "not aligned"),
        (good().with(|b| b.tensors[1].3 = u64::MAX - 31), "overflowing size"),
        (good().with(|b| b.tensors[1].3 = 224), "overlapping tensors `a` and `b`"),
        (good().with(|b| b.tensors[1].0 = "a"), "`a` twice"),
        (good().with(|b| b.data -= 1), "truncated: 1 bytes"),
        (good().with(|b| b.data = 0), "truncated: 290 bytes"),
        (good().with(|b| b.tensors[1].3 = 1 << 40), "truncated"),
    ]);
}

fn check(cases: Vec<(Builder, &str)>) {
    for (builder, expected) in cases {
        let error = builder.parse().map(|_| "no error".to_owned()).unwrap_or_else(|error| error.to_string());
        assert!(error.contains(expected), "expected `{expected}`, got `{error}`");
    }
}

/// An adapter of one tensor.
fn adapter() -> Builder {
    Builder {
        entries: vec![
            ("general.type", Written::Text("adapter")),
            ("general.architecture", Written::Text("llama")),
            ("adapter.type", Written::Text("lora")),
            ("adapter.lora.alpha", Written::F32(8.0)),
        ],
        tensors: vec![
            ("blk.0.attn_q.weight.lora_a", vec![64, 2], 0, 0),
            ("blk.0.attn_q.weight.lora_b", vec![2, 64], 0, 512),
            ("blk.0.attn_norm.weight", vec![8], 0, 1024),
        ],
        data: 1056,
        ..Builder::good()
    }
}

fn parse_adapter_of(builder: &Builder) -> Result<Adapter, Error> {
    let bytes = builder.bytes();
    parse_adapter(&bytes[..], bytes.len() as u64)
}

#[test]
fn an_adapter_is_told_from_a_model_and_broken_ones_are_refused_with_the_rule_that_they_break() {
    let good = parse_adapter_of(&adapter()).unwrap();
    assert_eq!((good.architecture.as_str(), good.size_bytes), ("llama", adapter().bytes().len() as u64));
    let error = adapter().parse().unwrap_err().to_string();
    assert!(error.contains("adapter for models of the kind `llama`"), "{error}");
    let tensor = |name: &'static str, shape: Vec<u64>, kind: u32| {
        adapter().with(|builder| builder.tensors[0] = (name, shape, kind, 0))
    };
    for (broken, expected) in [
        (Builder::good(), "is no adapter"),
        (adapter().set("general.type", Written::U32(1)), "wrong type at `general.type`"),
        (adapter().set("adapter.type", Written::Text("control_vector")), "kind `control_vector`"),
        (adapter().without("adapter.type"), "kind ``"),
        (adapter().set("adapter.lora.alpha", Written::U32(8)), "wrong type at `adapter.lora.alpha`"),
        (
            adapter().set("adapter.lora.alpha", Written::Raw(12, vec![0; 8])),
            "wrong type at `adapter.lora.alpha`",
        ),
        (adapter().set("adapter.alora.invocation_tokens", Written::I32s(vec![1])), "kind `alora`"),
        (adapter().without("general.architecture"), "lacks `general.architecture`"),
        (tensor("blk.0.attn_q.weight", vec![64, 2], 0), "no part of a LoRA adapter"),
        (tensor("token_embd.weight.lora_a", vec![64, 2], 0), "tokens cannot be adapted"),
        (tensor("blk.0.attn_q.weight.lora_a", vec![16, 2, 4], 0), "experts cannot be adapted"),
        (tensor("blk.0.ffn_gate_exps.weight.lora_a", vec![64, 2], 0), "experts cannot be adapted"),
        (tensor("blk.0.attn_q.weight.lora_a\0_norm.weight", vec![64, 2], 24), "has a NUL in it"),
        (adapter().set("adapter.lora.alpha\0", Written::U32(8)), "has a NUL in it"),
        (adapter().set("general.architecture", Written::Text("llama\0x")), "`general.architecture`"),
        (tensor("blk.0.attn_q.weight.lora_a", vec![64, 2], 2), "kind of numbers"),
        (tensor("blk.0.attn_q.weight.lora_a", vec![32, 4], 0), "two parts do not fit together"),
        (tensor("blk.0.attn_k.weight.lora_a", vec![64, 2], 0), "two parts do not fit together"),
    ] {
        let error = parse_adapter_of(&broken).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} is not: {expected}");
    }
    let bytes = adapter().bytes();
    for length in 0..bytes.len() {
        assert!(parse_adapter(&bytes[..length], length as u64).is_err(), "{length}");
    }
}

#[test]
fn a_long_tensor_name_is_refused() {
    let name: &'static str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
    assert_eq!(name.len(), 64);
    let error = Builder::good().with(|b| b.tensors[0].0 = name).parse().unwrap_err();
    assert!(error.to_string().contains("tensor name of 64 bytes"), "{error}");
    Builder::good().with(|b| b.tensors[0].0 = &name[1..]).parse().unwrap();
}

#[test]
fn every_truncation_is_refused() {
    let bytes = Builder::good().bytes();
    for length in 0..bytes.len() {
        assert!(parse_bytes(&bytes[..length]).is_err(), "cut to {length}");
    }
    parse_bytes(&bytes).unwrap();
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_refused() {
    let bytes = Builder::good().bytes();
    for length in [3, 20, 100, 300] {
        assert!(parse(&bytes[..length], bytes.len() as u64).is_err(), "shrunk to {length}");
    }
}

#[test]
fn the_sizes_of_tensor_types_are_those_of_the_linked_library() {
    #![expect(unsafe_code, reason = "ggml is asked for its own table")]
    for kind in kinds::TENSOR_KINDS {
        let number = kind.number;
        // SAFETY: both functions read a constant table; every number here is
        // below its length, which `ggml.h` names `GGML_TYPE_COUNT`.
        let (block, bytes) =
            unsafe { (llama_cpp_sys_2::ggml_blck_size(number), llama_cpp_sys_2::ggml_type_size(number)) };
        assert_eq!((block as u64, bytes as u64), (kind.block, kind.bytes), "{}", kind.name);
    }
}

/// The header of the built-in model, without its data.
fn real_header() -> (Vec<u8>, u64) {
    let whole: &[u8] = include_bytes!("../../model/ksi-tiny.gguf");
    (whole[..80_000].to_vec(), whole.len() as u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_bytes(&bytes);
        let mut headed = b"GGUF\x03\0\0\0".to_vec();
        headed.extend(&bytes);
        let _ = parse_bytes(&headed);
    }

    #[test]
    fn no_change_of_a_small_file_makes_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = Builder::good().bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(header) = parse_bytes(&bytes) {
            prop_assert!((1..=512).contains(&header.block_count));
        }
    }

    #[test]
    fn no_change_of_a_real_header_makes_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut bytes, size) = real_header();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = parse(bytes.as_slice(), size);
    }
}
