//! Q8_0, and blocks of 32 with a scale or a scale and a minimum: Q4_0, Q4_1, Q5_0, Q5_1 and IQ4_NL.
//!
//! Scales and minima are stored as F16: among the F16 numbers around the best value, those with the least error are
//! chosen.

use std::array;

use half::f16;

use super::search::{self, Levels, Whole};
use super::{each_block, neighbour};
use crate::numerics::encoding::legacy::Legacy;
use crate::numerics::encoding::{iq4, q8};

const VALUES: usize = 32;

/// Candidate F16 numbers, or pairs of them, per block.
const CANDIDATES: usize = 8;

type Values = [f32; VALUES];

fn scaled<L: Levels>(values: &Values, weights: &Values) -> Legacy {
    let best = search::fit_scale::<L, VALUES>(values, weights);
    let scale = |i| neighbour(best, i as i32 - CANDIDATES as i32 / 2);
    let scales: [f32; CANDIDATES] = array::from_fn(|i| scale(i).to_f32());
    let scale = scale(search::lowest(&search::errors::<L, _, _>(values, weights, &scales, &[0.0; CANDIDATES])));
    Legacy { scale, min: f16::ZERO, codes: search::codes::<L, VALUES>(values, scale.to_f32(), 0.0) }
}

fn affine<L: Levels>(values: &Values, weights: &Values) -> Legacy {
    let (scale, min) = search::fit_scale_and_min::<L, VALUES, false>(values, weights);
    let pair = |i| (neighbour(scale, i as i32 % 4 - 1), neighbour(min, i as i32 / 4));
    let scales: [f32; CANDIDATES] = array::from_fn(|i| pair(i).0.to_f32());
    let mins: [f32; CANDIDATES] = array::from_fn(|i| pair(i).1.to_f32());
    let (scale, min) = pair(search::lowest(&search::errors::<L, _, _>(values, weights, &scales, &mins)));
    Legacy { scale, min, codes: search::codes::<L, VALUES>(values, scale.to_f32(), min.to_f32()) }
}

pub(super) fn q4_0(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| scaled::<Whole<-8, 7>>(values, weights).to_q4_0());
}

pub(super) fn q4_1(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| affine::<Whole<0, 15>>(values, weights).to_q4_1());
}

pub(super) fn q5_0(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| scaled::<Whole<-16, 15>>(values, weights).to_q5_0());
}

pub(super) fn q5_1(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| affine::<Whole<0, 31>>(values, weights).to_q5_1());
}

pub(super) fn iq4_nl(values: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, importance, out, |values, weights| scaled::<Iq4>(values, weights).to_q4_0());
}

/// The largest value becomes 127 or -127, so that decoded rows encode to the same bytes again; below 2^-10 this holds
/// only for most rows, since F16 has too few digits for their scale.
pub(super) fn q8_0(values: &[f32], _: Option<&[f32]>, out: &mut Vec<u8>) {
    each_block(values, None, out, |values: &Values, _| {
        let (scale, codes) = q8::round(values);
        q8::block(scale, codes)
    });
}

/// The levels of IQ4_NL and IQ4_XS.
pub(super) struct Iq4;

/// Codes of the levels nearest to -127, -126.5, -126, and so on: boundaries between levels are at halves.
const NEAREST: [u8; 512] = {
    let mut codes = [15; 512];
    let (mut code, mut i) = (0, 0);
    while code < 15 {
        let border = iq4::LEVELS[code] as i32 + iq4::LEVELS[code + 1] as i32 + 254;
        while i < border {
            codes[i as usize] = code as u8;
            i += 1;
        }
        code += 1;
    }
    codes
};

/// The levels themselves, in the same way.
static NEAREST_LEVEL: [f32; 512] = {
    let mut levels = [0.0; 512];
    let mut i = 0;
    while i < 512 {
        levels[i] = iq4::LEVELS[NEAREST[i] as usize] as f32;
        i += 1;
    }
    levels
};

impl Levels for Iq4 {
    const LOW: f32 = -127.0;
    const HIGH: f32 = 113.0;
    const STEP: f32 = 15.0;

    #[inline(always)]
    fn nearest(value: f32) -> f32 {
        NEAREST_LEVEL[half_steps(value)]
    }

    #[inline(always)]
    fn code(level: f32) -> u8 {
        NEAREST[half_steps(level)]
    }

    #[inline(always)]
    fn level(code: u8) -> f32 {
        f32::from(iq4::LEVELS[usize::from(code & 15)])
    }
}

/// How many halves a value is above -127.
#[inline(always)]
fn half_steps(value: f32) -> usize {
    ((2.0 * value + 254.0) as u32).min(511) as usize
}
