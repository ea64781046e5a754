//! The search for the scale, or the scale and minimum, that best represent a group of values.
//!
//! It minimises the sum of `weight * (value - (scale * level + min))^2` where each value takes its nearest level. For
//! given levels, weighted least squares gives the best scale and minimum, for which the levels are then rounded again:
//! each iteration can only lower the error, and converges to a local minimum. The search runs from several starting
//! points in parallel, and the best few continue; the inner loops run over these candidates, which also makes them
//! vectorise.

/// Starting points of a search.
const BEGINNINGS: usize = 16;

/// How many of them continue after the first iteration.
const SURVIVORS: usize = 4;

/// Iterations of rounding and fitting after the first.
const TURNS: usize = 2;

/// Groups with no value above this are zero in every format: the smallest F16 is 2^-24.
const NOTHING: f32 = 1.0 / (1u64 << 32) as f32;

/// The levels that codes stand for, before scale and minimum.
pub(super) trait Levels {
    /// The lowest level, zero or below.
    const LOW: f32;
    /// The highest level.
    const HIGH: f32;
    /// Distance between levels, about.
    const STEP: f32;
    /// The level nearest to `value`, which is not NaN.
    fn nearest(value: f32) -> f32;
    /// The code of a level that [`Levels::nearest`] returned.
    fn code(level: f32) -> u8;
    /// The level of a code.
    fn level(code: u8) -> f32;
}

/// Whole numbers from `LOW` to `HIGH`; the code of the lowest is 0.
pub(super) struct Whole<const LOW: i8, const HIGH: i8>;

/// Round to a whole number of at most 22 bits, ties to even: fractions have no room in the sum's mantissa.
#[inline(always)]
fn round(value: f32) -> f32 {
    const SHIFT: f32 = 1.5 * (1 << 23) as f32;
    value + SHIFT - SHIFT
}

/// `value` within bounds, in the form that compiles to two instructions.
#[inline(always)]
fn bounded(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

impl<const LOW: i8, const HIGH: i8> Levels for Whole<LOW, HIGH> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;
    const STEP: f32 = 1.0;

    #[inline(always)]
    fn nearest(value: f32) -> f32 {
        round(bounded(value, Self::LOW, Self::HIGH))
    }

    #[inline(always)]
    fn code(level: f32) -> u8 {
        (level - Self::LOW) as u8
    }

    #[inline(always)]
    fn level(code: u8) -> f32 {
        f32::from(code) + Self::LOW
    }
}

/// The reciprocal, or 0 for 0, which maps every value to level 0.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Weighted sums over the levels that the values round to, for each of `C` candidates.
struct Sums<const C: usize> {
    level: [f32; C],
    level_level: [f32; C],
    value_level: [f32; C],
}

/// The sums for values that round to `(value - min) * inverse`.
// Not inlined: its loops vectorise on their own, but not inside its callers.
#[inline(never)]
fn sums<L: Levels, const N: usize, const C: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    inverse: &[f32; C],
    min: &[f32; C],
) -> Sums<C> {
    let mut sums = Sums { level: [0.0; C], level_level: [0.0; C], value_level: [0.0; C] };
    for (value, weight) in values.iter().zip(weights) {
        for i in 0..C {
            let level = L::nearest((value - min[i]) * inverse[i]);
            let weighted = weight * level;
            sums.level[i] += weighted;
            sums.level_level[i] += weighted * level;
            sums.value_level[i] += weighted * value;
        }
    }
    sums
}

/// The weighted squared error of each candidate, with every value at its nearest level.
#[inline(never)]
pub(super) fn errors<L: Levels, const N: usize, const C: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    scale: &[f32; C],
    min: &[f32; C],
) -> [f32; C] {
    let inverse = scale.map(inverse);
    let mut errors = [0.0; C];
    for (value, weight) in values.iter().zip(weights) {
        for i in 0..C {
            let offset = value - min[i];
            let error = offset - scale[i] * L::nearest(offset * inverse[i]);
            errors[i] += weight * error * error;
        }
    }
    errors
}

/// The codes of values under a scale and a minimum.
pub(super) fn codes<L: Levels, const N: usize>(values: &[f32; N], scale: f32, min: f32) -> [u8; N] {
    let inverse = inverse(scale);
    values.map(|value| L::code(L::nearest((value - min) * inverse)))
}

/// The index of the lowest number; NaN is never lower.
pub(super) fn lowest(numbers: &[f32]) -> usize {
    (1..numbers.len()).fold(0, |best, i| if numbers[i] < numbers[best] || numbers[best].is_nan() { i } else { best })
}

/// The indices of the lowest numbers.
fn lowest_few<const C: usize, const K: usize>(mut numbers: [f32; C]) -> [usize; K] {
    std::array::from_fn(|_| {
        let best = lowest(&numbers);
        numbers[best] = f32::INFINITY;
        best
    })
}

/// Fit the scale of each candidate, given as its inverse, to the levels that the values round to. Returns the remaining
/// error minus the weighted sum of squares.
fn fit_scales<L: Levels, const N: usize, const C: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    inverse: &mut [f32; C],
) -> [f32; C] {
    let sums = sums::<L, N, C>(values, weights, inverse, &[0.0; C]);
    std::array::from_fn(|i| {
        let (level_level, value_level) = (sums.level_level[i], sums.value_level[i]);
        // If all values round to level 0, there is nothing to fit.
        if value_level == 0.0 {
            return 0.0;
        }
        inverse[i] = level_level / value_level;
        -value_level / level_level * value_level
    })
}

/// The scale, of either sign, with which multiples of levels best represent the values.
pub(super) fn fit_scale<L: Levels, const N: usize>(values: &[f32; N], weights: &[f32; N]) -> f32 {
    let further = |largest: f32, value: &f32| if value.abs() > largest.abs() { *value } else { largest };
    let largest = values.iter().fold(0.0, further);
    if largest.abs() < NOTHING {
        return 0.0;
    }
    // The largest value maps approximately to the lowest level, or to the highest.
    let mut begun: [f32; BEGINNINGS] = std::array::from_fn(|i| {
        let beyond = ((i / 2) as f32 * 0.25 - 0.75) * L::STEP;
        (if i % 2 == 0 { L::LOW - beyond } else { L::HIGH + beyond }) / largest
    });
    let errors = fit_scales::<L, N, BEGINNINGS>(values, weights, &mut begun);
    let mut inverse = lowest_few::<BEGINNINGS, SURVIVORS>(errors).map(|i| begun[i]);
    let mut errors = [0.0; SURVIVORS];
    for _ in 0..TURNS {
        errors = fit_scales::<L, N, SURVIVORS>(values, weights, &mut inverse);
    }
    1.0 / inverse[lowest(&errors)]
}

/// Values minus the lowest of them, with their weights, and the bound for the minimum.
struct Offsets<'a, const N: usize> {
    values: [f32; N],
    weights: &'a [f32; N],
    highest_min: f32,
    weight: f32,
    value: f32,
}

impl<const N: usize> Offsets<'_, N> {
    /// Fit scale and minimum of each candidate to the levels that the values round to. Returns the remaining error
    /// minus the weighted sum of squares.
    fn fit<L: Levels, const C: usize>(&self, scale: &mut [f32; C], min: &mut [f32; C]) -> [f32; C] {
        let sums = sums::<L, N, C>(&self.values, self.weights, &scale.map(inverse), min);
        std::array::from_fn(|i| {
            let (level, level_level, value_level) = (sums.level[i], sums.level_level[i], sums.value_level[i]);
            let determinant = self.weight * level_level - level * level;
            let mut new_scale = (self.weight * value_level - self.value * level) / determinant;
            let mut new_min = (self.value - new_scale * level) / self.weight;
            // With all values on one level any minimum works, with a matching scale.
            if determinant <= 1e-6 * self.weight * level_level {
                new_min = min[i];
                new_scale = (value_level - new_min * level) / level_level;
            }
            if new_min > self.highest_min {
                new_min = self.highest_min;
                new_scale = (value_level - new_min * level) / level_level;
            }
            if level_level == 0.0 || new_scale <= 0.0 {
                return f32::INFINITY;
            }
            (scale[i], min[i]) = (new_scale, new_min);
            new_scale * (new_scale * level_level + 2.0 * (new_min * level - value_level))
                + new_min * (new_min * self.weight - 2.0 * self.value)
        })
    }
}

/// The scale, at least 0, and the minimum with which `scale * level + min` best represents the values, for levels from
/// 0 on. `NEGATIVE` is for formats whose minima are at most 0.
pub(super) fn fit_scale_and_min<L: Levels, const N: usize, const NEGATIVE: bool>(
    values: &[f32; N],
    weights: &[f32; N],
) -> (f32, f32) {
    let low = values.iter().fold(f32::INFINITY, |low, value| if *value < low { *value } else { low });
    let high = values.iter().fold(f32::NEG_INFINITY, |high, value| if *value > high { *value } else { high });
    let low = if NEGATIVE && low > 0.0 { 0.0 } else { low };
    let range = high - low;
    if range < NOTHING {
        return (0.0, low);
    }
    // Subtracting the lowest value first keeps precision in the sums of squares if all values are similar.
    let offsets = Offsets {
        values: values.map(|value| value - low),
        weights,
        highest_min: if NEGATIVE { -low } else { f32::INFINITY },
        weight: weights.iter().sum(),
        value: values.iter().zip(weights).map(|(value, weight)| weight * (value - low)).sum(),
    };
    // Candidates move each end of the range inwards, or slightly outwards.
    let step = range / L::HIGH;
    let beyond = |i: usize| (i as f32 * 0.4 - 0.2) * step;
    let mut mins: [f32; BEGINNINGS] = std::array::from_fn(|i| beyond(i / 4).min(offsets.highest_min));
    let mut scales: [f32; BEGINNINGS] = std::array::from_fn(|i| (range - beyond(i % 4) - mins[i]) / L::HIGH);
    let errors = offsets.fit::<L, BEGINNINGS>(&mut scales, &mut mins);
    let few = lowest_few::<BEGINNINGS, SURVIVORS>(errors);
    let (mut scale, mut min) = (few.map(|i| scales[i]), few.map(|i| mins[i]));
    let mut errors = [0.0; SURVIVORS];
    for _ in 0..TURNS {
        errors = offsets.fit::<L, SURVIVORS>(&mut scale, &mut min);
    }
    let best = lowest(&errors);
    (scale[best], min[best] + low)
}
