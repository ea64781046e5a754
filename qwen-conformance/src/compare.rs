//! Comparing the outputs of two backends, or of two runs of one.

use super::op::{Allowed, Values};
use super::tolerance::OUTLIER;

/// Compare `got` with `expected`.
///
/// # Errors
/// A description of what differs and where.
pub(super) fn values(got: &Values, expected: &Values, allowed: Allowed) -> Result<(), String> {
    if got.values.len() != expected.values.len() {
        return Err(format!("{} values, expected {}", got.values.len(), expected.values.len()));
    }
    match allowed {
        Allowed::Bits => bits(&got.values, &expected.values, got.width),
        Allowed::Rms { tolerance, floor } => rms(&got.values, &expected.values, got.width, tolerance, floor),
    }
}

fn place(index: usize, width: usize) -> String {
    format!("row {}, column {}", index / width.max(1), index % width.max(1))
}

/// Compare bit for bit. Rows have `width` values.
///
/// # Errors
/// The first difference and how many there are.
pub(super) fn bits(got: &[f32], expected: &[f32], width: usize) -> Result<(), String> {
    let differs = |(_, (got, expected)): &(usize, (&f32, &f32))| got.to_bits() != expected.to_bits();
    let mut places = got.iter().zip(expected).enumerate().filter(differs);
    match places.next() {
        None => Ok(()),
        Some((index, (got, expected))) => Err(format!(
            "{got:e} ({:#010x}) instead of {expected:e} ({:#010x}) at {}, and {} more places",
            got.to_bits(),
            expected.to_bits(),
            place(index, width),
            places.count(),
        )),
    }
}

/// The relative RMS error of `got`: `sqrt(sum (got - expected)^2 / sum expected^2)`.
pub fn rms_error(got: &[f32], expected: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - f64::from(*e)).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| f64::from(*e).powi(2)).sum();
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

fn mean_square(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len().max(1) as f64
}

fn nan_is_worst(error: f64) -> f64 {
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Compare within a relative RMS error, and each value within [`OUTLIER`] times it. Rows have `width` values.
///
/// # Errors
/// The error and the worst place.
pub(super) fn rms(got: &[f32], expected: &[f32], width: usize, tolerance: f64, floor: f64) -> Result<(), String> {
    if let Some(index) = expected.iter().position(|value| !value.is_finite()) {
        return Err(format!("the reference itself is {} at {}", expected[index], place(index, width)));
    }
    let mut worst = (0.0, 0);
    for (row, (got, expected)) in got.chunks(width.max(1)).zip(expected.chunks(width.max(1))).enumerate() {
        let scale = mean_square(expected).sqrt().max(floor);
        for (column, (g, e)) in got.iter().zip(expected).enumerate() {
            let error = (f64::from(*g) - f64::from(*e)).abs();
            let relative = nan_is_worst(if error == 0.0 { 0.0 } else { error / scale.max(f64::from(e.abs())) });
            if relative > worst.0 {
                worst = (relative, row * width + column);
            }
        }
    }
    let difference: Vec<f32> = got.iter().zip(expected).map(|(g, e)| g - e).collect();
    let norm = mean_square(expected).sqrt().max(floor);
    let same = difference.iter().all(|difference| *difference == 0.0);
    let error = nan_is_worst(if same { 0.0 } else { mean_square(&difference).sqrt() / norm });
    let at = || format!("worst {:e} instead of {:e} at {}", got[worst.1], expected[worst.1], place(worst.1, width));
    if error > tolerance {
        return Err(format!("relative RMS error {error:.2e}, allowed {tolerance:.2e}; {}", at()));
    }
    if worst.0 > OUTLIER * tolerance {
        return Err(format!("a value is off by {:.2e}, allowed {:.2e}; {}", worst.0, OUTLIER * tolerance, at()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_tell_negative_zero_and_nan_apart() {
        assert!(bits(&[0.0, f32::NAN], &[0.0, f32::NAN], 2).is_ok());
        let error = bits(&[0.0, 1.0, 2.0], &[-0.0, 1.0, 3.0], 1).unwrap_err();
        assert!(error.contains("row 0, column 0, and 1 more"), "{error}");
    }

    #[test]
    fn one_wrong_value_among_many_is_found() {
        let expected: Vec<f32> = (0..100_000).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut got = expected.clone();
        got[77_777] += 0.5;
        assert!(rms_error(&got, &expected) < 1e-3);
        let error = rms(&got, &expected, 100, 1e-3, 0.0).unwrap_err();
        assert!(error.contains("row 777, column 77"), "{error}");
    }

    #[test]
    fn nan_and_infinity_are_never_within_tolerance() {
        for wrong in [f32::NAN, f32::INFINITY] {
            assert!(rms(&[1.0, wrong], &[1.0, 1.0], 2, 1.0, 0.0).is_err());
        }
        assert!(rms(&[1.0, f32::NAN], &[1.0, f32::NAN], 2, 1.0, 0.0).is_err());
    }

    #[test]
    fn the_floor_counts_where_the_result_cancels() {
        assert!(rms(&[1e-3], &[1e-6], 1, 1e-2, 0.0).is_err());
        assert!(rms(&[1e-3], &[1e-6], 1, 1e-2, 1.0).is_ok());
    }
}
