//! An adapter that is written on the spot.

/// An adapter of rank 4 for the built-in model, of numbers by chance, none
/// larger than `most`: the file format is that of <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
pub(crate) fn adapter(architecture: &str, width: u64, most: f32) -> Vec<u8> {
    const RANK: u64 = 4;
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut head = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
    let tensors: Vec<(String, [u64; 2])> = (0..6)
        .flat_map(|block| [("attn_q", width, 192), ("ffn_down", 512, 192)].map(|of| (block, of)))
        .flat_map(|(block, (name, from, to))| {
            let name = |half: &str| format!("blk.{block}.{name}.weight.lora_{half}");
            [(name("a"), [from, RANK]), (name("b"), [RANK, to])]
        })
        .collect();
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend(4_u64.to_le_bytes());
    for (key, value) in
        [("general.type", "adapter"), ("general.architecture", architecture), ("adapter.type", "lora")]
    {
        head.extend([text(key), 8_u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    head.extend(
        [text("adapter.lora.alpha"), 6_u32.to_le_bytes().to_vec(), 8_f32.to_le_bytes().to_vec()].concat(),
    );
    let mut data: Vec<u8> = Vec::new();
    let mut seed = 7_u32;
    for (name, shape) in tensors {
        head.extend([text(&name), 2_u32.to_le_bytes().to_vec()].concat());
        head.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
        head.extend(0_u32.to_le_bytes());
        head.extend((data.len() as u64).to_le_bytes());
        for _ in 0..shape[0] * shape[1] {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            data.extend((f32::from((seed >> 16) as u16) / 32_768.0 - 1.0).mul_add(most, 0.0).to_le_bytes());
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    [head, data].concat()
}
