//! From a program's options and a checkpoint's defaults to a request.

use std::time::Instant;

use qwen_core::GenerationConfig;
use qwen_core::engine::sampling::{self, SamplingParams, SequenceBreakers, Stage, fresh_seed};
use qwen_core::engine::{GenerateParams, Request, Speculation};

use super::options::GenerateOptions;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::words;

/// Each of them is searched for in every answer, for each byte.
const MAX_STOP_STRINGS: usize = 128;

/// The tokens that end an answer: these, and those of the checkpoint unless they are ignored.
///
/// # Errors
/// Where only the checkpoint can say, and its value is wrong.
pub(crate) fn stop_token_ids(ids: &[u32], ignore_eos: bool, engine: &Engine) -> Result<Vec<u32>> {
    let mut ids = ids.to_vec();
    if !ignore_eos {
        if ids.is_empty() {
            engine.generation_config().check("eos_token_id")?;
        }
        ids.extend_from_slice(engine.stop_token_ids());
    }
    Ok(ids)
}

/// The most tokens of an answer: what the caller or else the checkpoint says, if they do.
///
/// # Errors
/// When the prompt alone reaches the checkpoint's `max_length`, and when the value that counts is wrong.
pub(crate) fn max_new_tokens(
    asked: Option<usize>,
    prompt_len: usize,
    defaults: &GenerationConfig,
) -> Result<Option<usize>> {
    if asked.is_none() {
        defaults.check("max_new_tokens")?;
        if defaults.max_new_tokens.is_none() {
            defaults.check("max_length")?;
        }
    }
    // As in transformers, `max_length` includes the prompt, and `max_new_tokens` overrides it.
    match (asked.or(defaults.max_new_tokens), defaults.max_length) {
        (None, Some(max_length)) if prompt_len >= max_length => {
            let reason = format!(
                "generation_config.json allows {max_length} tokens of prompt and answer, the prompt has {prompt_len}: \
                 set max_new_tokens"
            );
            Err(qwen_core::Error::argument("max_length", reason).into())
        }
        (None, Some(max_length)) => Ok(Some(max_length - prompt_len)),
        (Some(0), _) if asked.is_none() => {
            let reason = "generation_config.json has 0, so that every answer would be empty: set it";
            Err(qwen_core::Error::argument("max_new_tokens", reason).into())
        }
        (max_new_tokens, _) => Ok(max_new_tokens),
    }
}

impl GenerateOptions {
    /// The request for `prompt`, and the seed of its draws, if there are any. Options that the caller did not set are
    /// taken from the checkpoint, if the request uses them at all.
    ///
    /// # Errors
    /// When the prompt alone reaches the checkpoint's `max_length`, when a checkpoint value that the request uses is
    /// wrong, and for texts without a tokenizer.
    pub(crate) fn request(&self, prompt: Vec<u32>, engine: &Engine) -> Result<(Request, Option<u64>)> {
        self.check_stop()?;
        if self.speculation == Speculation::Draft && !engine.has_draft_model() {
            let reason = "the engine has no draft model: load it with `EngineOptions::draft`";
            return Err(qwen_core::Error::argument("speculation", reason).into());
        }
        let stop_token_ids = stop_token_ids(&self.stop_token_ids, self.ignore_eos, engine)?;
        let sampling = self.sampling(engine)?;
        let seed = (!sampling.is_greedy()).then_some(sampling.seed);
        let max_new_tokens = max_new_tokens(self.max_new_tokens, prompt.len(), engine.generation_config())?;
        let mut params = GenerateParams::new();
        if let Some(grammar) = &self.grammar {
            params = params.constraint(engine.constraint(grammar, &stop_token_ids)?);
        }
        let params = params.max_new_tokens(max_new_tokens).stop_token_ids(stop_token_ids);
        let request =
            Request::generate(prompt, params.sampling(sampling).logprobs(self.logprobs).speculation(self.speculation));
        let request = request.cache_salt(self.cache_salt.as_str()).user(self.user.as_str()).priority(self.priority);
        let request = request.adapter(engine.hold(self.adapter.as_ref().or(engine.default_adapter()))?);
        // A time that the clock cannot hold never comes.
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok((request.deadline(deadline), seed))
    }

    fn check_stop(&self) -> Result<()> {
        let reason = match self.stop.len() {
            len if len > MAX_STOP_STRINGS => format!("there may be {MAX_STOP_STRINGS} stop strings, there are {len}"),
            _ if self.stop.iter().any(String::is_empty) => "an empty string would end every answer at once".into(),
            _ => return Ok(()),
        };
        Err(qwen_core::Error::argument("stop", reason).into())
    }

    fn sampling(&self, engine: &Engine) -> Result<SamplingParams> {
        let defaults = engine.generation_config();
        let or_default = |field: &str, set: Option<f32>, default: f32| -> Result<f32> {
            match set {
                Some(value) => Ok(value),
                None => defaults.check(field).map(|()| default).map_err(Error::from),
            }
        };
        // Where the program lists the stages, the file's values for others are not used.
        let has = |stage| self.stages.as_ref().is_none_or(|stages| stages.contains(&stage));
        let temperature = match self.temperature {
            // Setting a temperature means sampling.
            Some(temperature) => temperature,
            // Without do_sample the file's temperature is not used.
            None => {
                defaults.check("do_sample")?;
                match defaults.do_sample {
                    true if has(Stage::Temperature) => or_default("temperature", None, defaults.temperature)?,
                    true => 1.0,
                    false => 0.0,
                }
            }
        };
        // Nor are its cuts where nothing is drawn, or where mirostat takes their place.
        let cuts = temperature >= SamplingParams::GREEDY_BELOW && self.mirostat.is_none();
        let mut chosen = SamplingParams::new();
        let neutral = SamplingParams::new();
        chosen.temperature = temperature;
        chosen.repetition_penalty = match has(Stage::RepetitionPenalty) {
            true => or_default("repetition_penalty", self.repetition_penalty, defaults.repetition_penalty)?,
            false => self.repetition_penalty.unwrap_or(neutral.repetition_penalty),
        };
        chosen.top_k = match self.top_k {
            Some(top_k) => top_k,
            None if cuts && has(Stage::TopK) => defaults.check("top_k").map(|()| defaults.top_k)?,
            None => neutral.top_k,
        };
        let cut = |stage, field: &str, set: Option<f32>, default: f32, neutral: f32| match cuts && has(stage) {
            true => or_default(field, set, default),
            false => Ok(set.unwrap_or(neutral)),
        };
        chosen.top_p = cut(Stage::TopP, "top_p", self.top_p, defaults.top_p, neutral.top_p)?;
        chosen.min_p = cut(Stage::MinP, "min_p", self.min_p, defaults.min_p, neutral.min_p)?;
        chosen.typical_p = cut(Stage::TypicalP, "typical_p", self.typical_p, defaults.typical_p, neutral.typical_p)?;
        let (epsilon, eta) = (defaults.epsilon_cutoff, defaults.eta_cutoff);
        chosen.epsilon_cutoff = cut(Stage::EpsilonCutoff, "epsilon_cutoff", self.epsilon_cutoff, epsilon, 0.0)?;
        chosen.eta_cutoff = cut(Stage::EtaCutoff, "eta_cutoff", self.eta_cutoff, eta, 0.0)?;
        chosen.dynatemp_range = self.dynatemp_range.unwrap_or(neutral.dynatemp_range);
        chosen.dynatemp_exponent = self.dynatemp_exponent.unwrap_or(neutral.dynatemp_exponent);
        chosen.top_n_sigma = self.top_n_sigma.unwrap_or(neutral.top_n_sigma);
        chosen.xtc_probability = self.xtc_probability.unwrap_or(neutral.xtc_probability);
        chosen.xtc_threshold = self.xtc_threshold.unwrap_or(neutral.xtc_threshold);
        chosen.mirostat = self.mirostat;
        chosen.presence_penalty = self.presence_penalty.unwrap_or(neutral.presence_penalty);
        chosen.frequency_penalty = self.frequency_penalty.unwrap_or(neutral.frequency_penalty);
        chosen.penalty_window = self.penalty_window;
        if let Some(dry) = &self.dry {
            let breakers = match dry.sequence_breakers.as_slice() {
                [] => SequenceBreakers::default(),
                texts => engine.breakers().of(texts, engine.tokenizer()?)?,
            };
            let params = sampling::Dry::new(dry.multiplier).base(dry.base).allowed_length(dry.allowed_length);
            chosen.dry = Some(params.range(dry.range).sequence_breakers(breakers));
        }
        chosen.logit_bias = self.logit_bias.clone();
        chosen.allowed_token_ids = self.allowed_token_ids.clone();
        chosen.banned_token_ids = self.banned_token_ids.clone();
        chosen.banned_sequences = self.banned_sequences.clone();
        for word in &self.bad_words {
            chosen.banned_sequences.extend(words::spellings(word, engine.tokenizer()?)?);
        }
        let count = |field: &str, set: Option<usize>, default: usize| match set {
            Some(count) => Ok(count),
            None => defaults.check(field).map(|()| default),
        };
        chosen.no_repeat_ngram_size =
            count("no_repeat_ngram_size", self.no_repeat_ngram_size, defaults.no_repeat_ngram_size)?;
        chosen.forced_token_ids = self.forced_token_ids.clone();
        chosen.min_new_tokens = count("min_new_tokens", self.min_new_tokens, defaults.min_new_tokens)?;
        chosen.preset = self.preset;
        chosen.stages = self.stages.clone();
        chosen.processors = self.processors.clone();
        chosen.seed = self.seed.unwrap_or_else(fresh_seed);
        Ok(chosen)
    }
}
