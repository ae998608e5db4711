//! The table of tensors: what each is, and that all of them lie inside the
//! file, aligned and apart.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use super::Error;
use super::cursor::Cursor;
use super::kinds::{self, TensorKind};

/// Longest tensor name, in bytes; ggml holds 63 and a closing NUL.
const TENSOR_NAME_BYTES_MAX: u64 = 63;

/// One tensor as the header describes it.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) kind: TensorKind,
    /// Its lengths, the first one first; 1 where it has no more dimensions.
    pub(super) shape: [u64; 4],
    elements: u64,
    /// From the start of the data section.
    offset: u64,
    bytes: u64,
}

/// Sums over all tensors.
pub(super) struct Totals {
    pub(super) parameters: u64,
    pub(super) main_kind: &'static str,
    /// Whether one makes the tokens that are written.
    pub(super) has_output: bool,
}

pub(super) fn read<R: Read>(cursor: &mut Cursor<R>, tensor_count: u64) -> Result<Vec<Tensor>, Error> {
    if tensor_count == 0 {
        return Err(Error::NoTensors);
    }
    let mut names = HashSet::new();
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let tensor = read_tensor(cursor)?;
        if !names.insert(tensor.name.clone()) {
            return Err(Error::Twice(tensor.name));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor<R: Read>(cursor: &mut Cursor<R>) -> Result<Tensor, Error> {
    let name = cursor.name("tensor name", TENSOR_NAME_BYTES_MAX)?;
    let dimensions = cursor.u32()?;
    if !(1..=4).contains(&dimensions) {
        return Err(Error::Dimensions { name, dimensions });
    }
    let mut elements = 1_u64;
    let mut shape = [1; 4];
    for place in shape.iter_mut().take(dimensions as usize) {
        let length = cursor.u64()?;
        // ggml counts in signed 64-bit numbers.
        let product = elements.checked_mul(length).filter(|product| *product <= i64::MAX as u64);
        elements = match product {
            Some(product) if length > 0 => product,
            _ => return Err(Error::Shape(name)),
        };
        *place = length;
    }
    let number = cursor.u32()?;
    let Some(kind) = kinds::tensor(number) else {
        return Err(Error::TensorType { name, kind: number });
    };
    let offset = cursor.u64()?;
    if shape[0] % kind.block != 0 {
        return Err(Error::Shape(name));
    }
    let Some(bytes) = (elements / kind.block).checked_mul(kind.bytes) else {
        return Err(Error::Shape(name));
    };
    Ok(Tensor { name, kind, shape, elements, offset, bytes })
}

/// Checks that every tensor lies inside the file, aligned and apart from the
/// others.
pub(super) fn check_placement(
    tensors: &[Tensor],
    at: u64,
    alignment: u64,
    size_bytes: u64,
) -> Result<Totals, Error> {
    // `at` is at most the size of a file, which is far below the range.
    let data_start = at.next_multiple_of(alignment);
    let mut parameters = 0_u64;
    let mut data_end = data_start;
    let mut bytes_by_kind: HashMap<&'static str, u64> = HashMap::new();
    for tensor in tensors {
        if tensor.offset % alignment != 0 {
            return Err(Error::Offset(tensor.name.clone()));
        }
        let end = tensor
            .offset
            .checked_add(tensor.bytes)
            .and_then(|end| end.checked_add(data_start))
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or_else(|| Error::Shape(tensor.name.clone()))?;
        data_end = data_end.max(end);
        parameters = parameters.saturating_add(tensor.elements);
        let sum = bytes_by_kind.entry(tensor.kind.name).or_default();
        *sum = sum.saturating_add(tensor.bytes);
    }
    if data_end > size_bytes {
        return Err(Error::Truncated { missing: data_end - size_bytes });
    }
    let mut by_offset: Vec<&Tensor> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if let [first, second] = pair
            && first.offset + first.bytes > second.offset
        {
            return Err(Error::Overlap(first.name.clone(), second.name.clone()));
        }
    }
    let main_kind = bytes_by_kind.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("?", |(name, _)| name);
    let has_output = tensors.iter().any(|tensor| tensor.name == "output.weight");
    Ok(Totals { parameters, main_kind, has_output })
}
