//! Q4_0, Q4_1, Q5_0 and Q5_1: blocks of 32 codes with one F16 scale and, in two of them, one F16 minimum.
//!
//! A value is `scale * (code - 8)` in Q4_0, `scale * (code - 16)` in Q5_0, and `scale * code + min` in the others. The
//! low four bits of the codes are in 16 bytes, the first 16 codes in the low halves; the fifth bits form a u32.

use std::array;

use half::f16;

use super::block::{decode_blocks, half_at, part, part_mut};

/// Values of a block.
const VALUES: usize = 32;

/// An unpacked block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Legacy {
    /// Step between codes.
    pub scale: f16,
    /// The value of code 0; not stored, and 0, in Q4_0 and Q5_0.
    pub min: f16,
    /// The codes in the order of the values, below 16 or 32.
    pub codes: [u8; VALUES],
}

/// The four-bit codes of 16 bytes: the low halves, then the high ones.
pub(super) fn nibbles(bytes: &[u8; 16]) -> [u8; VALUES] {
    array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// The inverse of [`nibbles`]; higher bits of the codes are left out.
pub(super) fn pack_nibbles(codes: &[u8; VALUES]) -> [u8; 16] {
    array::from_fn(|i| codes[i] & 15 | codes[i + 16] << 4)
}

fn five_bits(high: &[u8; 4], low: &[u8; 16]) -> [u8; VALUES] {
    let (high, low) = (u32::from_le_bytes(*high), nibbles(low));
    array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

fn fifth_bits(codes: &[u8; VALUES]) -> [u8; 4] {
    (0..VALUES).fold(0, |bits, i| bits | u32::from(codes[i] >> 4 & 1) << i).to_le_bytes()
}

impl Legacy {
    /// Take a block of Q4_0 apart.
    pub fn from_q4_0(block: &[u8; 18]) -> Self {
        Legacy { scale: half_at::<0, _>(block), min: f16::ZERO, codes: nibbles(part::<2, 16, _>(block)) }
    }

    /// Take a block of Q4_1 apart.
    pub fn from_q4_1(block: &[u8; 20]) -> Self {
        Legacy { scale: half_at::<0, _>(block), min: half_at::<2, _>(block), codes: nibbles(part::<4, 16, _>(block)) }
    }

    /// Take a block of Q5_0 apart.
    pub fn from_q5_0(block: &[u8; 22]) -> Self {
        let codes = five_bits(part::<2, 4, _>(block), part::<6, 16, _>(block));
        Legacy { scale: half_at::<0, _>(block), min: f16::ZERO, codes }
    }

    /// Take a block of Q5_1 apart.
    pub fn from_q5_1(block: &[u8; 24]) -> Self {
        let codes = five_bits(part::<4, 4, _>(block), part::<8, 16, _>(block));
        Legacy { scale: half_at::<0, _>(block), min: half_at::<2, _>(block), codes }
    }

    /// The block of Q4_0.
    pub fn to_q4_0(&self) -> [u8; 18] {
        let mut block = [0; 18];
        *part_mut::<0, 2, _>(&mut block) = self.scale.to_le_bytes();
        *part_mut::<2, 16, _>(&mut block) = pack_nibbles(&self.codes);
        block
    }

    /// The block of Q4_1.
    pub fn to_q4_1(&self) -> [u8; 20] {
        let mut block = [0; 20];
        *part_mut::<0, 2, _>(&mut block) = self.scale.to_le_bytes();
        *part_mut::<2, 2, _>(&mut block) = self.min.to_le_bytes();
        *part_mut::<4, 16, _>(&mut block) = pack_nibbles(&self.codes);
        block
    }

    /// The block of Q5_0.
    pub fn to_q5_0(&self) -> [u8; 22] {
        let mut block = [0; 22];
        *part_mut::<0, 2, _>(&mut block) = self.scale.to_le_bytes();
        *part_mut::<2, 4, _>(&mut block) = fifth_bits(&self.codes);
        *part_mut::<6, 16, _>(&mut block) = pack_nibbles(&self.codes);
        block
    }

    /// The block of Q5_1.
    pub fn to_q5_1(&self) -> [u8; 24] {
        let mut block = [0; 24];
        *part_mut::<0, 2, _>(&mut block) = self.scale.to_le_bytes();
        *part_mut::<2, 2, _>(&mut block) = self.min.to_le_bytes();
        *part_mut::<4, 4, _>(&mut block) = fifth_bits(&self.codes);
        *part_mut::<8, 16, _>(&mut block) = pack_nibbles(&self.codes);
        block
    }
}

/// `scale * (code - OFFSET)`.
fn decode_scaled<const OFFSET: i8, const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    unpack: fn(&[u8; BYTES]) -> Legacy,
) {
    decode_blocks(bytes, out, |block, out: &mut [f32; VALUES]| {
        let Legacy { scale, codes, .. } = unpack(block);
        let scale = scale.to_f32();
        *out = array::from_fn(|i| scale * f32::from(codes[i] as i8 - OFFSET));
    });
}

/// `scale * code + min`.
fn decode_affine<const BYTES: usize>(bytes: &[u8], out: &mut [f32], unpack: fn(&[u8; BYTES]) -> Legacy) {
    decode_blocks(bytes, out, |block, out: &mut [f32; VALUES]| {
        let Legacy { scale, min, codes } = unpack(block);
        let (scale, min) = (scale.to_f32(), min.to_f32());
        *out = array::from_fn(|i| scale * f32::from(codes[i]) + min);
    });
}

pub(super) fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    decode_scaled::<8, _>(bytes, out, Legacy::from_q4_0);
}

pub(super) fn decode_q4_1(bytes: &[u8], out: &mut [f32]) {
    decode_affine(bytes, out, Legacy::from_q4_1);
}

pub(super) fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    decode_scaled::<16, _>(bytes, out, Legacy::from_q5_0);
}

pub(super) fn decode_q5_1(bytes: &[u8], out: &mut [f32]) {
    decode_affine(bytes, out, Legacy::from_q5_1);
}
