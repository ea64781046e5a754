//! Blocks of 256 values with integer scales: Q2_K to Q6_K, and IQ4_XS.
//!
//! The scales of 32 values, or of 16, stay as narrow as in the file; their bits are arranged so that a shader gets at one
//! with a shift and a mask.

use crate::numerics::encoding::iq4::xs_scales;
use crate::numerics::encoding::k_quants::KBlock;

use super::PlaneFormat;
use super::writer::{Planes, high_pairs, nibbles, pair};

pub(super) static Q2_K: PlaneFormat = PlaneFormat::new("q2_k", &[64, 16, 4], |block, out| {
    if let Ok(block) = block.try_into() {
        let block = KBlock::from_q2_k(block);
        out.two_bits(0, block.codes.as_flattened().iter().copied());
        let both = block.scales.iter().zip(&block.mins).map(|(scale, min)| *scale as u8 | min << 4);
        out.put(1, &both.collect::<Vec<u8>>());
        out.words(2, [pair(block.d.to_bits(), block.dmin.to_bits())]);
    }
});

pub(super) static Q3_K: PlaneFormat = PlaneFormat::new("q3_k", &[64, 32, 12, 2], |block, out| {
    if let Ok(block) = block.try_into() {
        let block = KBlock::from_q3_k(block);
        let codes = block.codes.as_flattened();
        out.two_bits(0, codes.iter().copied());
        out.one_bit(1, codes.iter().map(|code| code >> 2));
        let scales = block.scales.map(|scale| (scale + 32) as u8);
        out.words(2, [nibbles(&scales[..8]), nibbles(&scales[8..]), high_pairs(&scales)]);
        out.put(3, &block.d.to_le_bytes());
    }
});

pub(super) static Q4_K: PlaneFormat = PlaneFormat::new("q4_k", &[128, 16], |block, out| {
    if let Ok(block) = block.try_into() {
        let block = KBlock::from_q4_k(block);
        out.four_bits(0, block.codes.as_flattened());
        out.words(1, scales_and_mins(&block));
    }
});

pub(super) static Q5_K: PlaneFormat = PlaneFormat::new("q5_k", &[128, 32, 16], |block, out| {
    if let Ok(block) = block.try_into() {
        let block = KBlock::from_q5_k(block);
        let codes = block.codes.as_flattened();
        out.four_bits(0, codes);
        out.one_bit(1, codes.iter().map(|code| code >> 4));
        out.words(2, scales_and_mins(&block));
    }
});

pub(super) static Q6_K: PlaneFormat = PlaneFormat::new("q6_k", &[128, 64, 16, 2], |block, out| {
    if let Ok(block) = block.try_into() {
        let block = KBlock::from_q6_k(block);
        let codes = block.codes.as_flattened();
        out.four_bits(0, codes);
        out.two_bits(1, codes.iter().map(|code| code >> 4));
        out.put(2, &block.scales.map(|scale| scale as u8));
        out.put(3, &block.d.to_le_bytes());
    }
});

pub(super) static IQ4_XS: PlaneFormat = PlaneFormat::new("iq4_xs", &[128, 8], iq4_xs);

fn iq4_xs(block: &[u8], out: &mut Planes<'_>) {
    let Ok([d0, d1, h0, h1, l0, l1, l2, l3, codes @ ..]): Result<[u8; 136], _> = block.try_into() else { return };
    for codes in codes.as_chunks::<16>().0 {
        let codes: [u8; 32] = std::array::from_fn(|i| if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 });
        out.four_bits(0, &codes);
    }
    let scales = xs_scales([h0, h1], [l0, l1, l2, l3]).map(|scale| (scale + 32) as u8);
    let d = u16::from_le_bytes([d0, d1]);
    out.words(1, [nibbles(&scales), pair(d, high_pairs(&scales) as u16)]);
}

/// The block's two scales, the low bits of eight scales, of eight minima, and the high bits of both.
fn scales_and_mins(block: &KBlock<8>) -> [u32; 4] {
    let scales = block.scales.map(|scale| scale as u8);
    let high = pair(high_pairs(&scales) as u16, high_pairs(&block.mins) as u16);
    [pair(block.d.to_bits(), block.dmin.to_bits()), nibbles(&scales), nibbles(&block.mins), high]
}
