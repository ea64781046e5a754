//! How codes are packed into 32-bit integers, and how codes along the output features are rearranged along the input
//! features.
//!
//! The integers are little-endian. GPTQ packs `32 / bits` codes of one output feature, of successive input features,
//! the first in the lowest bits: `qweight` is `[cols * bits / 32, rows]`. AWQ packs eight output features of one input
//! feature: `qweight` is `[cols, rows / 8]`, and nibble `i` of integer `c` belongs to output feature `8 c +
//! AWQ_ORDER[i]`. The zero points of both are packed along the output features, `[groups, rows * bits / 32]`, AWQ's in
//! its order.
//!
//! A *word* here is 32 bits of one row of the matrix in block form: the codes of `32 / bits` successive stored columns,
//! the first in the lowest bits. A GPTQ integer whose columns stay together is such a word; otherwise codes are
//! gathered, and those of AWQ transposed.

use crate::checkpoint::config::{GptqFormat, QuantMethod, Quantization};
use crate::numerics::encoding::GroupBits;

/// Which output feature of its eight each nibble of an AWQ integer belongs to.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The packing of a checkpoint's integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gptq { bits: GroupBits, format: GptqFormat },
    Awq,
}

impl Packing {
    pub(super) fn of(quantization: &Quantization) -> Self {
        match quantization.method {
            QuantMethod::Gptq { checkpoint_format, .. } => {
                Packing::Gptq { bits: quantization.bits, format: checkpoint_format }
            }
            QuantMethod::Awq => Packing::Awq,
        }
    }

    fn bits(self) -> u32 {
        match self {
            Packing::Gptq { bits, .. } => bits.count(),
            Packing::Awq => GroupBits::Four.count(),
        }
    }

    pub(super) fn codes_per_integer(self) -> usize {
        (u32::BITS / self.bits()) as usize
    }

    /// The dimensions of `qweight` in words.
    pub(super) fn dimensions(self) -> &'static str {
        match self {
            Packing::Gptq { bits: GroupBits::Four, .. } => "[input features / 8, output features]",
            Packing::Gptq { bits: GroupBits::Eight, .. } => "[input features / 4, output features]",
            Packing::Awq => "[input features, output features / 8]",
        }
    }

    /// The shape of `qweight` for a matrix of `rows` x `cols`.
    pub(super) fn qweight_shape(self, rows: usize, cols: usize) -> [usize; 2] {
        match self {
            Packing::Gptq { .. } => [cols / self.codes_per_integer(), rows],
            Packing::Awq => [cols, rows / self.codes_per_integer()],
        }
    }

    /// Which row of `qweight` holds column `col`.
    pub(super) fn packed_row(self, col: usize) -> usize {
        match self {
            Packing::Gptq { .. } => col / self.codes_per_integer(),
            Packing::Awq => col,
        }
    }

    /// Append the zero points of an integer of `qzeros`, one for each of its output features, in their order.
    pub(super) fn unpack_zeros(self, integer: u32, out: &mut Vec<u16>) {
        let mask = (1 << self.bits()) - 1;
        match self {
            Packing::Gptq { bits, format } => {
                // Version 1 stores one less, and its own library reads it modulo the number of codes.
                let less = u32::from(format == GptqFormat::V1);
                let zero = |i: u32| ((integer >> (bits.count() * i)) & mask).wrapping_add(less) & mask;
                out.extend((0..u32::BITS / bits.count()).map(|i| zero(i) as u16));
            }
            Packing::Awq => {
                let mut zeros = [0; AWQ_ORDER.len()];
                for (i, place) in AWQ_ORDER.into_iter().enumerate() {
                    if let Some(zero) = zeros.get_mut(place) {
                        *zero = ((integer >> (4 * i)) & mask) as u16;
                    }
                }
                out.extend(zeros);
            }
        }
    }
}

/// The source of one word of every row.
#[derive(Debug)]
pub(super) enum Word {
    /// The integers of this line.
    Whole(usize),
    /// The codes at these lines and shifts, first to last.
    Gathered(Vec<(usize, u32)>),
    /// One nibble of each of eight lines.
    Transposed([usize; 8]),
}

impl Packing {
    /// The sources of the words of the stored columns `columns`, one entry per `32 / bits` columns. `line` maps a row
    /// of `qweight` to its line.
    pub(super) fn words(self, columns: &[usize], line: impl Fn(usize) -> usize) -> Vec<Word> {
        let per_integer = self.codes_per_integer();
        let words = columns.chunks_exact(per_integer).map(|columns| {
            let first = columns.first().copied().unwrap_or_default();
            match self {
                Packing::Awq => {
                    let mut lines = [0; 8];
                    lines.iter_mut().zip(columns).for_each(|(at, col)| *at = line(*col));
                    Word::Transposed(lines)
                }
                Packing::Gptq { .. }
                    if first.is_multiple_of(per_integer)
                        && columns.iter().zip(first..).all(|(col, next)| *col == next) =>
                {
                    Word::Whole(line(first / per_integer))
                }
                Packing::Gptq { bits, .. } => {
                    let code = |col: &usize| (line(col / per_integer), bits.count() * (col % per_integer) as u32);
                    Word::Gathered(columns.iter().map(code).collect())
                }
            }
        });
        words.collect()
    }

    /// Rows to convert at once: as many as a cache line of integers holds, so that each cache line is read once.
    pub(super) fn rows_at_once(self) -> usize {
        const INTEGERS: usize = 16;
        match self {
            Packing::Gptq { .. } => INTEGERS,
            Packing::Awq => INTEGERS * AWQ_ORDER.len(),
        }
    }

    /// The words of the rows from `first` on, as many as `out` has. `lines` are rows of `qweight` of `line_bytes` each.
    /// For AWQ, `first` and the number of rows are multiples of the rows that it packs together.
    pub(super) fn word_of_rows(self, word: &Word, lines: &[u8], line_bytes: usize, first: usize, out: &mut [u32]) {
        let integers = |line: usize, first: usize| {
            let from = line * line_bytes + 4 * first;
            lines.get(from..(line + 1) * line_bytes).unwrap_or_default().as_chunks::<4>().0
        };
        match word {
            Word::Whole(line) => {
                let integers = integers(*line, first);
                out.iter_mut().zip(integers).for_each(|(out, integer)| *out = u32::from_le_bytes(*integer));
            }
            Word::Gathered(codes) => {
                out.fill(0);
                let (bits, mask) = (self.bits(), (1 << self.bits()) - 1);
                for ((line, shift), place) in codes.iter().zip((0..).step_by(bits as usize)) {
                    let integers = integers(*line, first);
                    for (out, integer) in out.iter_mut().zip(integers) {
                        *out |= ((u32::from_le_bytes(*integer) >> shift) & mask) << place;
                    }
                }
            }
            Word::Transposed(at) => {
                let eight = at.map(|line| integers(line, first / AWQ_ORDER.len()));
                for (c, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let integer = |line: &[[u8; 4]]| line.get(c).map_or(0, |integer| u32::from_le_bytes(*integer));
                    let nibbles = transpose(eight.map(integer));
                    for (word, place) in nibbles.into_iter().zip(AWQ_ORDER) {
                        if let Some(out) = out.get_mut(place) {
                            *out = word;
                        }
                    }
                }
            }
        }
    }
}

/// Nibble `i` of integer `j` becomes nibble `j` of integer `i`.
fn transpose([a, b, c, d, e, f, g, h]: [u32; 8]) -> [u32; 8] {
    /// Exchange the upper bits that `mask` has in `x`, and the lower ones in `y`.
    fn swap(x: u32, y: u32, shift: u32, mask: u32) -> (u32, u32) {
        let differ = ((x >> shift) ^ y) & mask;
        (x ^ (differ << shift), y ^ differ)
    }
    let swap_16 = |x, y| swap(x, y, 16, 0x0000_ffff);
    let ((a, e), (b, f), (c, g), (d, h)) = (swap_16(a, e), swap_16(b, f), swap_16(c, g), swap_16(d, h));
    let swap_8 = |x, y| swap(x, y, 8, 0x00ff_00ff);
    let ((a, c), (b, d), (e, g), (f, h)) = (swap_8(a, c), swap_8(b, d), swap_8(e, g), swap_8(f, h));
    let swap_4 = |x, y| swap(x, y, 4, 0x0f0f_0f0f);
    let ((a, b), (c, d), (e, f), (g, h)) = (swap_4(a, b), swap_4(c, d), swap_4(e, f), swap_4(g, h));
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_are_transposed() {
        let integers: [u32; 8] =
            std::array::from_fn(|i| 0x9e37_79b9u32.wrapping_mul(i as u32 + 1).rotate_left(i as u32));
        let nibble = |integers: &[u32; 8], i: usize, j: usize| (integers.get(i).copied().unwrap_or(16) >> (4 * j)) & 15;
        let transposed = transpose(integers);
        for i in 0..8 {
            for j in 0..8 {
                assert_eq!(nibble(&transposed, i, j), nibble(&integers, j, i), "{i}, {j}");
            }
        }
        assert_eq!(transpose(transposed), integers);
    }

    #[test]
    fn zero_points_of_the_first_version_wrap() {
        let zeros = |bits, format, integer| {
            let mut zeros = Vec::new();
            Packing::Gptq { bits, format }.unpack_zeros(integer, &mut zeros);
            zeros
        };
        assert_eq!(zeros(GroupBits::Four, GptqFormat::V1, 0xf0e7_8123), [4, 3, 2, 9, 8, 15, 1, 0]);
        assert_eq!(zeros(GroupBits::Four, GptqFormat::V2, 0xf0e7_8123), [3, 2, 1, 8, 7, 14, 0, 15]);
        assert_eq!(zeros(GroupBits::Eight, GptqFormat::V1, 0xff00_7f80), [129, 128, 1, 0]);
        assert_eq!(zeros(GroupBits::Eight, GptqFormat::V2, 0xff00_7f80), [128, 127, 0, 255]);
        let mut zeros = Vec::new();
        Packing::Awq.unpack_zeros(0x7531_6420, &mut zeros);
        assert_eq!(zeros, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
