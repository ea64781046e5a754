//! Blocks of 256 in groups with small integer scales: Q2_K to Q6_K and IQ4_XS.
//!
//! First each group is fitted on its own. The block's F16 scales map the largest of the groups' scales and minima to
//! the largest integers. Then each group chooses, among the integers around its own fit, those with the least error,
//! with every value rounded again. A least-squares fit of the block's scales to these choices starts another iteration,
//! as long as the error falls.

use std::array;

use half::f16;

use super::blocks::Iq4;
use super::search::{self, Levels, Whole};
use super::{each_block, scale_for};
use crate::numerics::encoding::iq4;
use crate::numerics::encoding::k_quants::KBlock;

const VALUES: usize = 256;

type Values = [f32; VALUES];

/// Candidate integers, or pairs of them, per group.
const CANDIDATES: usize = 8;

/// Iterations of fitting the block's scales after the first choice.
const TURNS: usize = 1;

pub(super) fn q2_k(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| affine::<Whole<0, 3>, 16, 16>(values, weights, 15).to_q2_k());
}

pub(super) fn q3_k(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| {
        scaled::<Whole<-4, 3>, 16, 16>(values, weights, 32).to_q3_k()
    });
}

pub(super) fn q4_k(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| affine::<Whole<0, 15>, 8, 32>(values, weights, 63).to_q4_k());
}

pub(super) fn q5_k(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| affine::<Whole<0, 31>, 8, 32>(values, weights, 63).to_q5_k());
}

pub(super) fn q6_k(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| {
        scaled::<Whole<-32, 31>, 16, 16>(values, weights, 128).to_q6_k()
    });
}

pub(super) fn iq4_xs(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| {
        let KBlock { d, scales, codes, .. } = scaled::<Iq4, 8, 32>(values, weights, 32);
        iq4::pack_xs(d, &scales, &codes)
    });
}

/// Groups with a scale and a minimum, integers up to `highest`, for levels from 0 on.
#[inline(always)]
fn affine<L: Levels, const GROUPS: usize, const SIZE: usize>(
    values: &Values,
    weights: &Values,
    highest: i8,
) -> KBlock<GROUPS> {
    let groups: [_; GROUPS] = groups::<GROUPS, SIZE>(values, weights);
    let fits = groups.map(|(values, weights)| search::fit_scale_and_min::<L, SIZE, true>(values, weights));
    let largest = fits.iter().fold((0.0, 0.0), |(scale, min): (f32, f32), fit| (scale.max(fit.0), min.max(-fit.1)));
    let choose = |d: f16, dmin: f16| {
        let (scale_unit, min_unit) = (d.to_f32(), dmin.to_f32());
        choose::<L, GROUPS, SIZE>(&groups, d, dmin, |group, i| {
            let (scale, min) = fits[group];
            (near(scale, scale_unit, i as i8 % 4 - 1, (0, highest)), near(-min, min_unit, i as i8 / 4, (0, highest)))
        })
    };
    let first = choose(scale_for(largest.0, f32::from(highest)), scale_for(largest.1, f32::from(highest)));
    improve::<L, GROUPS>(values, weights, first, choose)
}

/// Groups with a scale of either sign, integers from `-highest` to `highest - 1`.
#[inline(always)]
fn scaled<L: Levels, const GROUPS: usize, const SIZE: usize>(
    values: &Values,
    weights: &Values,
    highest: i16,
) -> KBlock<GROUPS> {
    let groups: [_; GROUPS] = groups::<GROUPS, SIZE>(values, weights);
    let fits = groups.map(|(values, weights)| search::fit_scale::<L, SIZE>(values, weights));
    let largest = fits.iter().fold(0.0, |largest: f32, fit| if fit.abs() > largest.abs() { *fit } else { largest });
    let choose = |d: f16, _| {
        let unit = d.to_f32();
        choose::<L, GROUPS, SIZE>(&groups, d, f16::ZERO, |group, i| {
            (near(fits[group], unit, i as i8 - CANDIDATES as i8 / 2 + 1, ((-highest) as i8, (highest - 1) as i8)), 0)
        })
    };
    // The largest scale becomes the lowest integer, which has no positive counterpart.
    let unit = scale_for(largest.abs(), f32::from(highest));
    let first = choose(if largest > 0.0 { -unit } else { unit }, f16::ZERO);
    improve::<L, GROUPS>(values, weights, first, choose)
}

type Group<'a, const SIZE: usize> = (&'a [f32; SIZE], &'a [f32; SIZE]);

fn groups<'a, const GROUPS: usize, const SIZE: usize>(
    values: &'a Values,
    weights: &'a Values,
) -> [Group<'a, SIZE>; GROUPS] {
    const { assert!(GROUPS * SIZE == VALUES) };
    array::from_fn(|group| (&values.as_chunks().0[group], &weights.as_chunks().0[group]))
}

/// The integer `steps` above `value / unit` rounded down, clamped to the bounds.
fn near(value: f32, unit: f32, steps: i8, (low, high): (i8, i8)) -> i8 {
    let exact = if unit == 0.0 { 0.0 } else { value / unit };
    (exact.floor() + f32::from(steps)).clamp(f32::from(low), f32::from(high)) as i8
}

/// The block with the integers of least error among the candidates of each group, and that error.
#[inline(always)]
fn choose<L: Levels, const GROUPS: usize, const SIZE: usize>(
    groups: &[Group<'_, SIZE>; GROUPS],
    d: f16,
    dmin: f16,
    candidate: impl Fn(usize, usize) -> (i8, i8),
) -> (KBlock<GROUPS>, f32) {
    let mut block = KBlock { d, dmin, scales: [0; GROUPS], mins: [0; GROUPS], codes: [[0; 32]; 8] };
    let mut total = 0.0;
    let stored = block.codes.as_flattened_mut().as_chunks_mut::<SIZE>().0;
    for (group, ((values, weights), stored)) in groups.iter().zip(stored).enumerate() {
        let candidates: [_; CANDIDATES] = array::from_fn(|i| candidate(group, i));
        let scale: [f32; CANDIDATES] = candidates.map(|(scale, _)| d.to_f32() * f32::from(scale));
        let min: [f32; CANDIDATES] = candidates.map(|(_, min)| -(dmin.to_f32() * f32::from(min)));
        let errors = search::errors::<L, SIZE, CANDIDATES>(values, weights, &scale, &min);
        let best = search::lowest(&errors);
        total += errors[best];
        block.scales[group] = candidates[best].0;
        block.mins[group] = candidates[best].1 as u8;
        *stored = search::codes::<L, SIZE>(values, scale[best], min[best]);
    }
    (block, total)
}

/// Fit the block's own scales to the groups' choices and choose again, as long as that helps.
#[inline(always)]
fn improve<L: Levels, const GROUPS: usize>(
    values: &Values,
    weights: &Values,
    first: (KBlock<GROUPS>, f32),
    choose: impl Fn(f16, f16) -> (KBlock<GROUPS>, f32),
) -> KBlock<GROUPS> {
    let mut best = first;
    for _ in 0..TURNS {
        let Some((d, dmin)) = fit::<L, GROUPS>(values, weights, &best.0) else { break };
        let next = choose(d, dmin);
        if next.1 >= best.1 {
            break;
        }
        best = next;
    }
    best.0
}

/// The block's scales by weighted least squares, for the groups' current integers and codes; `None` if they are
/// undetermined or do not change.
fn fit<L: Levels, const GROUPS: usize>(
    values: &Values,
    weights: &Values,
    block: &KBlock<GROUPS>,
) -> Option<(f16, f16)> {
    let size = VALUES / GROUPS;
    let groups =
        values.chunks_exact(size).zip(weights.chunks_exact(size)).zip(block.codes.as_flattened().chunks_exact(size));
    // Values are d * a - dmin * b, with a = scale * level and b = min.
    let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (((values, weights), codes), (scale, min)) in groups.zip(block.scales.iter().zip(&block.mins)) {
        let (scale, min) = (f32::from(*scale), f32::from(*min));
        let mut sums = [0.0; 5];
        for ((value, weight), code) in values.iter().zip(weights).zip(codes) {
            let level = L::level(*code);
            let terms = [weight * level * level, weight * level, *weight, weight * value * level, weight * value];
            sums = array::from_fn(|i| sums[i] + terms[i]);
        }
        let [level_level, level, weight, value_level, value] = sums;
        aa += scale * scale * level_level;
        ab += scale * min * level;
        bb += min * min * weight;
        xa += scale * value_level;
        xb += min * value;
    }
    let (d, dmin) = if bb == 0.0 {
        (xa / aa, 0.0)
    } else {
        let determinant = aa * bb - ab * ab;
        ((xa * bb - xb * ab) / determinant, (xa * ab - xb * aa) / determinant)
    };
    let (d, dmin) = (f16::from_f32(d), f16::from_f32(dmin));
    let usable = d.is_finite() && d != f16::ZERO && dmin.is_finite() && dmin >= f16::ZERO;
    (usable && (d, dmin) != (block.d, block.dmin)).then_some((d, dmin))
}
