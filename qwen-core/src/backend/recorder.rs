//! Recorded steps: when a backend records what a step issues, keeps the recording, and replays it. Only these decisions
//! are here; what a recorded step is and how it runs is up to each device.
//!
//! A step of one token per sequence issues the same commands for every token; only the contents of its inputs differ.
//! The first step of a shape is recorded and kept, and later ones with the same [`StepKey`] replay it without calling
//! the model. Prompts have many lengths; they are recorded, to be submitted as a whole, but not kept.
//!
//! A backend holds a [`Recorder`], implements [`Record`] and calls [`run`] in [`super::Backend::step`]. [`padded`] and
//! [`warmup_shapes`] keep the shapes few.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Interrupt, StepKey};
use crate::backend::Limits;
use crate::error::{Error, Result};

/// The most recorded steps that are kept.
pub const MAX_KEPT: usize = 64;

/// The recorded steps of a backend, and the one that is being recorded.
///
/// ```
/// use qwen_core::backend::recorder::Recorder;
/// let recorder: Recorder<Vec<&str>> = Recorder::new();
/// assert!(recorder.recording().is_none() && recorder.kept().count() == 0);
/// ```
#[derive(Debug)]
pub struct Recorder<S> {
    kept: HashMap<StepKey, Arc<S>>,
    recording: Option<Recording>,
    keeps: bool,
}

/// The state of the step that is being recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recording {
    /// Whether the step will be kept.
    pub keep: bool,
    /// Whether no part of the step was submitted before its end.
    pub whole: bool,
}

impl<S> Recorder<S> {
    /// A recorder without recorded steps.
    pub fn new() -> Self {
        Recorder { kept: HashMap::new(), recording: None, keeps: true }
    }

    /// The step that is being recorded; `None` outside of steps.
    pub fn recording(&self) -> Option<Recording> {
        self.recording
    }

    /// The step being recorded cannot be replayed: it depends on something temporary.
    pub fn do_not_keep(&mut self) {
        if let Some(recording) = &mut self.recording {
            recording.keep = false;
        }
    }

    /// Part of the step being recorded is submitted before its end, so it cannot be replayed as a whole.
    pub fn submit_early(&mut self) {
        self.recording = self.recording.map(|_| Recording { keep: false, whole: false });
    }

    /// Keep no further steps from now on. Those already kept stay.
    pub fn stop_keeping(&mut self) {
        self.keeps = false;
        self.do_not_keep();
    }

    /// The steps that are kept.
    pub fn kept(&self) -> impl Iterator<Item = &S> {
        self.kept.values().map(|step| &**step)
    }

    /// Forget all steps that are kept.
    pub fn clear(&mut self) {
        self.kept.clear();
    }
}

impl<S> Default for Recorder<S> {
    fn default() -> Self {
        Self::new()
    }
}

/// A device that records steps. [`run`] calls these methods in the order of their declaration.
pub trait Record: Sized {
    /// A recorded step that can be replayed.
    type Step;

    /// The recorder of this device.
    fn recorder(&mut self) -> &mut Recorder<Self::Step>;

    /// Queue a step that is kept.
    ///
    /// # Errors
    /// When the device refuses it.
    fn replay(&mut self, step: &Arc<Self::Step>) -> Result<()>;

    /// Called before a step is recorded, so that earlier commands do not become part of it. Default: nothing.
    ///
    /// # Errors
    /// When the device refuses what was queued.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// Drop what was recorded and not submitted: the step failed or was interrupted.
    fn discard(&mut self);

    /// Queue what was recorded. If `recording.keep`, return it to be kept, or `None` if the device cannot replay it.
    ///
    /// # Errors
    /// When the device refuses it. The step is not kept then.
    fn submit(&mut self, recording: Recording) -> Result<Option<Arc<Self::Step>>>;
}

/// Run a step of `device`: replay the one that is kept for `key`, or record what `body` issues and submit it.
///
/// # Errors
/// [`Error::Cancelled`] when `interrupt` was raised before the step was submitted; the errors of `body` and of the
/// device.
pub fn run<D: Record>(
    device: &mut D,
    key: StepKey,
    interrupt: &Interrupt,
    body: &mut dyn FnMut(&mut D) -> Result<()>,
) -> Result<()> {
    if interrupt.is_raised() {
        return Err(Error::Cancelled);
    }
    if let Some(step) = device.recorder().kept.get(&key).cloned() {
        return device.replay(&step);
    }
    device.begin()?;
    let recorder = device.recorder();
    let keep = recorder.keeps && !key.adapters && key.max_seqlen_q <= 1 && recorder.kept.len() < MAX_KEPT;
    recorder.recording = Some(Recording { keep, whole: true });
    let issued = body(device);
    let recording = device.recorder().recording.take();
    if issued.is_err() || interrupt.is_raised() {
        device.discard();
        return issued.and(Err(Error::Cancelled));
    }
    let Some(recording) = recording else { return Ok(()) };
    if let Some(step) = device.submit(recording)? {
        device.recorder().kept.insert(key, step);
    }
    Ok(())
}

/// The shape that a step is padded to, so that steps of one token per sequence have few shapes: the numbers of
/// sequences and of rows of logits are rounded up to 1, 2, 4, multiples of 8 up to 64 and of 32 beyond, as far as
/// `limits` allow. Other steps keep their shape.
///
/// ```
/// use qwen_core::backend::StepKey;
/// use qwen_core::backend::recorder::padded;
/// use qwen_core::backend::Limits;
/// let limits = Limits {
///     max_model_len: 4096,
///     max_num_batched_tokens: 512,
///     max_num_seqs: 6,
///     max_num_logits: 6,
///     block_size: 16,
///     num_blocks: 256,
///     vocab_size: 1000,
///     num_token_ids: 1000,
/// };
/// let step = |count| StepKey { num_tokens: count, num_seqs: count, num_logits: count, max_seqlen_q: 1, hidden: false, adapters: false };
/// assert_eq!(padded(step(3), &limits), step(4));
/// assert_eq!(padded(step(5), &limits), step(6));
/// ```
pub fn padded(key: StepKey, limits: &Limits) -> StepKey {
    if key.max_seqlen_q != 1 || key.num_tokens != key.num_seqs {
        return key;
    }
    let max_seqs = limits.max_num_seqs.min(limits.max_num_batched_tokens);
    let num_seqs = padded_count(key.num_seqs).min(max_seqs).max(key.num_seqs);
    let num_logits = padded_count(key.num_logits).min(limits.max_num_logits).max(key.num_logits);
    StepKey { num_tokens: num_seqs, num_seqs, num_logits, ..key }
}

fn padded_count(count: usize) -> usize {
    let step = match count {
        0 => 1,
        1..=4 => count.next_power_of_two(),
        5..=64 => 8,
        _ => 32,
    };
    count.checked_next_multiple_of(step).unwrap_or(count)
}

/// Shapes of steps to run once at load: a prompt of each of these lengths, then single tokens of each of these numbers
/// of sequences.
///
/// ```
/// use qwen_core::backend::recorder::warmup_shapes;
/// let shapes = warmup_shapes(&[64], &[1, 2]);
/// assert_eq!(shapes.iter().map(|key| (key.num_tokens, key.num_seqs)).collect::<Vec<_>>(), [(64, 1), (1, 1), (2, 2)]);
/// ```
pub fn warmup_shapes(prompt_lengths: &[usize], sequence_counts: &[usize]) -> Vec<StepKey> {
    let prompt = |&length: &usize| StepKey {
        num_tokens: length,
        num_seqs: 1,
        num_logits: 1,
        max_seqlen_q: length,
        hidden: false,
        adapters: false,
    };
    let single = |&count: &usize| StepKey {
        num_tokens: count,
        num_seqs: count,
        num_logits: count,
        max_seqlen_q: 1,
        hidden: false,
        adapters: false,
    };
    prompt_lengths.iter().map(prompt).chain(sequence_counts.iter().map(single)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose commands are letters.
    #[derive(Default)]
    struct Letters {
        recorder: Recorder<String>,
        recorded: String,
        submitted: String,
        refuses_to_keep: bool,
    }

    impl Letters {
        fn issue(&mut self, letter: char) {
            match self.recorder.recording() {
                Some(_) => self.recorded.push(letter),
                None => self.submitted.push(letter),
            }
        }

        /// Submit what was recorded so far, as before a read by the host.
        fn flush(&mut self) {
            self.recorder.submit_early();
            self.submitted += &std::mem::take(&mut self.recorded);
        }

        /// Run a step; whether its body was called.
        fn step(&mut self, key: StepKey, body: impl Fn(&mut Self) -> Result<()>) -> Result<bool> {
            self.interruptible(key, &Interrupt::default(), body)
        }

        fn interruptible(
            &mut self,
            key: StepKey,
            interrupt: &Interrupt,
            body: impl Fn(&mut Self) -> Result<()>,
        ) -> Result<bool> {
            let mut called = false;
            let result = run(self, key, interrupt, &mut |device| {
                called = true;
                body(device)
            });
            assert!(self.recorder.recording().is_none() && self.recorded.is_empty());
            result.map(|()| called)
        }
    }

    impl Record for Letters {
        type Step = String;

        fn recorder(&mut self) -> &mut Recorder<String> {
            &mut self.recorder
        }

        fn replay(&mut self, step: &Arc<String>) -> Result<()> {
            self.submitted += step;
            Ok(())
        }

        fn discard(&mut self) {
            self.recorded.clear();
        }

        fn submit(&mut self, recording: Recording) -> Result<Option<Arc<String>>> {
            let step = std::mem::take(&mut self.recorded);
            self.submitted += &step;
            if recording.keep && self.refuses_to_keep {
                self.recorder.stop_keeping();
                return Ok(None);
            }
            Ok(recording.keep.then(|| Arc::new(step)))
        }
    }

    fn decode(count: usize) -> StepKey {
        warmup_shapes(&[], &[count])[0]
    }

    fn ab(device: &mut Letters) -> Result<()> {
        device.issue('a');
        device.issue('b');
        Ok(())
    }

    #[test]
    fn a_step_of_single_tokens_is_recorded_once_and_replayed() {
        let mut device = Letters::default();
        assert!(device.step(decode(1), ab).unwrap() && device.step(decode(2), ab).unwrap());
        assert!(!device.step(decode(1), ab).unwrap());
        assert_eq!((device.submitted.as_str(), device.recorder.kept().count()), ("ababab", 2));
        // Prompts are not kept.
        let prompt = warmup_shapes(&[5], &[])[0];
        assert!(device.step(prompt, ab).unwrap() && device.step(prompt, ab).unwrap());
        assert_eq!(device.recorder.kept().count(), 2);
        device.recorder.clear();
        assert!(device.step(decode(1), ab).unwrap());
    }

    #[test]
    fn a_step_that_the_host_takes_part_in_is_not_kept() {
        let mut device = Letters::default();
        for _ in 0..2 {
            let called = device.step(decode(1), |device| {
                device.issue('a');
                device.flush();
                assert_eq!(device.recorder.recording(), Some(Recording { keep: false, whole: false }));
                device.issue('b');
                Ok(())
            });
            assert!(called.unwrap());
        }
        assert_eq!((device.submitted.as_str(), device.recorder.kept().count()), ("abab", 0));
        let called = device.step(decode(1), |device| {
            device.recorder.do_not_keep();
            assert_eq!(device.recorder.recording(), Some(Recording { keep: false, whole: true }));
            ab(device)
        });
        assert!(called.unwrap() && device.recorder.kept().count() == 0);
    }

    #[test]
    fn a_step_that_fails_or_is_interrupted_leaves_nothing_behind() {
        let mut device = Letters::default();
        let failed = device.step(decode(1), |device| ab(device).and(Err(Error::EmptyPrompt)));
        assert!(matches!(failed, Err(Error::EmptyPrompt)));
        let interrupt = Interrupt::default();
        let interrupted = device.interruptible(decode(1), &interrupt, |device| {
            interrupt.raise();
            ab(device)
        });
        assert!(matches!(interrupted, Err(Error::Cancelled)));
        // An interrupt raised beforehand prevents a replay, too.
        assert!(matches!(device.interruptible(decode(1), &interrupt, ab), Err(Error::Cancelled)));
        assert_eq!((device.submitted.as_str(), device.recorder.kept().count()), ("", 0));
        // Operations outside of steps are not recorded.
        device.issue('c');
        assert_eq!(device.submitted, "c");
    }

    #[test]
    fn a_device_that_cannot_run_a_step_again_is_not_asked_twice() {
        let mut device = Letters { refuses_to_keep: true, ..Letters::default() };
        assert!(device.step(decode(1), ab).unwrap() && device.step(decode(1), ab).unwrap());
        let kept = device.step(decode(2), |device| {
            assert_eq!(device.recorder.recording(), Some(Recording { keep: false, whole: true }));
            ab(device)
        });
        assert!(kept.unwrap() && device.recorder.kept().count() == 0);
    }

    #[test]
    fn only_so_many_steps_are_kept() {
        let mut device = Letters::default();
        for count in 1..=MAX_KEPT + 3 {
            device.step(decode(count), ab).unwrap();
        }
        assert_eq!(device.recorder.kept().count(), MAX_KEPT);
        assert!(!device.step(decode(MAX_KEPT), ab).unwrap() && device.step(decode(MAX_KEPT + 1), ab).unwrap());
    }

    #[test]
    fn steps_are_padded_to_few_sizes_within_the_limits() {
        let sizes: Vec<usize> = (0..=8).map(padded_count).collect();
        assert_eq!(sizes, [0, 1, 2, 4, 4, 8, 8, 8, 8]);
        assert_eq!([9, 33, 64, 65, 100].map(padded_count), [16, 40, 64, 96, 128]);
        assert_eq!(padded_count(usize::MAX), usize::MAX);
        let limits = Limits {
            max_model_len: 64,
            max_num_batched_tokens: 20,
            max_num_seqs: 32,
            max_num_logits: 10,
            block_size: 16,
            num_blocks: 4,
            vocab_size: 9,
            num_token_ids: 9,
        };
        let to = |key| {
            let StepKey { num_tokens, num_seqs, num_logits, .. } = padded(key, &limits);
            (num_tokens, num_seqs, num_logits)
        };
        assert_eq!(to(decode(3)), (4, 4, 4));
        assert_eq!(to(decode(9)), (16, 16, 10));
        assert_eq!(to(decode(17)), (20, 20, 17));
        assert_eq!(to(StepKey { num_logits: 0, ..decode(3) }), (4, 4, 0));
        let prompt = warmup_shapes(&[7], &[])[0];
        assert_eq!(padded(prompt, &limits), prompt);
    }
}
