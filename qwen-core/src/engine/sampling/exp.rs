//! The exponential, in arithmetic that gives the same bits on every machine and that compilers turn into vectors.

/// Beyond this the result is 0.
const MAX: f64 = 708.0;

/// `e^-x` for `x` of at least 0, infinity included, within 1e-14 of the value.
#[inline(always)]
pub(super) fn exp_neg(x: f64) -> f64 {
    let value = exp(-x);
    if x < MAX { value } else { 0.0 }
}

/// `e^x` for `x <= 0`, within 2 units in the last place, without a branch or a call, so that the compiler computes
/// several at once: `2^k` times the Taylor series of the rest (Cody and Waite's reduction).
#[inline(always)]
fn exp(x: f64) -> f64 {
    // Adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // Smaller results would be subnormal.
    let x = x.max(-MAX);
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    const INVERSE_FACTORIALS: [f64; 12] = [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
    ];
    let mut series = 1.0 / 6_227_020_800.0;
    for factor in INVERSE_FACTORIALS {
        series = series * r + factor;
    }
    let series = series * r + 1.0;
    series * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0_f64.to_bits()))
}

/// [`exp_neg`] in single precision, within 4e-7 of the value, for sums over whole rows. 0 beyond 87.
#[inline(always)]
pub(super) fn exp_neg_f32(x: f32) -> f32 {
    const MAX: f32 = 87.0;
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let y = -(if x < MAX { x } else { MAX });
    let rounded = y * std::f32::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = (y - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = 1.0 / 720.0;
    for inverse in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + inverse;
    }
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < MAX { sum * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_mathematical_library() {
        for x in (0..200_000).map(|i| -f64::from(i) * 0.003_54).chain([0.0, -1e-300, -707.9]) {
            let (found, expected) = (exp(x), x.exp());
            assert!((found / expected - 1.0).abs() < 5e-16, "{x}: {found:e} {expected:e}");
        }
        assert!(exp(-1e30) < 1e-300 && exp(f64::MIN) >= 0.0);
    }

    #[test]
    fn it_is_the_exponential() {
        assert_eq!(exp_neg(0.0), 1.0);
        assert_eq!(exp_neg(f64::INFINITY), 0.0);
        assert_eq!(exp_neg(708.0), 0.0);
        for step in 0..70_000 {
            let x = f64::from(step) * 0.010_001;
            let (found, expected) = (exp_neg(x), (-x).exp());
            assert!((found - expected).abs() <= 1e-14 * expected, "{x}: {found} and {expected}");
        }
        assert_eq!((exp_neg_f32(0.0), exp_neg_f32(f32::INFINITY)), (1.0, 0.0));
        for step in 0..86_000 {
            let x = step as f32 * 0.001_01;
            let (found, expected) = (f64::from(exp_neg_f32(x)), (-f64::from(x)).exp());
            assert!((found - expected).abs() <= 4e-7 * expected, "{x}: {found} and {expected}");
        }
    }
}
