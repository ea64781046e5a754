//! The plain element types: one value per block, little-endian.

use half::{bf16, f16};

/// Decode elements of `N` bytes with `value`, as many as both slices have.
fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = value(*bytes);
    }
}

pub(super) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    decode(bytes, out, f32::from_le_bytes);
}

pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    decode(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32());
}

pub(super) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    decode(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32());
}
