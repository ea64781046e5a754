//! The unit of storage, and the arithmetic of rows that consist of it.

use std::ops::Range;

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
    /// Bytes of a row of `cols` values; `None` unless they are whole blocks, and where the product overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if self.values == 0 || !cols.is_multiple_of(self.values) {
            return None;
        }
        (cols / self.values).checked_mul(self.bytes)
    }

    /// Where the columns `cols` lie within the bytes of their row; `None` unless they begin and end at the borders of
    /// blocks.
    pub const fn byte_range(self, cols: Range<usize>) -> Option<Range<usize>> {
        match (self.row_bytes(cols.start), self.row_bytes(cols.end)) {
            (Some(start), Some(end)) if start <= end => Some(start..end),
            _ => None,
        }
    }

    /// Bytes of a matrix of `rows` x `cols`; `None` unless rows are whole blocks, and where the product overflows.
    pub const fn matrix_bytes(self, rows: usize, cols: usize) -> Option<u64> {
        match self.row_bytes(cols) {
            Some(row) => (row as u64).checked_mul(rows as u64),
            None => None,
        }
    }
}
