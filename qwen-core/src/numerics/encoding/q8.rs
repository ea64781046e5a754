//! Q8_0: a block is an F16 scale and 32 signed bytes, each multiplied by the scale.

use half::f16;

use super::quantize::scale_for;

/// Values of a block.
pub const VALUES: usize = 32;

/// Bytes of a block.
pub const BYTES: usize = 2 + VALUES;

/// The scale and the codes of a block: used both for quantised weights and for stored K/V.
///
/// The scale is the F16 number nearest to the largest magnitude divided by 127, ties to even (for the smallest F16
/// numbers, the next one up if the nearest would clip the largest value). A code is the value times the reciprocal of
/// the scale in f32, rounded to a whole number, ties to even, within -127..=127. A block with a non-finite value gets a
/// NaN scale, so that all of it decodes to NaN and damage stays visible. Magnitudes beyond the range of the largest F16
/// scale are clamped.
///
/// ```
/// use qwen_core::numerics::encoding::q8;
/// let mut values = [0.0; 32];
/// (values[0], values[1], values[2]) = (127.0, -2.5, 3.5);
/// let (scale, codes) = q8::round(&values);
/// assert_eq!((scale.to_f32(), &codes[..4]), (1.0, &[127, -2, 4, 0][..]));
/// values[5] = f32::INFINITY;
/// assert!(q8::round(&values).0.is_nan());
/// ```
#[inline]
pub fn round(values: &[f32; VALUES]) -> (f16, [i8; VALUES]) {
    // The bits of magnitudes order like the magnitudes, with infinities and NaNs above all.
    let largest = values.iter().fold(0, |largest, value| (value.to_bits() & 0x7fff_ffff).max(largest));
    if largest >= f32::INFINITY.to_bits() {
        return (f16::NAN, [0; VALUES]);
    }
    let scale = scale_for(f32::from_bits(largest), 127.0);
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    let codes = values.map(|value| {
        let level = value * inverse;
        let level = if level > -127.0 { level } else { -127.0 };
        let level = if level < 127.0 { level } else { 127.0 };
        // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits, ties to even.
        (level + 12_582_912.0).to_bits() as i8
    });
    (scale, codes)
}

/// The block of a scale and codes.
pub(super) fn block(scale: f16, codes: [i8; VALUES]) -> [u8; BYTES] {
    let mut block = [0; BYTES];
    let [low, high, stored @ ..] = &mut block;
    [*low, *high] = scale.to_le_bytes();
    *stored = codes.map(|code| code as u8);
    block
}

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

/// Replace values by what storing and reading them back gives, for all whole blocks; the rest stays as it is.
///
/// ```
/// use qwen_core::numerics::encoding::q8;
/// let mut values = [0.3; 32];
/// values[0] = 127.0;
/// q8::store_and_read(&mut values);
/// assert_eq!(values[..2], [127.0, 0.0]);
/// ```
pub fn store_and_read(values: &mut [f32]) {
    for values in values.as_chunks_mut::<VALUES>().0 {
        let (scale, codes) = round(values);
        values.iter_mut().zip(codes).for_each(|(value, code)| *value = scale.to_f32() * f32::from(code));
    }
}
