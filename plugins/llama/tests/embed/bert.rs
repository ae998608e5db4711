//! A model for embeddings, written on the spot: a BERT of two layers whose
//! weights are drawn from a fixed seed. It knows nothing, but is the same every
//! time.

/// Numbers that stand for a token, and for a text.
pub(crate) const WIDTH: usize = 32;
/// Most tokens of a text.
pub(crate) const CONTEXT: usize = 64;
const INNER: usize = 64;
const LAYERS: usize = 2;

/// Bytes of a GGUF file as it is written.
#[derive(Default)]
struct File {
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
    random: u64,
}

impl File {
    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) {
        put_text(&mut self.entries, key);
        self.entries.extend(kind.to_le_bytes());
        self.entries.extend(value);
        self.entry_count += 1;
    }

    fn number(&mut self, key: &str, value: usize) {
        self.entry(key, 4, &u32::try_from(value).expect("a small number").to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.entry(key, 8, &bytes);
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let mut bytes = 8_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put_text(&mut bytes, value));
        self.entry(key, 9, &bytes);
    }

    /// A tensor of 32-bit numbers around `mean`.
    fn tensor(&mut self, name: &str, shape: &[usize], mean: f32) {
        put_text(&mut self.tensors, name);
        self.tensors.extend(u32::try_from(shape.len()).expect("few").to_le_bytes());
        shape.iter().for_each(|length| self.tensors.extend((*length as u64).to_le_bytes()));
        self.tensors.extend(0_u32.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.tensor_count += 1;
        for _ in 0..shape.iter().product() {
            // xorshift: any fixed sequence does.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let unit = (self.random >> 40) as f32 / (1 << 24) as f32;
            self.data.extend((mean + (unit - 0.5) * 0.4).to_le_bytes());
        }
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The whole file. `pooling` is the number that the format has for it.
pub(crate) fn model(pooling: usize) -> Vec<u8> {
    let mut file = File { random: 0x9E37_79B9_7F4A_7C15, ..File::default() };
    file.text("general.architecture", "bert");
    file.text("general.name", "little-bert");
    file.number("bert.context_length", CONTEXT);
    file.number("bert.embedding_length", WIDTH);
    file.number("bert.block_count", LAYERS);
    file.number("bert.feed_forward_length", INNER);
    file.number("bert.attention.head_count", 4);
    file.entry("bert.attention.layer_norm_epsilon", 6, &1e-12_f32.to_le_bytes());
    file.entry("bert.attention.causal", 7, &[0]);
    file.number("bert.pooling_type", pooling);
    file.text("tokenizer.ggml.model", "bert");
    file.text("tokenizer.ggml.pre", "default");
    file.number("tokenizer.ggml.token_type_count", 2);
    // The numbers of the special ones are those that llama.cpp assumes.
    let mut tokens: Vec<String> = (0..104).map(|number| format!("[unused{number}]")).collect();
    for (at, name) in [(0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]")] {
        tokens[at] = name.to_owned();
    }
    tokens.extend(["hello", "world", "cat", "dog"].map(|word| format!("\u{2581}{word}")));
    tokens.extend(('a'..='z').map(|letter| format!("\u{2581}{letter}")));
    tokens.extend(('a'..='z').map(String::from));
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.tensor("token_embd.weight", &[WIDTH, tokens.len()], 0.0);
    file.tensor("token_types.weight", &[WIDTH, 2], 0.0);
    file.tensor("position_embd.weight", &[WIDTH, CONTEXT], 0.0);
    let norm = |file: &mut File, name: &str| {
        file.tensor(&format!("{name}.weight"), &[WIDTH], 1.0);
        file.tensor(&format!("{name}.bias"), &[WIDTH], 0.0);
    };
    norm(&mut file, "token_embd_norm");
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for (part, rows, columns) in [
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH, WIDTH),
            ("attn_v", WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_up", WIDTH, INNER),
            ("ffn_down", INNER, WIDTH),
        ] {
            file.tensor(&name(&format!("{part}.weight")), &[rows, columns], 0.0);
            file.tensor(&name(&format!("{part}.bias")), &[columns], 0.0);
        }
        norm(&mut file, &name("attn_output_norm"));
        norm(&mut file, &name("layer_output_norm"));
    }
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(file.tensor_count.to_le_bytes());
    bytes.extend(file.entry_count.to_le_bytes());
    bytes.extend(file.entries);
    bytes.extend(file.tensors);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(file.data);
    bytes
}
