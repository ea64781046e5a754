//! IQ3_XXS and IQ3_S: every four values are a grid point, with signs and, for every 32 values, a 4-bit scale.
//!
//! A value is `d * (0.5 + scale) * 0.5 * coordinate` in IQ3_XXS and `d * (1 + 2 * scale) * coordinate` in IQ3_S,
//! negated if its sign bit is set.

use super::block::{decode_blocks, half_at, part};
use super::grids;
use super::iq2::point;

/// All point indices; then for every 32 values a u32 of four times seven signs and the scale.
pub(super) fn decode_xxs(bytes: &[u8], out: &mut [f32]) {
    decode_blocks(bytes, out, |block: &[u8; 98], out: &mut [f32; 256]| {
        let d = half_at::<0, _>(block).to_f32();
        let points = part::<2, 64, _>(block).as_chunks::<8>().0;
        let bits = part::<66, 32, _>(block).as_chunks::<4>().0;
        for (out, (points, bits)) in out.as_chunks_mut::<32>().0.iter_mut().zip(points.iter().zip(bits)) {
            let bits = u32::from_le_bytes(*bits);
            let scale = d * (0.5 + (bits >> 28) as f32) * 0.5;
            let pairs = out.as_chunks_mut::<8>().0.iter_mut().zip(points.as_chunks::<2>().0);
            for (i, (out, [first, second])) in pairs.enumerate() {
                let signs = grids::signs((bits >> (7 * i)) as u8);
                let (low, high) = out.split_at_mut(4);
                point(scale, &grids::IQ3_XXS[usize::from(*first)], signs, low);
                point(scale, &grids::IQ3_XXS[usize::from(*second)], signs >> 4, high);
            }
        }
    });
}

/// The low bytes of the point indices, their ninth bits, all signs, then the scales.
pub(super) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    decode_blocks(bytes, out, |block: &[u8; 110], out: &mut [f32; 256]| {
        let d = half_at::<0, _>(block).to_f32();
        let (low, high) = (part::<2, 64, _>(block), part::<66, 8, _>(block));
        let (signs, scales) = (part::<74, 32, _>(block), part::<106, 4, _>(block));
        for (i, (out, low)) in out.as_chunks_mut::<4>().0.iter_mut().zip(low).enumerate() {
            let high = high[i / 8 % 8] >> (i % 8) & 1;
            let scale = scales[i / 16 % 4] >> (i / 8 % 2 * 4) & 15;
            let scale = d * (1.0 + 2.0 * f32::from(scale));
            let number = usize::from(*low) | usize::from(high) << 8;
            point(scale, &grids::IQ3_S[number], signs[i / 2 % 32] >> (i % 2 * 4), out);
        }
    });
}
