//! The numbers of the GGUF format: value types, tensor types and file types.

/// Value type of the numbered name.
pub(super) const UINT8: u32 = 0;
pub(super) const INT8: u32 = 1;
pub(super) const UINT16: u32 = 2;
pub(super) const INT16: u32 = 3;
pub(super) const UINT32: u32 = 4;
pub(super) const INT32: u32 = 5;
pub(super) const FLOAT32: u32 = 6;
pub(super) const BOOL: u32 = 7;
pub(super) const TEXT: u32 = 8;
pub(super) const ARRAY: u32 = 9;
pub(super) const UINT64: u32 = 10;
pub(super) const INT64: u32 = 11;
pub(super) const FLOAT64: u32 = 12;

/// Bytes that a value of this type takes at least; `None` for arrays and
/// unknown types.
pub(super) fn value_bytes_min(kind: u32) -> Option<u64> {
    match kind {
        UINT8 | INT8 | BOOL => Some(1),
        UINT16 | INT16 => Some(2),
        UINT32 | INT32 | FLOAT32 => Some(4),
        UINT64 | INT64 | FLOAT64 | TEXT => Some(8),
        _ => None,
    }
}

pub(super) fn is_integer(kind: u32) -> bool {
    matches!(kind, UINT8 | INT8 | UINT16 | INT16 | UINT32 | INT32 | UINT64 | INT64)
}

/// How a tensor stores its elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TensorKind {
    pub(super) number: u32,
    pub(super) name: &'static str,
    /// Elements per block.
    pub(super) block: u64,
    /// Bytes per block.
    pub(super) bytes: u64,
}

const fn kind(number: u32, name: &'static str, block: u64, bytes: u64) -> TensorKind {
    TensorKind { number, name, block, bytes }
}

/// Every tensor type that the linked ggml knows; a test compares the sizes.
pub(super) const TENSOR_KINDS: [TensorKind; 35] = [
    kind(0, "F32", 1, 4),
    kind(1, "F16", 1, 2),
    kind(2, "Q4_0", 32, 18),
    kind(3, "Q4_1", 32, 20),
    kind(6, "Q5_0", 32, 22),
    kind(7, "Q5_1", 32, 24),
    kind(8, "Q8_0", 32, 34),
    kind(9, "Q8_1", 32, 36),
    kind(10, "Q2_K", 256, 84),
    kind(11, "Q3_K", 256, 110),
    kind(12, "Q4_K", 256, 144),
    kind(13, "Q5_K", 256, 176),
    kind(14, "Q6_K", 256, 210),
    kind(15, "Q8_K", 256, 292),
    kind(16, "IQ2_XXS", 256, 66),
    kind(17, "IQ2_XS", 256, 74),
    kind(18, "IQ3_XXS", 256, 98),
    kind(19, "IQ1_S", 256, 50),
    kind(20, "IQ4_NL", 32, 18),
    kind(21, "IQ3_S", 256, 110),
    kind(22, "IQ2_S", 256, 82),
    kind(23, "IQ4_XS", 256, 136),
    kind(24, "I8", 1, 1),
    kind(25, "I16", 1, 2),
    kind(26, "I32", 1, 4),
    kind(27, "I64", 1, 8),
    kind(28, "F64", 1, 8),
    kind(29, "IQ1_M", 256, 56),
    kind(30, "BF16", 1, 2),
    kind(34, "TQ1_0", 256, 54),
    kind(35, "TQ2_0", 256, 66),
    kind(39, "MXFP4", 32, 17),
    kind(40, "NVFP4", 64, 36),
    kind(41, "Q1_0", 128, 18),
    kind(42, "Q2_0", 64, 18),
];

pub(super) fn tensor(number: u32) -> Option<TensorKind> {
    TENSOR_KINDS.iter().find(|kind| kind.number == number).copied()
}

/// The usual name of a `general.file_type` number.
pub(super) fn file_type(number: u64) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        _ => return None,
    })
}
