//! The tokens that are still in the choice, and the cuts that make them fewer.
//!
//! At first these are all logits of the row, too many to sort or even to copy. The first cut that leaves few of them
//! finds a floor in a scan or two and lists what lies above; later cuts work on that list. Likelihood orders by logit,
//! the lower id first among equals, so that no result depends on an algorithm.

use super::exp::{exp_neg, exp_neg_f32};
use super::select::{CHUNK, Candidate, border, by_likelihood, keep_first, likelihood, top_k};

/// Sums over the probabilities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    /// Of the weights.
    total: f64,
    /// Of weight x distance.
    moment: f64,
    /// How many tokens there are.
    pub(super) len: usize,
}

impl Sums {
    /// The entropy in nats.
    pub(super) fn entropy(&self) -> f64 {
        (self.total.ln() + self.moment / self.total).max(0.0)
    }
}

/// How far from the centre, in nats, a list is collected, until it has enough mass.
const REACHES: [f64; 6] = [4.0, 8.0, 16.0, 32.0, 64.0, f64::INFINITY];

/// The tokens in the choice.
pub(super) struct Pool<'a> {
    /// Of all ids; negative infinity for those that are out. Without meaning once there is a list.
    logits: &'a mut [f32],
    list: &'a mut Vec<Candidate>,
    is_list: bool,
    /// The largest logit in the choice.
    max: f32,
    temperature: f64,
}

impl<'a> Pool<'a> {
    /// All finite logits of a row whose largest one is `max`. `list` is scratch.
    pub(super) fn new(logits: &'a mut [f32], max: f32, list: &'a mut Vec<Candidate>) -> Self {
        list.clear();
        Pool { logits, list, is_list: false, max, temperature: 1.0 }
    }

    /// How much less likely a token is than the most likely one, in nats.
    #[inline(always)]
    fn distance(&self, logit: f32) -> f64 {
        (f64::from(self.max) - f64::from(logit)) * (1.0 / self.temperature)
    }

    /// Divide all logits by `temperature`, which is above 0.
    pub(super) fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
        self.weigh();
    }

    /// The weights of the list, after the largest logit or the temperature has changed.
    fn weigh(&mut self) {
        let (max, inverse) = (f64::from(self.max), 1.0 / self.temperature);
        for candidate in self.list.iter_mut() {
            candidate.weight = exp_neg((max - f64::from(candidate.logit)) * inverse);
        }
    }

    pub(super) fn sums(&self) -> Sums {
        if self.is_list {
            let total = self.list.iter().map(|c| c.weight).sum();
            let moment = self.list.iter().filter(|c| c.weight > 0.0).map(|c| c.weight * self.distance(c.logit)).sum();
            return Sums { total, moment, len: self.list.len() };
        }
        let moment = |distance: f32, weight: f32| if weight > 0.0 { weight * distance } else { 0.0 };
        let total = self.sum_over_row(|_, weight| weight);
        let moment = self.sum_over_row(moment);
        let len = self.logits.iter().filter(|logit| **logit > f32::NEG_INFINITY).count();
        Sums { total, moment, len }
    }

    /// The sum of `term(distance, weight)` over the row: in single precision, as vectors do it, but only for a few
    /// hundred tokens at once.
    #[inline(always)]
    fn sum_over_row(&self, term: impl Fn(f32, f32) -> f32) -> f64 {
        const LANES: usize = 16;
        let (max, inverse) = (self.max, (1.0 / self.temperature) as f32);
        let mut total = 0.0;
        for block in self.logits.chunks(LANES * 32) {
            let mut sums = [0.0f32; LANES];
            for chunk in block.chunks(LANES) {
                for (logit, sum) in chunk.iter().zip(&mut sums) {
                    let distance = (max - logit) * inverse;
                    *sum += term(distance, exp_neg_f32(distance));
                }
            }
            total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
        total
    }

    /// The weight of all tokens together.
    fn total(&self) -> f64 {
        match self.is_list {
            true => self.list.iter().map(|c| c.weight).sum(),
            false => self.sum_over_row(|_, weight| weight),
        }
    }

    /// List the tokens of at least this logit, in the order of their ids. The list may become one, or not.
    fn collect(&mut self, floor: f32) {
        let (max, inverse) = (f64::from(self.max), 1.0 / self.temperature);
        self.list.clear();
        let floor = floor.max(f32::MIN);
        for (chunk, first) in self.logits.chunks(CHUNK).zip((0u32..).step_by(CHUNK)) {
            if !chunk.iter().fold(false, |any, logit| any | (*logit >= floor)) {
                continue;
            }
            // Without branches that nobody could predict, and several weights at once.
            let (mut found, mut weights, mut count) = ([(0, self.max); CHUNK], [0.0; CHUNK], 0);
            for (&logit, id) in chunk.iter().zip(first..) {
                found.get_mut(count).into_iter().for_each(|found| *found = (id, logit));
                count += usize::from(logit >= floor);
            }
            for (found, weights) in found.chunks(4).zip(weights.chunks_mut(4)).take(count.div_ceil(4)) {
                for ((_, logit), weight) in found.iter().zip(weights) {
                    *weight = exp_neg((max - f64::from(*logit)) * inverse);
                }
            }
            let candidates = found.iter().zip(weights).take(count);
            self.list.extend(candidates.map(|(&(id, logit), weight)| Candidate { id, logit, weight }));
        }
    }

    /// A logit that is a little further from the largest one than `distance`.
    fn floor(&self, distance: f64) -> f32 {
        let margin = 1e-6 + 1e-6 * distance;
        ((f64::from(self.max) - (distance + margin) * self.temperature) as f32).next_down()
    }

    /// Keep what satisfies `keep`, which no token beyond `distance` does.
    fn keep_within(&mut self, distance: f64, keep: impl Fn(&Candidate) -> bool) {
        if !self.is_list {
            self.collect(self.floor(distance));
            self.is_list = true;
        }
        self.list.retain(keep);
    }

    /// List tokens around `centre` (a distance) until they weigh `mass`, or all.
    fn collect_mass(&mut self, centre: f64, mass: f64) {
        for reach in REACHES {
            if self.collect_within(centre, reach) > mass * (1.0 + 1e-9) {
                return;
            }
            // A model that is not sure: where its mass lies is found in one pass.
            if centre == 0.0
                && let Some(reach) = self.reach_of(mass)
                && self.collect_within(centre, reach) > mass * (1.0 + 1e-9)
            {
                return;
            }
        }
    }

    /// List the tokens that are this far from `centre` at most, and give their weight.
    fn collect_within(&mut self, centre: f64, reach: f64) -> f64 {
        self.collect(self.floor(centre + reach));
        if centre > 0.0 {
            let (max, inverse) = (f64::from(self.max), 1.0 / self.temperature);
            self.list.retain(|c| ((max - f64::from(c.logit)) * inverse - centre).abs() <= reach);
        }
        // Rounding must not lose the last token.
        self.list.iter().map(|c| c.weight).sum()
    }

    /// A distance within which the tokens of the row weigh a little more than `mass`, if there is one that leaves some
    /// out: from a histogram over the upper bits of distances.
    fn reach_of(&self, mass: f64) -> Option<f64> {
        const SHIFT: u32 = 18;
        // Between these, 32 bins for each doubling.
        let (first, last) = ((2.0f32).powi(-4).to_bits() >> SHIFT, 128f32.to_bits() >> SHIFT);
        let mut weights = [0.0f64; 32 * 11 + 1];
        let (max, inverse) = (self.max, (1.0 / self.temperature) as f32);
        for chunk in self.logits.chunks(CHUNK) {
            let mut found = [(0.0f32, 0u32); CHUNK];
            for (logit, found) in chunk.iter().zip(&mut found) {
                let distance = (max - logit) * inverse;
                *found = (exp_neg_f32(distance), (distance.to_bits() >> SHIFT).clamp(first, last) - first);
            }
            for (weight, bin) in found {
                if let Some(sum) = weights.get_mut(bin as usize) {
                    *sum += f64::from(weight);
                }
            }
        }
        let mut sum = 0.0;
        let bin = (first..last).zip(&weights).find(|(_, weight)| {
            sum += **weight;
            sum > mass * (1.0 + 1e-5)
        });
        bin.map(|(bin, _)| f64::from(f32::from_bits((bin + 1) << SHIFT)))
    }

    /// Keep the `k` most likely tokens.
    pub(super) fn top_k(&mut self, k: usize) {
        if self.is_list {
            keep_first(self.list, k);
            return;
        }
        top_k(self.logits, k, self.list);
        self.is_list = true;
        self.weigh();
    }

    /// Keep the most likely tokens until their probabilities sum to `p`.
    pub(super) fn top_p(&mut self, p: f64) {
        let mass = p * self.total();
        if !self.is_list {
            self.collect_mass(0.0, mass);
            self.is_list = true;
        }
        let Some(border) = border(self.list, likelihood, mass) else { return };
        self.list.retain(|c| by_likelihood(c, &border).is_le());
    }

    /// Keep tokens that are at least this fraction as probable as the most likely one.
    pub(super) fn min_p(&mut self, min_p: f64) {
        self.keep_within(-min_p.ln(), |c| c.weight >= min_p);
    }

    /// Keep tokens with at least this probability, and the most likely ones in any case.
    fn min_probability(&mut self, min: f64, total: f64) {
        let (weight, max) = ((min * total).min(1.0), self.max);
        self.keep_within(-weight.ln(), |c| c.weight >= weight || c.logit == max);
    }

    /// Drop tokens below this probability (Hewitt et al. 2022, epsilon sampling).
    pub(super) fn epsilon_cutoff(&mut self, epsilon: f64) {
        let total = self.total();
        self.min_probability(epsilon, total);
    }

    /// The same with a bound that falls with the entropy (Hewitt et al. 2022, eta sampling).
    pub(super) fn eta_cutoff(&mut self, epsilon: f64) {
        let sums = self.sums();
        self.min_probability(epsilon.min(epsilon.sqrt() * exp_neg(sums.entropy())), sums.total);
    }

    /// Drop tokens of more surprise than `mu` bits, but not the most likely ones; the weight of the rest.
    pub(super) fn max_surprise(&mut self, mu: f64) -> f64 {
        let total = self.total();
        self.min_probability((-mu).exp2().min(1.0), total);
        self.total()
    }

    /// Keep the tokens whose surprise is nearest to the entropy, until their probabilities sum to `p` (Meister et al.
    /// 2022).
    pub(super) fn typical_p(&mut self, p: f64) {
        let sums = self.sums();
        // ln(1 / probability) - entropy is the distance from here.
        let centre = sums.moment / sums.total;
        let mass = p * sums.total;
        if !self.is_list {
            self.collect_mass(centre, mass);
            self.is_list = true;
        }
        let (max, inverse) = (f64::from(self.max), 1.0 / self.temperature);
        let key = |c: &Candidate| ((max - f64::from(c.logit)) * inverse - centre).abs();
        let Some(border) = border(self.list, key, mass).as_ref().map(key) else { return };
        self.list.retain(|c| key(c) <= border);
        let kept_max = self.list.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
        self.lower_max(kept_max);
    }

    /// Keep logits within `n` standard deviations of the largest one (Tang et al. 2024).
    pub(super) fn top_n_sigma(&mut self, n: f64) {
        // Of the differences to the largest one, so that nothing cancels.
        let max = f64::from(self.max);
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        let mut add = |logit: f32| {
            let is_in = logit > f32::NEG_INFINITY;
            let below = if is_in { max - f64::from(logit) } else { 0.0 };
            count += f64::from(u8::from(is_in));
            sum += below;
            squares += below * below;
        };
        match self.is_list {
            true => self.list.iter().for_each(|c| add(c.logit)),
            false => self.logits.iter().for_each(|logit| add(*logit)),
        }
        let mean = sum / count;
        let deviation = (squares / count - mean * mean).max(0.0).sqrt();
        let below = n * deviation;
        self.keep_within(below / self.temperature, |c| max - f64::from(c.logit) <= below);
    }

    /// Drop all tokens of at least this probability but the least likely of them ("exclude top choices", p-e-w 2024).
    pub(super) fn exclude_top(&mut self, threshold: f64) {
        let least = threshold * self.total();
        let is_dense = !self.is_list;
        if is_dense {
            if least > 1.0 {
                return;
            }
            self.collect(self.floor(-least.ln()));
        }
        let top = self.list.iter().filter(|c| c.weight >= least);
        let Some(last) = top.max_by(|a, b| by_likelihood(a, b)).copied() else { return };
        let goes = |c: &Candidate| c.weight >= least && c.id != last.id;
        if is_dense {
            for candidate in self.list.iter().filter(|c| goes(c)) {
                if let Some(logit) = self.logits.get_mut(candidate.id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            self.list.clear();
        } else {
            self.list.retain(|c| !goes(c));
        }
        self.lower_max(last.logit);
    }

    fn lower_max(&mut self, max: f32) {
        if max != self.max {
            self.max = max;
            self.weigh();
        }
    }

    /// The token at `share` of the weight, in the order of likelihood, with its weight. None if the pool is empty.
    pub(super) fn draw(&mut self, share: f64) -> Option<Candidate> {
        let mass = share * self.total();
        if !self.is_list {
            self.collect_mass(0.0, mass);
            self.is_list = true;
        }
        let drawn = border(self.list, likelihood, mass);
        // Rounding may leave a remainder after the last one. What has no weight is never drawn.
        drawn.filter(|c| c.weight > 0.0).or_else(|| {
            let drawable = self.list.iter().filter(|c| c.weight > 0.0);
            drawable.max_by(|a, b| by_likelihood(a, b)).copied()
        })
    }

    /// Let `change` change the logits in the choice, and give the largest of them.
    pub(super) fn changed<E>(self, change: impl FnOnce(&mut [f32]) -> Result<f32, E>) -> Result<Self, E> {
        let (logits, list) = self.into_parts();
        let max = change(logits)?;
        Ok(Pool::new(logits, max, list))
    }

    /// Write the row again: the logits, divided by the temperature, and negative infinity for what is out.
    pub(super) fn into_logits(self) {
        self.into_parts();
    }

    fn into_parts(self) -> (&'a mut [f32], &'a mut Vec<Candidate>) {
        let Pool { logits, list, is_list, temperature, .. } = self;
        if is_list {
            logits.fill(f32::NEG_INFINITY);
            for candidate in list.iter() {
                if let Some(logit) = logits.get_mut(candidate.id as usize) {
                    *logit = candidate.logit;
                }
            }
        }
        if temperature != 1.0 {
            for logit in logits.iter_mut().filter(|logit| logit.is_finite()) {
                *logit = ((f64::from(*logit) / temperature) as f32).clamp(f32::MIN, f32::MAX);
            }
        }
        (logits, list)
    }
}
