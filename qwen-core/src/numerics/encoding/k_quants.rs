//! Q2_K to Q6_K: blocks of 256 codes in groups of 16 or 32, whose scales (and minima) are small integers multiplied by
//! the block's F16 scales.
//!
//! A value is `(d * scale) * (code - offset) - dmin * min` for all five; only the subtraction rounds. The byte layouts
//! of codes and scales differ; [`KBlock`] is the common form, with a pair of functions to convert each layout from and
//! to it.

use std::array;

use half::f16;

use super::block::{decode_blocks, half_at, part, part_mut};

/// Values of a block.
const VALUES: usize = 256;

/// An unpacked block, with `GROUPS` groups: 8 of 32 values (Q4_K, Q5_K) or 16 of 16 (Q2_K, Q3_K, Q6_K).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KBlock<const GROUPS: usize> {
    /// What the scales are multiples of.
    pub d: f16,
    /// What the minima are multiples of; not stored, and 0, in Q3_K and Q6_K.
    pub dmin: f16,
    /// The groups' scales: below 16 in Q2_K, -32 to 31 in Q3_K, below 64 in Q4_K and Q5_K, any in Q6_K.
    pub scales: [i8; GROUPS],
    /// The groups' minima, of the scales' range; not stored, and 0, in Q3_K and Q6_K.
    pub mins: [u8; GROUPS],
    /// The codes in the order of the values, in runs of 32; offset by 4 in Q3_K and by 32 in Q6_K, so that they are not
    /// negative.
    pub codes: [[u8; 32]; 8],
}

/// The runs of 32 bytes of a part of a block.
fn runs<const BYTES: usize, const RUNS: usize>(bytes: &[u8; BYTES]) -> &[[u8; 32]; RUNS] {
    const { assert!(BYTES == 32 * RUNS) };
    match bytes.as_chunks().0.first_chunk() {
        Some(runs) => runs,
        None => unreachable!(),
    }
}

/// Bits `shift..` under `mask`, put at bit `to`.
fn bits(run: &[u8; 32], shift: usize, mask: u8, to: usize) -> [u8; 32] {
    run.map(|byte| (byte >> shift & mask) << to)
}

fn or(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    array::from_fn(|i| a[i] | b[i])
}

/// The eight 6-bit scales and minima of Q4_K and Q5_K.
///
/// Scales and minima 0 to 3 are in the low six bits of a byte each; 4 to 7 have their low four bits in the last four
/// bytes and their high two bits above those of 0 to 3.
pub fn scales_and_mins(packed: &[u8; 12]) -> ([i8; 8], [u8; 8]) {
    let scales = array::from_fn(|i| match i {
        0..4 => packed[i] & 63,
        _ => packed[i + 4] & 15 | packed[i - 4] >> 6 << 4,
    });
    let mins = array::from_fn(|i| match i {
        0..4 => packed[i + 4] & 63,
        _ => packed[i + 4] >> 4 | packed[i] >> 6 << 4,
    });
    (scales.map(|scale| scale as i8), mins)
}

/// The inverse of [`scales_and_mins`].
fn pack_scales_and_mins(scales: &[i8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let scales = scales.map(|scale| scale as u8);
    array::from_fn(|i| match i {
        0..4 => scales[i] & 63 | scales[i + 4] >> 4 << 6,
        4..8 => mins[i - 4] & 63 | mins[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | mins[i - 4] << 4,
    })
}

/// The sixteen 6-bit scales of Q3_K, minus 32.
///
/// Their low four bits are the halves of eight bytes, the first eight scales in the low halves; their high two bits are
/// the bit pairs of four bytes.
pub fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    array::from_fn(|i| {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The inverse of [`q3_k_scales`].
fn pack_q3_k_scales(scales: &[i8; 16]) -> [u8; 12] {
    let scales = scales.map(|scale| (scale + 32) as u8);
    array::from_fn(|i| match i {
        0..8 => scales[i] & 15 | scales[i + 8] << 4,
        _ => (0..4).fold(0, |byte, k| byte | (scales[i - 8 + 4 * k] >> 4 & 3) << (2 * k)),
    })
}

impl KBlock<16> {
    /// Take a block of Q2_K apart.
    pub fn from_q2_k(block: &[u8; 84]) -> Self {
        let scales = part::<0, 16, _>(block);
        let low: &[_; 2] = runs(part::<16, 64, _>(block));
        KBlock {
            d: half_at::<80, _>(block),
            dmin: half_at::<82, _>(block),
            scales: scales.map(|byte| (byte & 15) as i8),
            mins: scales.map(|byte| byte >> 4),
            codes: array::from_fn(|i| bits(&low[i / 4], i % 4 * 2, 3, 0)),
        }
    }

    /// The block of Q2_K.
    pub fn to_q2_k(&self) -> [u8; 84] {
        let mut block = [0; 84];
        *part_mut::<0, 16, _>(&mut block) = array::from_fn(|i| self.scales[i] as u8 & 15 | self.mins[i] << 4);
        *part_mut::<16, 64, _>(&mut block) = self.low_two_bits();
        *part_mut::<80, 2, _>(&mut block) = self.d.to_le_bytes();
        *part_mut::<82, 2, _>(&mut block) = self.dmin.to_le_bytes();
        block
    }

    /// The low two bits of the codes: a byte holds those of values 32 apart.
    fn low_two_bits(&self) -> [u8; 64] {
        array::from_fn(|i| (0..4).fold(0, |byte, k| byte | (self.codes[i / 32 * 4 + k][i % 32] & 3) << (2 * k)))
    }

    /// Take a block of Q3_K apart.
    pub fn from_q3_k(block: &[u8; 110]) -> Self {
        let high = part::<0, 32, _>(block);
        let low: &[_; 2] = runs(part::<32, 64, _>(block));
        KBlock {
            d: half_at::<108, _>(block),
            dmin: f16::ZERO,
            scales: q3_k_scales(part::<96, 12, _>(block)),
            mins: [0; 16],
            codes: array::from_fn(|i| or(bits(&low[i / 4], i % 4 * 2, 3, 0), bits(high, i, 1, 2))),
        }
    }

    /// The block of Q3_K.
    pub fn to_q3_k(&self) -> [u8; 110] {
        let mut block = [0; 110];
        *part_mut::<0, 32, _>(&mut block) =
            array::from_fn(|l| (0..8).fold(0, |byte, i| byte | (self.codes[i][l] >> 2 & 1) << i));
        *part_mut::<32, 64, _>(&mut block) = self.low_two_bits();
        *part_mut::<96, 12, _>(&mut block) = pack_q3_k_scales(&self.scales);
        *part_mut::<108, 2, _>(&mut block) = self.d.to_le_bytes();
        block
    }

    /// Take a block of Q6_K apart.
    pub fn from_q6_k(block: &[u8; 210]) -> Self {
        let low: &[_; 4] = runs(part::<0, 128, _>(block));
        let high: &[_; 2] = runs(part::<128, 64, _>(block));
        KBlock {
            d: half_at::<208, _>(block),
            dmin: f16::ZERO,
            scales: part::<192, 16, _>(block).map(|byte| byte as i8),
            mins: [0; 16],
            codes: array::from_fn(|i| {
                let (half, quarter) = (i / 4, i % 4);
                or(bits(&low[2 * half + quarter % 2], quarter / 2 * 4, 15, 0), bits(&high[half], quarter * 2, 3, 4))
            }),
        }
    }

    /// The block of Q6_K.
    pub fn to_q6_k(&self) -> [u8; 210] {
        let mut block = [0; 210];
        *part_mut::<0, 128, _>(&mut block) = array::from_fn(|i| {
            let (run, l) = (i / 64 * 4 + i / 32 % 2, i % 32);
            self.codes[run][l] & 15 | self.codes[run + 2][l] << 4
        });
        *part_mut::<128, 64, _>(&mut block) = array::from_fn(|i| {
            (0..4).fold(0, |byte, k| byte | (self.codes[i / 32 * 4 + k][i % 32] >> 4 & 3) << (2 * k))
        });
        *part_mut::<192, 16, _>(&mut block) = self.scales.map(|scale| scale as u8);
        *part_mut::<208, 2, _>(&mut block) = self.d.to_le_bytes();
        block
    }
}

impl KBlock<8> {
    /// Take a block of Q4_K apart.
    pub fn from_q4_k(block: &[u8; 144]) -> Self {
        let (scales, mins) = scales_and_mins(part::<4, 12, _>(block));
        let low: &[_; 4] = runs(part::<16, 128, _>(block));
        let codes = array::from_fn(|i| bits(&low[i / 2], i % 2 * 4, 15, 0));
        KBlock { d: half_at::<0, _>(block), dmin: half_at::<2, _>(block), scales, mins, codes }
    }

    /// The block of Q4_K.
    pub fn to_q4_k(&self) -> [u8; 144] {
        let mut block = [0; 144];
        *part_mut::<0, 2, _>(&mut block) = self.d.to_le_bytes();
        *part_mut::<2, 2, _>(&mut block) = self.dmin.to_le_bytes();
        *part_mut::<4, 12, _>(&mut block) = pack_scales_and_mins(&self.scales, &self.mins);
        *part_mut::<16, 128, _>(&mut block) = self.low_four_bits();
        block
    }

    /// The low four bits of the codes: a byte holds those of values 32 apart.
    fn low_four_bits(&self) -> [u8; 128] {
        array::from_fn(|i| self.codes[i / 32 * 2][i % 32] & 15 | self.codes[i / 32 * 2 + 1][i % 32] << 4)
    }

    /// Take a block of Q5_K apart.
    pub fn from_q5_k(block: &[u8; 176]) -> Self {
        let (scales, mins) = scales_and_mins(part::<4, 12, _>(block));
        let high = part::<16, 32, _>(block);
        let low: &[_; 4] = runs(part::<48, 128, _>(block));
        let codes = array::from_fn(|i| or(bits(&low[i / 2], i % 2 * 4, 15, 0), bits(high, i, 1, 4)));
        KBlock { d: half_at::<0, _>(block), dmin: half_at::<2, _>(block), scales, mins, codes }
    }

    /// The block of Q5_K.
    pub fn to_q5_k(&self) -> [u8; 176] {
        let mut block = [0; 176];
        *part_mut::<0, 2, _>(&mut block) = self.d.to_le_bytes();
        *part_mut::<2, 2, _>(&mut block) = self.dmin.to_le_bytes();
        *part_mut::<4, 12, _>(&mut block) = pack_scales_and_mins(&self.scales, &self.mins);
        *part_mut::<16, 32, _>(&mut block) =
            array::from_fn(|l| (0..8).fold(0, |byte, i| byte | (self.codes[i][l] >> 4 & 1) << i));
        *part_mut::<48, 128, _>(&mut block) = self.low_four_bits();
        block
    }
}

impl<const GROUPS: usize> KBlock<GROUPS> {
    /// The values, where code `offset` stands for zero.
    pub(super) fn decode(&self, offset: i8, out: &mut [f32; VALUES]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let size = VALUES / GROUPS;
        let groups = out.chunks_exact_mut(size).zip(self.codes.as_flattened().chunks_exact(size));
        for ((out, codes), (scale, min)) in groups.zip(self.scales.iter().zip(&self.mins)) {
            let (scale, min) = (d * f32::from(*scale), dmin * f32::from(*min));
            for (out, code) in out.iter_mut().zip(codes) {
                *out = scale * f32::from(*code as i8 - offset) - min;
            }
        }
    }
}

fn decode<const OFFSET: i8, const GROUPS: usize, const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    unpack: fn(&[u8; BYTES]) -> KBlock<GROUPS>,
) {
    decode_blocks(bytes, out, |block, out| unpack(block).decode(OFFSET, out));
}

pub(super) fn decode_q2_k(bytes: &[u8], out: &mut [f32]) {
    decode::<0, _, _>(bytes, out, KBlock::from_q2_k);
}

pub(super) fn decode_q3_k(bytes: &[u8], out: &mut [f32]) {
    decode::<4, _, _>(bytes, out, KBlock::from_q3_k);
}

pub(super) fn decode_q4_k(bytes: &[u8], out: &mut [f32]) {
    decode::<0, _, _>(bytes, out, KBlock::from_q4_k);
}

pub(super) fn decode_q5_k(bytes: &[u8], out: &mut [f32]) {
    decode::<0, _, _>(bytes, out, KBlock::from_q5_k);
}

pub(super) fn decode_q6_k(bytes: &[u8], out: &mut [f32]) {
    decode::<32, _, _>(bytes, out, KBlock::from_q6_k);
}
