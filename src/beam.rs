//! Beam search: several answers to one prompt grow side by side, and after each token the likeliest of all their
//! continuations go on.
//!
//! Greedy decoding takes the likeliest token each time, and so may miss an answer that is likelier as a whole but begins
//! with another token. Beam search looks a little around: it finds likelier texts, which suits translations and other
//! answers of which there is one; for open questions, sampling gives better ones. Which continuations count, how answers
//! are scored and when the search ends is as in transformers' `generate` with `num_beams`, in double precision.
//!
//! A beam's step is a request for the likeliest tokens after it. What beams have in common, and what they had before the
//! step, is in the prefix cache.

mod options;

use qwen_core::engine::{Event, FinishReason, GenerateParams, LogprobsParams, Request};
use qwen_core::numerics::float_env::FloatEnv;
use serde::{Deserialize, Serialize};

pub use crate::beam::options::{BeamOptions, EarlyStopping};
use crate::engine::Engine;
use crate::error::Result;
use crate::generate::{max_new_tokens, stop_token_ids};
use crate::requests;
use crate::stream::StoppedBy;

/// An answer of [`Engine::beam_search`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Beam {
    /// What it says, without special tokens. Empty from an engine without a tokenizer.
    pub text: String,
    /// Its ids, without the stop token.
    pub ids: Vec<u32>,
    /// By which answers compare: `logprob` divided by the number of tokens, the stop token included, to the power of the
    /// `length_penalty`.
    pub score: f64,
    /// The natural logarithm of its probability, the stop token included.
    pub logprob: f64,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The token that ended it, if one did.
    pub stopped_by: Option<StoppedBy>,
}

impl Engine {
    /// Search for likely answers to `prompt`, which is taken as in [`Engine::generate`]: the best first.
    ///
    /// Probabilities are the model's own: temperature, penalties and cuts of the checkpoint do not count. Of equally likely
    /// continuations those of the better beam, then those with the lower ids come first.
    ///
    /// ```
    /// use qwen::BeamOptions;
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let options = BeamOptions::new(4).num_return_sequences(2).max_new_tokens(12);
    /// let beams = engine.beam_search("Anna is 31 years old and", &options)?;
    /// for beam in &beams {
    ///     println!("{:.3} {:?} ({})", beam.score, beam.text, beam.finish_reason);
    /// }
    /// # assert!(beams.len() == 2 && beams[0].score >= beams[1].score);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::generate`], and for options out of their bounds.
    pub fn beam_search(&self, prompt: &str, options: &BeamOptions) -> Result<Vec<Beam>> {
        let ids = self.tokenizer()?.encode_prompt(prompt, self.prompt_room())?;
        self.beam_search_ids(&ids, options)
    }

    /// [`Engine::beam_search`] for token ids.
    ///
    /// # Errors
    /// As [`Engine::generate_ids`], and for options out of their bounds.
    pub fn beam_search_ids(&self, prompt: &[u32], options: &BeamOptions) -> Result<Vec<Beam>> {
        let _float_env = FloatEnv::enter();
        options.check()?;
        let limits = self.worker().limits();
        let asked = max_new_tokens(options.max_new_tokens, prompt.len(), self.generation_config())?;
        Request::generate(prompt, GenerateParams::new().max_new_tokens(asked)).check(limits)?;
        let room = limits.max_model_len - prompt.len();
        let (max_len, full) = match asked {
            Some(asked) if asked <= room => (asked, FinishReason::Length),
            _ => (room, FinishReason::ContextFull),
        };
        let mut stops = stop_token_ids(&options.stop_token_ids, options.ignore_eos, self)?;
        stops.sort_unstable();
        stops.dedup();
        // Of a beam's tokens no more can be among the best `num_beams` that end it, or that do not.
        let top = options.num_beams.saturating_add(stops.len()).min(limits.num_token_ids.min(limits.vocab_size));
        let adapter = self.hold(self.default_adapter())?;
        let mut search = Search::new(options, stops, max_len);
        while !search.is_over() {
            let requests = search.running.iter().map(|beam| {
                // How likely this token is does not matter.
                let params = LogprobsParams::new([0]).top(top);
                Request::logprobs([prompt, &beam.ids].concat(), params).adapter(adapter.clone())
            });
            let mut tops = vec![Vec::new(); search.running.len()];
            requests::run(self.worker(), requests, |beam, event| {
                if let (Event::Scored(found), Some(top)) = (event, tops.get_mut(beam)) {
                    *top = found.top.iter().map(|token| (token.id, token.logprob)).collect();
                }
            })?;
            search.advance(&tops);
        }
        let tokenizer = self.tokenizer().ok();
        let beam = |Hypothesis { mut ids, logprob, score }: Hypothesis| {
            let stop = ids.pop_if(|last| search.stops.contains(last));
            Beam {
                text: tokenizer.map(|tokenizer| tokenizer.decode(&ids, true)).unwrap_or_default(),
                ids,
                score,
                logprob,
                finish_reason: if stop.is_some() { FinishReason::Stop } else { full },
                stopped_by: stop.map(StoppedBy::Token),
            }
        };
        Ok(search.complete.into_iter().take(options.num_return_sequences).map(beam).collect())
    }
}

/// An answer, complete or not.
#[derive(Debug, Clone, PartialEq)]
struct Hypothesis {
    ids: Vec<u32>,
    logprob: f64,
    score: f64,
}

/// The state of a search, apart from any model.
#[derive(Debug)]
struct Search<'a> {
    options: &'a BeamOptions,
    stops: Vec<u32>,
    /// The most tokens of an answer.
    max_len: usize,
    /// Tokens of the running beams.
    len: usize,
    /// The likeliest first.
    running: Vec<Hypothesis>,
    /// Of the highest score first, at most `num_beams`.
    complete: Vec<Hypothesis>,
}

impl<'a> Search<'a> {
    fn new(options: &'a BeamOptions, stops: Vec<u32>, max_len: usize) -> Self {
        let running = vec![Hypothesis { ids: Vec::new(), logprob: 0.0, score: 0.0 }];
        Search { options, stops, max_len, len: 0, running, complete: Vec::new() }
    }

    fn score(&self, logprob: f64, len: usize) -> f64 {
        logprob / (len as f64).powf(self.options.length_penalty)
    }

    /// Go on with the likeliest tokens after each running beam.
    fn advance(&mut self, tops: &[Vec<(u32, f64)>]) {
        self.len += 1;
        let mut candidates: Vec<(f64, usize, u32)> = Vec::new();
        for (index, (beam, top)) in self.running.iter().zip(tops).enumerate() {
            candidates.extend(top.iter().map(|(id, logprob)| (beam.logprob + logprob, index, *id)));
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let is_last = self.len == self.max_len;
        let (mut running, num_beams) = (Vec::new(), self.options.num_beams);
        for (rank, &(logprob, index, id)) in candidates.iter().enumerate() {
            let is_complete = is_last || self.stops.contains(&id);
            // An answer that ends counts only where it would have gone on.
            if if is_complete { rank >= num_beams } else { running.len() == num_beams } {
                continue;
            }
            let ids = self.running.get(index).into_iter().flat_map(|beam| &beam.ids).copied().chain([id]).collect();
            let continued = Hypothesis { ids, logprob, score: self.score(logprob, self.len) };
            if is_complete { &mut self.complete } else { &mut running }.push(continued);
        }
        self.running = running;
        // A stable sort: of equals the earlier one stays.
        self.complete.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.complete.truncate(num_beams);
    }

    fn is_over(&self) -> bool {
        let Some(best) = self.running.first() else { return true };
        let Some(worst) = self.complete.get(self.options.num_beams - 1) else { return false };
        let len = match self.options.early_stopping {
            EarlyStopping::True => return true,
            // A longer answer is divided by more.
            EarlyStopping::Never if self.options.length_penalty > 0.0 => self.max_len,
            _ => self.len,
        };
        self.score(best.logprob, len) <= worst.score
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens of the model below; 0 ends an answer.
    const VOCAB: u32 = 4;

    /// A log-probability that depends on all tokens before it: a distribution, likelier to end the longer it is.
    fn logprobs(seed: u64, ids: &[u32]) -> Vec<(u32, f64)> {
        let mut state =
            ids.iter().fold(seed, |state, id| state.wrapping_mul(6_364_136_223_846_793_005) ^ u64::from(id + 1));
        let weights: Vec<f64> = (0..VOCAB)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                1.0 + (state >> 40) as f64
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        (0..).zip(&weights).map(|(id, weight)| (id, (weight / sum).ln())).collect()
    }

    fn search(seed: u64, max_len: usize, options: &BeamOptions) -> Vec<Hypothesis> {
        let mut search = Search::new(options, vec![0], max_len);
        while !search.is_over() {
            let tops: Vec<_> = search.running.iter().map(|beam| logprobs(seed, &beam.ids)).collect();
            search.advance(&tops);
        }
        search.complete
    }

    /// All complete answers, the best first.
    fn all(seed: u64, max_len: usize, length_penalty: f64) -> Vec<Hypothesis> {
        let mut open = vec![(Vec::new(), 0.0)];
        let mut complete = Vec::new();
        while let Some((ids, sum)) = open.pop() {
            for (id, logprob) in logprobs(seed, &ids) {
                let (ids, logprob) = ([ids.as_slice(), &[id]].concat(), sum + logprob);
                if id == 0 || ids.len() == max_len {
                    let score = logprob / (ids.len() as f64).powf(length_penalty);
                    complete.push(Hypothesis { ids, logprob, score });
                } else {
                    open.push((ids, logprob));
                }
            }
        }
        complete.sort_by(|a, b| b.score.total_cmp(&a.score));
        complete
    }

    proptest! {
        #[test]
        fn with_beams_for_all_answers_the_best_are_found(seed: u64, length_penalty in -1.0..2.0) {
            let expected = all(seed, 4, length_penalty);
            let options = BeamOptions::new(expected.len()).length_penalty(length_penalty).early_stopping(EarlyStopping::Never);
            let found = search(seed, 4, &options);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn what_never_stopping_finds_is_no_worse(seed: u64, beams in 1usize..6, length_penalty in -1.0..2.0) {
            let best = |early: EarlyStopping| {
                let found = search(seed, 6, &BeamOptions::new(beams).length_penalty(length_penalty).early_stopping(early));
                prop_assert!(found.len() <= beams && found.windows(2).all(|two| two[0].score >= two[1].score));
                Ok(found[0].score)
            };
            let (never, normal, early) = (best(EarlyStopping::Never)?, best(false.into())?, best(true.into())?);
            prop_assert!(never >= normal && normal >= early, "{} {} {}", never, normal, early);
        }
    }
}
