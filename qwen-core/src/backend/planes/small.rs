//! Blocks of 32 values: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL.

use crate::numerics::encoding::legacy::Legacy;

use super::PlaneFormat;
use super::writer::{Planes, pair};

pub(super) static Q4_0: PlaneFormat = PlaneFormat::new("q4_0", &[16, 2], |block, out| {
    if let Ok(block) = block.try_into() {
        four_bits_and_scale(&Legacy::from_q4_0(block), out);
    }
});

/// Its codes are laid out like those of Q4_0, and index a table.
pub(super) static IQ4_NL: PlaneFormat = PlaneFormat::new("iq4_nl", &[16, 2], |block, out| {
    if let Ok(block) = block.try_into() {
        four_bits_and_scale(&Legacy::from_q4_0(block), out);
    }
});

pub(super) static Q4_1: PlaneFormat = PlaneFormat::new("q4_1", &[16, 4], |block, out| {
    if let Ok(block) = block.try_into() {
        let Legacy { scale, min, codes } = Legacy::from_q4_1(block);
        out.four_bits(0, &codes);
        out.words(1, [pair(scale.to_bits(), min.to_bits())]);
    }
});

pub(super) static Q5_0: PlaneFormat = PlaneFormat::new("q5_0", &[16, 4, 2], |block, out| {
    if let Ok(block) = block.try_into() {
        let Legacy { scale, codes, .. } = Legacy::from_q5_0(block);
        five_bits(&codes, out);
        out.put(2, &scale.to_le_bytes());
    }
});

pub(super) static Q5_1: PlaneFormat = PlaneFormat::new("q5_1", &[16, 4, 4], |block, out| {
    if let Ok(block) = block.try_into() {
        let Legacy { scale, min, codes } = Legacy::from_q5_1(block);
        five_bits(&codes, out);
        out.words(2, [pair(scale.to_bits(), min.to_bits())]);
    }
});

pub(super) static Q8_0: PlaneFormat = PlaneFormat::new("q8_0", &[32, 2], |block, out| {
    if let Some((scale, codes)) = block.split_at_checked(2) {
        out.put(0, codes);
        out.put(1, scale);
    }
});

fn four_bits_and_scale(block: &Legacy, out: &mut Planes<'_>) {
    out.four_bits(0, &block.codes);
    out.put(1, &block.scale.to_le_bytes());
}

fn five_bits(codes: &[u8], out: &mut Planes<'_>) {
    out.four_bits(0, codes);
    out.one_bit(1, codes.iter().map(|code| code >> 4));
}
