//! Whether guesses of a draft model save time, and how many of them save the most: from how often they were right, and
//! from measured times of both models' steps.
//!
//! A sequence that nothing is known of is expected to be like those before it. Where guesses do not pay, the draft model
//! does not run, except for rare probes: these are paid from a small share of the time of the large model's steps.

use crate::engine::pace::Pace;
use crate::engine::speculation::StepTimes;

/// How often guesses were right, and how often not; both fade.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Record {
    hits: f64,
    misses: f64,
}

impl Record {
    /// `right` guesses in a row were right, and if `missed` the next one was not. The larger `memory`, from 0 to 1, the
    /// longer are earlier ones remembered.
    pub(super) fn add(&mut self, right: usize, missed: bool, memory: f64) {
        self.fade(memory.powi(right as i32 + i32::from(missed)));
        self.hits += right as f64;
        self.misses += f64::from(u8::from(missed));
    }

    pub(super) fn fade(&mut self, factor: f64) {
        self.hits *= factor;
        self.misses *= factor;
    }

    /// How often the next guess is right, if it is `expected` to be right so often, which counts as `doubt` guesses.
    pub(super) fn rate(&self, expected: f64, doubt: f64) -> f64 {
        (self.hits + expected * doubt) / (self.hits + self.misses + doubt)
    }
}

/// What the guesses for a sequence are expected to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlook {
    /// How often they are right.
    pub(super) rate: f64,
    /// Tokens that the draft model has to compute before it can guess, beyond those of any step.
    pub(super) behind: usize,
    /// Tokens that the answer may still have.
    pub(super) left: usize,
    /// Guesses that there is room for.
    pub(super) most: usize,
    /// Sequences that are guessed for, and those that the large model computes.
    pub(super) num_drafting: usize,
    pub(super) num_running: usize,
}

/// What is known of a draft model.
#[derive(Debug, Default)]
pub(super) struct Worth {
    /// Of all sequences.
    record: Record,
    /// Times of steps with a token for each sequence.
    pub(super) times: StepTimes,
    /// Times of longer steps.
    pub(super) pace: Pace,
    /// Seconds that probes may take.
    credit: f64,
}

impl Worth {
    /// How often guesses are right before anything is known.
    const EXPECTED: f64 = 0.6;
    /// The time of a step of the draft model before it is measured, as a share of one of the large model.
    const STEP: f64 = 0.1;
    /// The share of the large model's time that probes may take.
    const PROBES: f64 = 0.02;
    /// Catching up has to pay within this many tokens of an answer, and twice: the answer may end sooner.
    const HORIZON: usize = 128;
    /// The least that guesses have to gain: measured times are not exact.
    const LEAST_GAIN: f64 = 1.08;

    /// A sequence begins: what was measured before counts a little less.
    pub(super) fn begin(&mut self) {
        self.record.fade(0.97);
        self.times.doubt();
    }

    /// As [`Record::add`], for a sequence's record and that of all.
    pub(super) fn learn(&mut self, own: &mut Record, right: usize, missed: bool) {
        own.add(right, missed, 0.95);
        self.record.add(right, missed, 0.95);
    }

    /// How often guesses for a sequence with this record are right.
    pub(super) fn rate(&self, own: &Record) -> f64 {
        own.rate(self.record.rate(Self::EXPECTED, 4.0), 2.0)
    }

    /// A step of the large model took `seconds`.
    pub(super) fn earn(&mut self, seconds: f64) {
        self.credit = (self.credit + Self::PROBES * seconds).min(seconds);
    }

    /// The number of guesses that gives the most tokens for the time; 0 where none gives more than plain decoding.
    pub(super) fn count(&self, outlook: &Outlook, large: &StepTimes) -> usize {
        let Outlook { rate, behind, left, most, num_drafting, num_running } = *outlook;
        let in_steps = |seconds: Option<f64>| {
            let step = large.seconds(num_running).filter(|step| *step > 0.0)?;
            Some(seconds? / step)
        };
        let draft_step = in_steps(self.times.seconds(num_drafting)).unwrap_or(Self::STEP);
        let gain = |count: usize| {
            // If each is right at this rate, and the first wrong one ends them.
            let tokens = (0..=count).map(|n| rate.powi(n as i32)).sum::<f64>();
            let steps = large.ratio(num_running, num_running + num_drafting * count) + draft_step * count as f64;
            tokens / steps
        };
        let Some(best) = (1..=most).max_by(|a, b| gain(*a).total_cmp(&gain(*b))) else { return 0 };
        let saved = (1.0 - 1.0 / gain(best)) * left.min(Self::HORIZON) as f64;
        let catching_up = behind as f64 * in_steps(self.pace.seconds_per_token()).unwrap_or(0.0);
        if gain(best) > Self::LEAST_GAIN && saved > 2.0 * catching_up { best } else { 0 }
    }

    /// Whether a guess that is only compared may be made, which it is then paid for.
    pub(super) fn pay_probe(&mut self, behind: usize) -> bool {
        let Some(step) = self.times.seconds(1) else { return false };
        let cost = step + behind as f64 * self.pace.seconds_per_token().unwrap_or(step);
        let may = cost <= self.credit;
        if may {
            self.credit -= cost;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(rate: f64) -> Outlook {
        Outlook { rate, behind: 0, left: 1000, most: 15, num_drafting: 1, num_running: 1 }
    }

    /// Steps of the large model take a second and a little more for each token, those of the draft model a share of it.
    fn measured(share: f64) -> (Worth, StepTimes) {
        let (mut worth, mut large) = (Worth::default(), StepTimes::default());
        for tokens in [1, 2, 4, 8, 16] {
            large.record(tokens, 1.0 + 0.02 * tokens as f64);
        }
        worth.times.record(1, share);
        (worth, large)
    }

    #[test]
    fn better_guesses_and_a_faster_draft_model_make_more_of_them() {
        let (worth, large) = measured(0.07);
        let counts = [0.0, 0.3, 0.6, 0.8, 0.95].map(|rate| worth.count(&outlook(rate), &large));
        assert!(counts[0] == 0 && counts.is_sorted() && counts[4] >= 8, "{counts:?}");
        let counts = [0.02, 0.1, 0.3, 1.0].map(|share| {
            let (worth, large) = measured(share);
            worth.count(&outlook(0.8), &large)
        });
        assert!(counts[3] == 0 && counts.iter().rev().is_sorted() && counts[0] >= 6, "{counts:?}");
        // One as slow as the large model never pays, even if it is always right.
        let (worth, large) = measured(1.0);
        assert_eq!(worth.count(&outlook(1.0), &large), 0);
        assert_eq!(worth.count(&Outlook { most: 0, ..outlook(1.0) }, &large), 0);
    }

    #[test]
    fn catching_up_has_to_pay() {
        let (mut worth, large) = measured(0.07);
        worth.pace.record(100, 2.0);
        let behind = |behind, left| worth.count(&Outlook { behind, left, ..outlook(0.8) }, &large);
        assert!(behind(100, 1000) > 0);
        assert_eq!((behind(100, 6), behind(10_000, 1_000_000)), (0, 0));
    }

    #[test]
    fn guesses_end_where_they_are_wrong_and_the_next_sequences_know() {
        let (mut worth, large) = measured(0.07);
        let mut wasted = [0; 3].map(|_| {
            worth.begin();
            let mut own = Record::default();
            (0..50)
                .filter(|_| {
                    let guesses = worth.count(&outlook(worth.rate(&own)), &large) > 0;
                    if guesses {
                        worth.learn(&mut own, 0, true);
                    }
                    guesses
                })
                .count()
        });
        assert!(wasted[0] <= 10 && wasted[1] < wasted[0], "{wasted:?}");
        // Many sequences later it is tried again.
        (0..200).for_each(|_| worth.begin());
        assert!(worth.count(&outlook(worth.rate(&Record::default())), &large) > 0);
        wasted.reverse();
        assert!(wasted.is_sorted());
    }

    #[test]
    fn probes_take_a_fiftieth_of_the_time() {
        let (mut worth, _) = measured(0.1);
        worth.pace.record(100, 2.0);
        let mut spent = 0.0;
        for _ in 0..1000 {
            worth.earn(1.0);
            spent += if worth.pay_probe(5) { 0.2 } else { 0.0 };
        }
        assert!((15.0..=20.01).contains(&spent), "{spent}");
        // What cannot be paid is not saved for.
        (0..1000).for_each(|_| worth.earn(1.0));
        assert!(!worth.pay_probe(100) && worth.pay_probe(40));
    }
}
