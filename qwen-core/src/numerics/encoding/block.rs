//! The unit of storage, and the size arithmetic of rows of blocks.

use std::ops::Range;

use half::f16;

/// The smallest piece of a row that can be read without its neighbours.
///
/// ```
/// use qwen_core::numerics::encoding::Block;
///
/// let block = Block { values: 32, bytes: 18 };
/// assert_eq!(block.row_bytes(96), Some(54));
/// assert_eq!(block.row_bytes(80), None);
/// assert_eq!(block.byte_range(32..96), Some(18..54));
/// assert_eq!(block.byte_range(16..48), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Values of a block, at least 1.
    pub values: usize,
    /// Bytes of a block.
    pub bytes: usize,
}

impl Block {
    /// Bytes of a row of `cols` values; `None` if they are not whole blocks or the product overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if self.values == 0 || !cols.is_multiple_of(self.values) {
            return None;
        }
        (cols / self.values).checked_mul(self.bytes)
    }

    /// The byte range of the columns `cols` within their row; `None` unless they begin and end at block boundaries.
    pub const fn byte_range(self, cols: Range<usize>) -> Option<Range<usize>> {
        match (self.row_bytes(cols.start), self.row_bytes(cols.end)) {
            (Some(start), Some(end)) if start <= end => Some(start..end),
            _ => None,
        }
    }

    /// Bytes of a matrix of `rows` x `cols`; `None` if rows are not whole blocks or the product overflows.
    pub const fn matrix_bytes(self, rows: usize, cols: usize) -> Option<u64> {
        match self.row_bytes(cols) {
            Some(row) => (row as u64).checked_mul(rows as u64),
            None => None,
        }
    }
}

/// Apply `decode` to as many whole blocks as both slices have.
pub(super) fn decode_blocks<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

/// The `N` bytes of a block from `AT` on; the compiler checks the bounds.
pub(super) const fn part<const AT: usize, const N: usize, const BYTES: usize>(block: &[u8; BYTES]) -> &[u8; N] {
    const { assert!(AT + N <= BYTES) };
    match block.split_at(AT).1.first_chunk() {
        Some(part) => part,
        None => unreachable!(),
    }
}

/// The same, mutable.
pub(super) const fn part_mut<const AT: usize, const N: usize, const BYTES: usize>(
    block: &mut [u8; BYTES],
) -> &mut [u8; N] {
    const { assert!(AT + N <= BYTES) };
    match block.split_at_mut(AT).1.first_chunk_mut() {
        Some(part) => part,
        None => unreachable!(),
    }
}

/// The F16 at byte `AT` of a block.
pub(super) fn half_at<const AT: usize, const BYTES: usize>(block: &[u8; BYTES]) -> f16 {
    f16::from_le_bytes(*part::<AT, 2, _>(block))
}
