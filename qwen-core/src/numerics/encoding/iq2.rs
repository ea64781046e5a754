//! IQ2_XXS, IQ2_XS and IQ2_S: every eight values are a grid point, with signs and a 4-bit scale.
//!
//! A value is `d * (0.5 + scale) * 0.25 * coordinate`, negated if its sign bit is set. IQ2_XXS has a scale for every 32
//! values, the others for every 16.

use super::block::{decode_blocks, half_at, part};
use super::grids;

/// Eight values: a grid point, scaled, with signs.
pub(super) fn point<const N: usize>(scale: f32, point: &[u8; N], signs: u8, out: &mut [f32]) {
    for (i, (out, coordinate)) in out.iter_mut().zip(point).enumerate() {
        let value = scale * f32::from(*coordinate);
        *out = if signs >> i & 1 == 1 { -value } else { value };
    }
}

/// The scale of the four bits of `code`.
fn scale(d: f32, code: u8) -> f32 {
    d * (0.5 + f32::from(code & 15)) * 0.25
}

/// Every 32 values take 8 bytes: four point indices, then a u32 of four times seven signs and the scale.
pub(super) fn decode_xxs(bytes: &[u8], out: &mut [f32]) {
    decode_blocks(bytes, out, |block: &[u8; 66], out: &mut [f32; 256]| {
        let d = half_at::<0, _>(block).to_f32();
        let runs = part::<2, 64, _>(block).as_chunks::<8>().0;
        for (out, [points @ .., a, b, c, e]) in out.as_chunks_mut::<32>().0.iter_mut().zip(runs) {
            let points: &[u8; 4] = points;
            let bits = u32::from_le_bytes([*a, *b, *c, *e]);
            let scale = scale(d, (bits >> 28) as u8);
            for (i, (out, number)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
                let signs = grids::signs((bits >> (7 * i)) as u8);
                point(scale, &grids::IQ2_XXS[usize::from(*number)], signs, out);
            }
        }
    });
}

/// Every 8 values take a u16: nine bits of point index, then seven signs. The scales follow.
pub(super) fn decode_xs(bytes: &[u8], out: &mut [f32]) {
    decode_blocks(bytes, out, |block: &[u8; 74], out: &mut [f32; 256]| {
        let d = half_at::<0, _>(block).to_f32();
        let points = part::<2, 64, _>(block).as_chunks::<2>().0;
        let scales = part::<66, 8, _>(block);
        for (i, (out, bits)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
            let bits = u16::from_le_bytes(*bits);
            let scale = scale(d, scales[i / 4 % 8] >> (i / 2 % 2 * 4));
            point(scale, &grids::IQ2_XS[usize::from(bits & 511)], grids::signs((bits >> 9) as u8), out);
        }
    });
}

/// The low bytes of the point indices, all signs, then the two high bits of the indices, then the scales.
pub(super) fn decode_s(bytes: &[u8], out: &mut [f32]) {
    decode_blocks(bytes, out, |block: &[u8; 82], out: &mut [f32; 256]| {
        let d = half_at::<0, _>(block).to_f32();
        let (low, signs) = (part::<2, 32, _>(block), part::<34, 32, _>(block));
        let (high, scales) = (part::<66, 8, _>(block), part::<74, 8, _>(block));
        let points = out.as_chunks_mut::<8>().0.iter_mut().zip(low.iter().zip(signs));
        for (i, (out, (low, signs))) in points.enumerate() {
            let high = high[i / 4 % 8] >> (i % 4 * 2) & 3;
            let scale = scale(d, scales[i / 4 % 8] >> (i / 2 % 2 * 4));
            point(scale, &grids::IQ2_S[usize::from(*low) | usize::from(high) << 8], *signs, out);
        }
    });
}
