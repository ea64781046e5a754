//! How the next token is chosen: every parameter, with its bounds.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dry::Dry;
use super::processor::{LogitsProcessor, Processors};
use super::stage::{Preset, Stage};
use crate::error::{Error, Result};
use crate::numerics::float_env::FloatEnv;

/// Mirostat 2 (Basu et al. 2021): the surprise of each token is kept near a target, in place of all cuts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct Mirostat {
    /// The surprise of a token to aim at, in bits. Above 0, at most 100. Default 5.
    pub tau: f32,
    /// How fast the bound follows. 0 to 1. Default 0.1.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Mirostat { tau: 5.0, eta: 0.1 }
    }
}

impl Mirostat {
    /// Aim at `tau` bits and learn at the rate `eta`.
    pub fn new(tau: f32, eta: f32) -> Self {
        Mirostat { tau, eta }
    }
}

/// How the next token is chosen. [`SamplingParams::default`] is greedy.
///
/// ```
/// use qwen_core::engine::sampling::SamplingParams;
/// let params = SamplingParams::new().temperature(0.7).top_p(0.8).top_k(20).seed(1);
/// assert!(params.check().is_ok());
/// assert!(params.top_p(1.5).check().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct SamplingParams {
    /// Divides the logits. Below [`SamplingParams::GREEDY_BELOW`] the most likely token is taken, and the stages that
    /// only choose among the most likely ones are skipped. Finite and at least 0. Default 0.
    pub temperature: f32,
    /// The temperature is between `temperature - dynatemp_range`, where the model is sure, and `temperature +
    /// dynatemp_range`, where all tokens are equally probable; by the entropy of the tokens in the choice (dynamic
    /// temperature). Finite and at least 0, which is off. Default 0.
    pub dynatemp_range: f32,
    /// The power of the relative entropy that decides between the two. 0 to 100. Default 1.
    pub dynatemp_exponent: f32,
    /// How many of the most likely tokens to keep; 0 keeps all. Default 0.
    pub top_k: usize,
    /// Keep the most likely tokens until their probabilities sum to this; 1 keeps all, 0 only the most likely one
    /// (Holtzman et al. 2019). Default 1.
    pub top_p: f32,
    /// Keep tokens that are at least this fraction as probable as the most likely one; 0 keeps all. 0 to 1 (Nguyen et
    /// al. 2024). Default 0.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the entropy, until their probabilities sum to this; 1 keeps all.
    /// Above 0, at most 1 (Meister et al. 2022). Default 1.
    pub typical_p: f32,
    /// Keep logits within this many standard deviations of the largest one; 0 keeps all. 0 to 1e6 (Tang et al. 2024).
    /// Default 0.
    pub top_n_sigma: f32,
    /// Drop tokens below this probability; 0 keeps all. 0 to 1, exclusive (Hewitt et al. 2022). Default 0.
    pub epsilon_cutoff: f32,
    /// Drop tokens whose probability is below both this and `sqrt(eta_cutoff) * exp(-entropy)`; 0 keeps all. 0 to 1,
    /// exclusive (Hewitt et al. 2022). Default 0.
    pub eta_cutoff: f32,
    /// How often the most likely tokens are excluded (XTC), as a probability; 0 is off. 0 to 1. Default 0.
    pub xtc_probability: f32,
    /// Of the tokens that are at least this probable, XTC leaves only the least likely one. 0 to 1; above 0.5 there are
    /// never two of them. Default 0.1.
    pub xtc_threshold: f32,
    /// Keep the surprise near a target, in place of all cuts.
    pub mirostat: Option<Mirostat>,
    /// Divides the positive and multiplies the negative logits of every token of the prompt and the answer (Keskar et
    /// al. 2019); 1 does nothing. Within [`SamplingParams::REPETITION_PENALTY`]. Default 1.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the answer has. -100 to 100. Default 0.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time that the answer has it. -100 to 100. Default 0.
    pub frequency_penalty: f32,
    /// All three penalties count this many of the last tokens of prompt and answer. Where it is not set, the preset
    /// says what they count.
    pub penalty_window: Option<usize>,
    /// Penalties on sequences that repeat.
    pub dry: Option<Dry>,
    /// Added to the logits of these ids. Finite.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The only ids that may be chosen; empty for all.
    pub allowed_token_ids: Vec<u32>,
    /// Ids that are never chosen.
    pub banned_token_ids: Vec<u32>,
    /// Sequences of ids that never become complete, in prompt and answer together. None is empty.
    pub banned_sequences: Vec<Vec<u32>>,
    /// No sequence of this many tokens comes twice in prompt and answer; 0 is off. Default 0.
    pub no_repeat_ngram_size: usize,
    /// What the answer begins with. These ids are taken whatever else is said.
    pub forced_token_ids: Vec<u32>,
    /// The answer has at least this many tokens: the ids that would end it are not chosen before. Default 0.
    pub min_new_tokens: usize,
    /// Whose order of stages, and whose meaning of penalties. Default transformers.
    pub preset: Preset,
    /// The stages in this order, in place of the preset's. It must have all stages whose parameters are set.
    pub stages: Option<Vec<Stage>>,
    /// The caller's own stages.
    #[serde(skip)]
    pub processors: Processors,
    /// The seed for sampling. Default 0.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            mirostat: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            dry: None,
            logit_bias: BTreeMap::new(),
            allowed_token_ids: Vec::new(),
            banned_token_ids: Vec::new(),
            banned_sequences: Vec::new(),
            no_repeat_ngram_size: 0,
            forced_token_ids: Vec::new(),
            min_new_tokens: 0,
            preset: Preset::Transformers,
            stages: None,
            processors: Processors::default(),
            seed: 0,
        }
    }
}

/// A setter for each field, named as the field.
macro_rules! setters {
    ($($name:ident: $type:ty $(, $into:ident)?;)*) => {
        $(setters!(@one $name: $type $(, $into)?);)*
    };
    (@one $name:ident: $type:ty) => {
        #[doc = concat!("See [`SamplingParams::", stringify!($name), "`].")]
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = $name;
            self
        }
    };
    (@one $name:ident: $type:ty, into) => {
        #[doc = concat!("See [`SamplingParams::", stringify!($name), "`].")]
        pub fn $name(mut self, $name: impl Into<$type>) -> Self {
            self.$name = $name.into();
            self
        }
    };
}

impl SamplingParams {
    /// The bounds of [`SamplingParams::repetition_penalty`]. Published models use 1 to 1.3.
    pub const REPETITION_PENALTY: RangeInclusive<f32> = 0.01..=100.0;

    /// Temperatures below this take the most likely token, as in vLLM: another one could only be drawn where its logit
    /// is as large up to rounding.
    pub const GREEDY_BELOW: f32 = 1e-5;

    /// The default: greedy.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        temperature: f32;
        dynatemp_range: f32;
        dynatemp_exponent: f32;
        top_k: usize;
        top_p: f32;
        min_p: f32;
        typical_p: f32;
        top_n_sigma: f32;
        epsilon_cutoff: f32;
        eta_cutoff: f32;
        xtc_probability: f32;
        xtc_threshold: f32;
        mirostat: Option<Mirostat>, into;
        repetition_penalty: f32;
        presence_penalty: f32;
        frequency_penalty: f32;
        penalty_window: Option<usize>, into;
        dry: Option<Dry>, into;
        logit_bias: BTreeMap<u32, f32>, into;
        allowed_token_ids: Vec<u32>, into;
        banned_token_ids: Vec<u32>, into;
        banned_sequences: Vec<Vec<u32>>, into;
        no_repeat_ngram_size: usize;
        forced_token_ids: Vec<u32>, into;
        min_new_tokens: usize;
        preset: Preset;
        stages: Option<Vec<Stage>>, into;
        seed: u64;
    }

    /// Add a stage of the caller's own, which runs as [`Stage::Custom`], after those that were added before.
    pub fn processor(mut self, processor: Arc<dyn LogitsProcessor>) -> Self {
        self.processors.push(processor);
        self
    }

    /// Whether the most likely token is taken, without sampling.
    pub fn is_greedy(&self) -> bool {
        // Both may drop the most likely token, which is the only one that `top_k` would keep.
        let may_drop_best = self.is_set(Stage::Xtc) || self.is_set(Stage::TypicalP);
        self.temperature < Self::GREEDY_BELOW || (self.top_k == 1 && !may_drop_best)
    }

    /// How many of the last tokens of prompt and answer the penalties count, if that is what they count.
    pub(super) fn window(&self) -> Option<usize> {
        self.penalty_window.or(self.preset.penalty_window())
    }

    /// Whether the parameters of a stage are other than neutral.
    pub(super) fn is_set(&self, stage: Stage) -> bool {
        match stage {
            Stage::LogitBias => !self.logit_bias.is_empty(),
            Stage::RepetitionPenalty => self.repetition_penalty != 1.0,
            Stage::FrequencyPenalty => self.frequency_penalty != 0.0,
            Stage::PresencePenalty => self.presence_penalty != 0.0,
            Stage::Dry => self.dry.as_ref().is_some_and(|dry| dry.multiplier > 0.0),
            Stage::Custom => !self.processors.is_empty(),
            Stage::TopNSigma => self.top_n_sigma > 0.0,
            Stage::Temperature => {
                (self.temperature != 1.0 || self.dynatemp_range > 0.0) && self.temperature >= Self::GREEDY_BELOW
            }
            Stage::TopK => self.top_k > 0,
            Stage::TopP => self.top_p < 1.0,
            Stage::MinP => self.min_p > 0.0,
            Stage::TypicalP => self.typical_p < 1.0,
            Stage::EpsilonCutoff => self.epsilon_cutoff > 0.0,
            Stage::EtaCutoff => self.eta_cutoff > 0.0,
            Stage::Xtc => self.xtc_probability > 0.0 && self.xtc_threshold <= 0.5,
        }
    }

    /// The stages that have an effect, in order.
    pub(super) fn active_stages(&self) -> Vec<Stage> {
        let stages = self.stages.as_deref().unwrap_or(self.preset.stages());
        let is_cold = self.temperature < Self::GREEDY_BELOW;
        let is_active = |stage: &&Stage| self.is_set(**stage) && (stage.changes_logits() || !is_cold);
        stages.iter().filter(is_active).copied().collect()
    }

    /// Check the bounds.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the parameter, its bound and the value.
    pub fn check(&self) -> Result<()> {
        let _float_env = FloatEnv::enter();
        let share = (0.0..=1.0, "0 to 1");
        let below_one = (0.0..=0.999_999_94, "at least 0 and below 1");
        let finite = (0.0..=f32::MAX, "finite and at least 0");
        let shift = (-100.0..=100.0, "-100 to 100");
        let sigmas = (0.0..=1e6, "0 to 1e6");
        let positive_share = (f32::from_bits(1)..=1.0, "above 0 and at most 1");
        for (name, value, (bounds, bound)) in [
            ("temperature", self.temperature, &finite),
            ("dynatemp_range", self.dynatemp_range, &finite),
            ("dynatemp_exponent", self.dynatemp_exponent, &(0.0..=100.0, "0 to 100")),
            ("top_p", self.top_p, &share),
            ("min_p", self.min_p, &share),
            ("typical_p", self.typical_p, &positive_share),
            ("top_n_sigma", self.top_n_sigma, &sigmas),
            ("epsilon_cutoff", self.epsilon_cutoff, &below_one),
            ("eta_cutoff", self.eta_cutoff, &below_one),
            ("xtc_probability", self.xtc_probability, &share),
            ("xtc_threshold", self.xtc_threshold, &share),
            ("repetition_penalty", self.repetition_penalty, &(Self::REPETITION_PENALTY, "0.01 to 100")),
            ("presence_penalty", self.presence_penalty, &shift),
            ("frequency_penalty", self.frequency_penalty, &shift),
        ] {
            within(name, value, bounds, bound)?;
        }
        if let Some(Mirostat { tau, eta }) = self.mirostat {
            within("mirostat.tau", tau, &(f32::from_bits(1)..=100.0), "above 0 and at most 100")?;
            within("mirostat.eta", eta, &(0.0..=1.0), "0 to 1")?;
        }
        if let Some(dry) = &self.dry {
            within("dry.multiplier", dry.multiplier, &(0.0..=1e6), "0 to 1e6")?;
            within("dry.base", dry.base, &(1.0..=100.0), "1 to 100")?;
            if dry.allowed_length == 0 {
                return Err(Error::argument("dry.allowed_length", "must be at least 1, is 0"));
            }
            if dry.sequence_breakers.has_empty() {
                return Err(Error::argument("dry.sequence_breakers", "must not have an empty sequence"));
            }
        }
        for (id, bias) in &self.logit_bias {
            if !bias.is_finite() {
                return Err(Error::argument("logit_bias", format!("must be finite, is {bias:?} for id {id}")));
            }
        }
        if self.banned_sequences.iter().any(Vec::is_empty) {
            return Err(Error::argument("banned_sequences", "must not have an empty sequence"));
        }
        self.check_stages()
    }

    /// A parameter that no stage reads would be ignored without a word.
    fn check_stages(&self) -> Result<()> {
        for (index, stage) in self.stages.iter().flatten().enumerate() {
            if self.stages.iter().flatten().take(index).any(|earlier| earlier == stage) {
                return Err(Error::argument("stages", format!("must have each stage once, has `{stage}` twice")));
            }
        }
        for stage in Preset::Transformers.stages() {
            let is_set = self.is_set(*stage);
            if is_set && self.stages.as_ref().is_some_and(|stages| !stages.contains(stage)) {
                let reason = format!("must have the stage `{stage}`, whose parameters are set");
                return Err(Error::argument("stages", reason));
            }
            if is_set && self.mirostat.is_some() && stage.is_cut() {
                let reason = format!("takes the place of all cuts: `{stage}` must not be set beside it");
                return Err(Error::argument("mirostat", reason));
            }
        }
        Ok(())
    }

    /// Check that all ids are below `num_token_ids`. Sequences that can never come up are no error.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the parameter and the id.
    pub fn check_ids(&self, num_token_ids: usize) -> Result<()> {
        for (name, ids) in [
            ("allowed_token_ids", &self.allowed_token_ids),
            ("banned_token_ids", &self.banned_token_ids),
            ("forced_token_ids", &self.forced_token_ids),
            ("logit_bias", &self.logit_bias.keys().copied().collect()),
        ] {
            if let Some(id) = ids.iter().find(|id| **id as usize >= num_token_ids) {
                return Err(Error::argument(name, format!("ids must be below {num_token_ids}, one is {id}")));
            }
        }
        Ok(())
    }
}

fn within(name: &'static str, value: f32, bounds: &RangeInclusive<f32>, bound: &str) -> Result<()> {
    match bounds.contains(&value) {
        true => Ok(()),
        false => Err(Error::argument(name, format!("must be {bound}, is {value:?}"))),
    }
}
