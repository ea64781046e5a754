//! Tokens in the order of likelihood, without sorting more of them than it takes.

use std::cmp::Ordering;

/// Tokens that are compared at once with a floor.
pub(super) const CHUNK: usize = 16;

/// A token of the list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
    /// Its probability in units of that of the most likely token.
    pub(super) weight: f64,
}

/// Smaller for the more likely.
pub(super) fn likelihood(candidate: &Candidate) -> f64 {
    // Adding 0 makes one of the two zeros.
    -f64::from(candidate.logit) + 0.0
}

/// The most likely token first, of equals the lower id.
pub(super) fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    likelihood(a).total_cmp(&likelihood(b)).then(a.id.cmp(&b.id))
}

/// List the `k` most likely finite logits of a row, without their weights and in no order.
pub(super) fn top_k(logits: &[f32], k: usize, list: &mut Vec<Candidate>) {
    // The list is cut back whenever it has twice the tokens; the last one that stays is the next floor. A later token
    // with the same logit has a higher id, and is out.
    let room = k.saturating_mul(2).max(64);
    let mut floor = f32::NEG_INFINITY;
    list.clear();
    for (chunk, first) in logits.chunks(CHUNK).zip((0u32..).step_by(CHUNK)) {
        if !chunk.iter().fold(false, |any, logit| any | (*logit > floor)) {
            continue;
        }
        for (&logit, id) in chunk.iter().zip(first..) {
            if logit > floor {
                list.push(Candidate { id, logit, weight: 0.0 });
            }
        }
        if list.len() >= room {
            keep_first(list, k);
            floor = list.iter().map(|c| c.logit).fold(f32::INFINITY, f32::min);
        }
    }
    keep_first(list, k);
}

pub(super) fn keep_first(list: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < list.len() {
        list.select_nth_unstable_by(k - 1, by_likelihood);
        list.truncate(k);
    }
}

/// The candidate with which those that come first by `key`, and by id among equals, weigh `mass`: the last of all where
/// they never do. `None` for an empty list.
pub(super) fn border(list: &[Candidate], key: impl Fn(&Candidate) -> f64, mass: f64) -> Option<Candidate> {
    /// So many are sorted.
    const FEW: usize = 128;
    const BINS: usize = 512;
    let (mut weight, mut few) = (0.0, None::<Vec<Candidate>>);
    loop {
        let rest = few.as_deref().unwrap_or(list);
        let ends = |(low, high): (f64, f64), key: f64| (low.min(key), high.max(key));
        let (low, high) = rest.iter().map(&key).fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        // Rounding keeps the order, so that bins do.
        let scale = (BINS - 1) as f64 / (high - low);
        if rest.len() <= FEW || !scale.is_finite() {
            break;
        }
        // In which bin the mass is reached, again and again: linear, where sorting all of them is not.
        let bin = |candidate: &Candidate| (((key(candidate) - low) * scale) as usize).min(BINS - 1);
        let mut bins = [0.0; BINS];
        for candidate in rest {
            if let Some(sum) = bins.get_mut(bin(candidate)) {
                *sum += candidate.weight;
            }
        }
        let reached = bins.iter().take(BINS - 1).position(|sum| {
            let is_reached = weight + sum >= mass;
            weight += if is_reached { 0.0 } else { *sum };
            is_reached
        });
        let reached = reached.unwrap_or(BINS - 1);
        few = Some(rest.iter().filter(|candidate| bin(candidate) == reached).copied().collect());
    }
    let mut few = few.unwrap_or_else(|| list.to_vec());
    few.sort_unstable_by(|a, b| key(a).total_cmp(&key(b)).then(a.id.cmp(&b.id)));
    let reached = few.iter().find(|candidate| {
        weight += candidate.weight;
        weight >= mass
    });
    reached.or(few.last()).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::sampling::exp::exp_neg;

    proptest! {
        #[test]
        fn a_mass_is_reached_where_a_sorted_list_reaches_it(
            // Many equals, few of them, and extremes.
            logits in prop::collection::vec(prop_oneof![
                4 => -3.0f32..3.0,
                3 => (-4i32..4).prop_map(|logit| logit as f32),
                1 => prop_oneof![Just(f32::MIN), Just(f32::MAX), Just(-0.0)],
            ], 1..2000),
            share in 0.0..1.1,
        ) {
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let weight = |logit: f32| exp_neg(f64::from(max) - f64::from(logit));
            let list: Vec<_> =
                logits.iter().zip(0..).map(|(&logit, id)| Candidate { id, logit, weight: weight(logit) }).collect();
            let mut sorted = list.clone();
            sorted.sort_by(by_likelihood);
            // Between two sums, where no rounding decides.
            let target = share * list.iter().map(|c| c.weight).sum::<f64>();
            let (mut sum, mut len) = (0.0, 0);
            while len < sorted.len() && (len == 0 || sum < target) {
                sum += sorted[len].weight;
                len += 1;
            }
            let last = sorted[len - 1].weight;
            prop_assume!(last > 1e-9 || target > sum);
            let mass = if sum < target { target } else { sum - last / 2.0 };
            let found = border(&list, likelihood, mass).map(|c| c.id);
            prop_assert_eq!(found, Some(sorted[len - 1].id));
        }
    }
}
