//! Q8_0: a block is an F16 scale and 32 signed bytes, each of which it multiplies.

use half::f16;

/// Values of a block.
pub(super) const VALUES: usize = 32;

/// Bytes of a block.
pub(super) const BYTES: usize = 2 + VALUES;

/// Decode as many whole blocks as both slices have.
pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    for (out, block) in out.as_chunks_mut::<VALUES>().0.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        let [low, high, codes @ ..] = block;
        let scale = f16::from_le_bytes([*low, *high]).to_f32();
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(i8::from_le_bytes([*code]));
        }
    }
}
