//! How far an operation may deviate from the reference, and where the figures come from.
//!
//! The measure is the relative RMS error, `sqrt(sum (x - ref)^2 / sum ref^2)`. In addition each value has to be within
//! [`OUTLIER`] times the tolerance of the reference, relative to the larger of its own size and the RMS of its row, so
//! that one wrong value cannot hide among a million right ones.
//!
//! **Exact.** A sum of `n` products of mean 0 in one order: its partial sums grow with `sqrt(k)` and each is rounded by
//! at most `U = 2^-24` of itself, `U / sqrt(3)` in RMS; together that is `U sqrt(n / 6)` of the result. [`sum`] allows
//! `U (2 + sqrt(n))`, two and a half times as much, for kernels that also round products. The reference sums in f64.
//!
//! **Fast.** Rounding a normally distributed input to bf16 (8 bits) costs 1.66e-3 of its RMS: `ulp / sqrt(12)` with
//! the mean square of ulp over the binades. Independent errors of two inputs add as squares; a weight stored as bf16
//! has none. [`linear`] allows a tenth more, plus three deviations of the mean of that many squares; a kernel that also
//! rounds its sums or results to bf16, or its inputs to 8 bits per block, exceeds this. If a few inputs dominate there
//! is no averaging: the bound is then the largest error of a rounding, 2^-8 ([`linear_outliers`]). Activations
//! multiplied with a block format may be rounded to signed bytes, with a scale per 32 values ([`INT8`]).

use qwen_core::{Encoding, Precision};

/// The largest relative error of rounding to f32.
pub const U: f64 = 1.0 / 16_777_216.0;

/// RMS error of rounding a normally distributed value to bf16, relative to its RMS.
pub const BF16: f64 = 1.66e-3;

/// RMS error of rounding a normally distributed value to f16, relative to its RMS: 3 bits more than bf16.
pub const F16: f64 = BF16 / 8.0;

/// RMS error of rounding 32 normally distributed values to signed bytes with one scale, relative to their RMS: the
/// largest of 32 is 2.2 deviations on average, 2.23 in RMS, and a step is that divided by 127.
pub const INT8: f64 = 2.23 / 127.0 / 3.464;

/// A single value may be off by this many times the tolerance.
///
/// Errors are nearly normal: among a million values none is expected beyond five deviations, and the tolerance is at
/// least one deviation.
pub const OUTLIER: f64 = 8.0;

/// For a sum of `n` f32 products, or another reduction over `n` values.
pub fn sum(n: usize) -> f64 {
    U * (2.0 + (n as f64).sqrt())
}

/// For an elementwise operation with a handful of roundings, including `exp`.
pub const ELEMENTWISE: f64 = 8.0 * U;

/// For a matrix product of `cols` terms with weights stored as `encoding` and `outputs` results in all.
pub fn linear(precision: Precision, encoding: Encoding, cols: usize, outputs: usize) -> f64 {
    // The mean of n squares of normal values has a deviation of sqrt(2 / n), its square root one of 1 / sqrt(2 n).
    let chance = 1.0 + 3.0 / (2.0 * outputs.max(1) as f64).sqrt();
    sum(cols)
        + match precision {
            Precision::Exact => 0.0,
            // The sums of blocks are scaled one after another.
            Precision::Fast if is_blocks(encoding) => 1.1 * chance * INT8,
            Precision::Fast => 1.1 * chance * BF16 * f64::sqrt(rounded_inputs(encoding)),
        }
}

/// As [`linear`], if a few of the inputs are far larger than the others.
pub fn linear_outliers(precision: Precision, encoding: Encoding, cols: usize) -> f64 {
    sum(cols)
        + match precision {
            Precision::Exact => 0.0,
            // Half a step of the scale that the largest value of a block determines.
            Precision::Fast if is_blocks(encoding) => 1.0 / 254.0,
            Precision::Fast => f64::sqrt(rounded_inputs(encoding)) / 256.0,
        }
}

fn is_blocks(encoding: Encoding) -> bool {
    encoding.block().values > 1
}

fn rounded_inputs(encoding: Encoding) -> f64 {
    if encoding == Encoding::Bf16 { 1.0 } else { 2.0 }
}

/// For attention over at most `context` positions with heads of `head_dim` values.
///
/// `score` is the RMS of `sqrt(sum_j q_j^2 k_j^2) / sqrt(head_dim)`: how far a score changes if each product in it is
/// off by its own size, at random. A score that is off by `e` changes a weight by the factor `1 + e`. In f32 the dot
/// product adds at most `U sqrt(head_dim) score`, the softmax and the weighted sum the error of [`sum`]. In Fast, keys
/// and values are f16, and a kernel may round queries and weights to f16 as well: two roundings in the scores, two in
/// the weighted sum, doubled for safety, because a few positions may dominate.
pub fn attention(precision: Precision, head_dim: usize, context: usize, score: f64) -> f64 {
    let exact = sum(context) + U * (4.0 + (head_dim as f64).sqrt() * score);
    match precision {
        Precision::Exact => exact,
        Precision::Fast => exact + 2.0 * F16 * f64::sqrt(2.0 + 2.0 * score * score),
    }
}

/// For attention over keys and values that two backends computed with different roundings before storing them: in
/// blocks of signed bytes a value near a tie may be rounded either way. As if all of them were rounded once more.
pub fn stored_twice(kv_encodings: Option<(Encoding, Encoding)>) -> f64 {
    match kv_encodings {
        Some((key, value)) if is_blocks(key) || is_blocks(value) => 2.0 * INT8,
        _ => 0.0,
    }
}

/// How far attention may deviate from the reference if the store has these encodings: the reference rounds blocks, but
/// not F16.
pub fn precision_of(encodings: Option<(Encoding, Encoding)>, precision: Precision) -> Precision {
    match encodings {
        Some((key, value)) if key == Encoding::F16 || value == Encoding::F16 => Precision::Fast,
        _ => precision,
    }
}
