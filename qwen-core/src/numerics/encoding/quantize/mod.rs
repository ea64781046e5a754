//! Encoding rows of values: the inverse of the decoders, as closely as the formats allow.
//!
//! Where neighbouring values share a scale, the scales with the least weighted error are searched for (`search`).
//! Blocks of 32 are in `blocks`, blocks of 256 with scales of scales in `super_blocks`. Not here: which tensors get
//! which encoding, and where importances come from.

mod blocks;
mod search;
mod super_blocks;

use half::{bf16, f16};

use super::Encoding;
use crate::{Error, Result};

/// The largest value for formats with F16 scales: the largest finite F16.
const LARGEST: f32 = 65504.0;

impl Encoding {
    /// Encode a row of `values`, whole blocks of them, and append its bytes to `out`.
    ///
    /// `importance` says how much an error of each column matters, as a number of at least 0; its scale is irrelevant.
    /// Formats without a choice (F32, F16, BF16, Q8_0) ignore it. The same row gives the same bytes on every machine.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for encodings without a quantiser, whatever the row; [`Error::InvalidArgument`] for rows
    /// that are not whole blocks, values that are not finite or out of the format's range, and importances that are
    /// negative, not finite, or not one per value. `out` is then unchanged.
    ///
    /// ```
    /// use qwen_core::Encoding;
    /// let row: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
    /// let mut bytes = Vec::new();
    /// Encoding::Q8_0.quantize_row(&row, None, &mut bytes)?;
    /// let mut decoded = [0.0; 64];
    /// Encoding::Q8_0.decode_row(&bytes, &mut decoded);
    /// assert!(row.iter().zip(&decoded).all(|(value, decoded)| (value - decoded).abs() <= 0.51 / 127.0));
    /// assert!(Encoding::Iq2S.quantize_row(&[], None, &mut bytes).is_err());
    /// # Ok::<_, qwen_core::Error>(())
    /// ```
    pub fn quantize_row(self, values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) -> Result<()> {
        let quantize: Quantizer = match self {
            Encoding::F32 => |values, _, out| encode(values, out, f32::to_le_bytes),
            Encoding::F16 => |values, _, out| encode(values, out, |value| f16::from_f32(value).to_le_bytes()),
            Encoding::Bf16 => |values, _, out| encode(values, out, |value| bf16::from_f32(value).to_le_bytes()),
            Encoding::Q4_0 => blocks::q4_0,
            Encoding::Q4_1 => blocks::q4_1,
            Encoding::Q5_0 => blocks::q5_0,
            Encoding::Q5_1 => blocks::q5_1,
            Encoding::Q8_0 => blocks::q8_0,
            Encoding::Iq4Nl => blocks::iq4_nl,
            Encoding::Q2K => super_blocks::q2_k,
            Encoding::Q3K => super_blocks::q3_k,
            Encoding::Q4K => super_blocks::q4_k,
            Encoding::Q5K => super_blocks::q5_k,
            Encoding::Q6K => super_blocks::q6_k,
            Encoding::Iq4Xs => super_blocks::iq4_xs,
            other => {
                let reason = "there is no quantiser for it: use one of F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, IQ4_XS, Q4_0";
                return Err(Error::unsupported(format!("quantising to {other}"), reason));
            }
        };
        self.check(values, importance)?;
        quantize(values, importance, out);
        Ok(())
    }

    fn check(self, values: &[f32], importance: Option<&[f32]>) -> Result<()> {
        let block = self.block().values;
        if !values.len().is_multiple_of(block) {
            let reason = format!("a row of {} values is not whole {self} blocks of {block}", values.len());
            return Err(Error::argument("values", reason));
        }
        let largest = match self {
            Encoding::F32 => f32::MAX,
            Encoding::Bf16 => bf16::MAX.to_f32(),
            _ => LARGEST,
        };
        if let Some(index) = find(values, |value| value.is_nan() || value.abs() > largest) {
            let value = values[index];
            let reason = if value.is_finite() {
                format!("{value} at index {index} is beyond {largest}, the largest value for {self}")
            } else {
                format!("{value} at index {index} is not finite")
            };
            return Err(Error::argument("values", reason));
        }
        let Some(importance) = importance else { return Ok(()) };
        if importance.len() != values.len() {
            let reason = format!("{} numbers for {} values", importance.len(), values.len());
            return Err(Error::argument("importance", reason));
        }
        if let Some(index) = find(importance, |number| !(0.0..=f32::MAX).contains(&number)) {
            let reason = format!("{} at index {index} is negative or not finite", importance[index]);
            return Err(Error::argument("importance", reason));
        }
        Ok(())
    }
}

/// Whole blocks of checked values, one importance for each.
type Quantizer = fn(&[f32], Option<&[f32]>, &mut Vec<u8>);

/// The index of the first number that is `bad`; fast if there is none.
fn find(numbers: &[f32], bad: impl Fn(f32) -> bool) -> Option<usize> {
    if !numbers.iter().fold(false, |any, number| any | bad(*number)) {
        return None;
    }
    numbers.iter().position(|number| bad(*number))
}

fn encode<const N: usize>(values: &[f32], out: &mut Vec<u8>, bytes: impl Fn(f32) -> [u8; N]) {
    out.extend(values.iter().flat_map(|value| bytes(*value)));
}

/// Append one block per `VALUES` values with their weights.
#[inline(always)]
fn each_block<const VALUES: usize, const BYTES: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
    block: impl Fn(&[f32; VALUES], &[f32; VALUES]) -> [u8; BYTES],
) {
    out.reserve(values.len() / VALUES * BYTES);
    for (i, values) in values.as_chunks().0.iter().enumerate() {
        let importance = importance.and_then(|all| all.as_chunks().0.get(i));
        out.extend_from_slice(&block(values, &weights(values, importance)));
    }
}

/// The weight of each value's error: all equal without importances. With them about 1 on average and never 0, so that
/// sums neither overflow nor vanish.
fn weights<const VALUES: usize>(_: &[f32; VALUES], importance: Option<&[f32; VALUES]>) -> [f32; VALUES] {
    let Some(importance) = importance else { return [1.0; VALUES] };
    let mean = importance.iter().map(|number| f64::from(*number)).sum::<f64>() / VALUES as f64;
    if mean < f64::from(f32::MIN_POSITIVE) {
        return [1.0; VALUES];
    }
    let scale = 1.0 / mean;
    importance.map(|number| (f64::from(number) * scale) as f32 + 1e-5)
}

/// The finite F16 number that is `steps` above the one nearest to `value` in magnitude, of the same sign.
#[inline]
fn neighbour(value: f32, steps: i32) -> f16 {
    let nearest = f16::from_f32(value).to_bits();
    let magnitude = i32::from(nearest & 0x7fff) + steps;
    f16::from_bits(nearest & 0x8000 | magnitude.clamp(0, i32::from(f16::MAX.to_bits())) as u16)
}

/// The F16 scale that maps the whole number `highest` to `largest`, both at least 0.
#[inline]
pub(super) fn scale_for(largest: f32, highest: f32) -> f16 {
    let nearest = neighbour(largest / highest, 0);
    // Among the smallest F16 numbers the nearest may be far too small.
    if largest > (highest + 0.5) * nearest.to_f32() { neighbour(largest / highest, 1) } else { nearest }
}
