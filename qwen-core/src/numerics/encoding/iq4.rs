//! IQ4_NL and IQ4_XS: four-bit codes that index a table of sixteen values.
//!
//! IQ4_NL has blocks of 32 with an F16 scale, laid out like Q4_0. IQ4_XS has blocks of 256 in eight groups of 32, each
//! laid out like that; their 6-bit scales (minus 32) are multiplied by the block's F16 scale.

use std::array;

use half::f16;

use super::block::{decode_blocks, half_at, part, part_mut};
use super::legacy::{nibbles, pack_nibbles};

/// The value of each code, before scales: a constant of the formats.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The same in f32, for the decoders.
const VALUES: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = LEVELS[i] as f32;
        i += 1;
    }
    values
};

/// The eight scales of a block of IQ4_XS, -32 to 31: the high two bits of each are in `high`, the low four in `low`.
pub fn xs_scales(high: [u8; 2], low: [u8; 4]) -> [i8; 8] {
    let high = u16::from_le_bytes(high);
    array::from_fn(|i| {
        let low = low[i / 2] >> (i % 2 * 4) & 15;
        let high = (high >> (2 * i) & 3) as u8;
        (low | high << 4) as i8 - 32
    })
}

/// The block of IQ4_XS with these scales and codes.
pub(super) fn pack_xs(d: f16, scales: &[i8; 8], codes: &[[u8; 32]; 8]) -> [u8; 136] {
    let scales = scales.map(|scale| (scale + 32) as u8);
    let high = (0..8).fold(0, |bits, i| bits | u16::from(scales[i] >> 4) << (2 * i));
    let mut block = [0; 136];
    *part_mut::<0, 2, _>(&mut block) = d.to_le_bytes();
    *part_mut::<2, 2, _>(&mut block) = high.to_le_bytes();
    *part_mut::<4, 4, _>(&mut block) = array::from_fn(|i| scales[2 * i] & 15 | scales[2 * i + 1] << 4);
    for (stored, codes) in part_mut::<8, 128, _>(&mut block).as_chunks_mut().0.iter_mut().zip(codes) {
        *stored = pack_nibbles(codes);
    }
    block
}

fn decode(scale: f32, codes: &[u8; 16], out: &mut [f32; 32]) {
    let codes = nibbles(codes);
    *out = array::from_fn(|i| scale * VALUES[usize::from(codes[i] & 15)]);
}

pub(super) fn decode_nl(bytes: &[u8], out: &mut [f32]) {
    decode_blocks(bytes, out, |block: &[u8; 18], out| {
        decode(half_at::<0, _>(block).to_f32(), part::<2, 16, _>(block), out);
    });
}

pub(super) fn decode_xs(bytes: &[u8], out: &mut [f32]) {
    decode_blocks(bytes, out, |block: &[u8; 136], out: &mut [f32; 256]| {
        let d = half_at::<0, _>(block).to_f32();
        let scales = xs_scales(*part::<2, 2, _>(block), *part::<4, 4, _>(block));
        let groups = out.as_chunks_mut().0.iter_mut().zip(part::<8, 128, _>(block).as_chunks().0);
        for ((out, codes), scale) in groups.zip(scales) {
            decode(d * f32::from(scale), codes, out);
        }
    });
}
