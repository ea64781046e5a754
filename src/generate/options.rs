//! How an answer is generated, as a program or a request in JSON says it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::adapter_registry::Adapter;
use qwen_core::engine::Speculation;
use qwen_core::engine::sampling::{LogitsProcessor, Mirostat, Preset, Processors, Stage};
use serde::{Deserialize, Deserializer, Serialize};

use crate::grammar::Grammar;

/// DRY: penalties on the repetition of whole sequences. See
/// [`core::engine::sampling::Dry`](qwen_core::engine::sampling::Dry) for its formula; here the breakers are texts.
///
/// ```
/// use qwen::{Dry, GenerateOptions};
/// let options = GenerateOptions::new().dry(Dry::new(0.8).sequence_breakers(["\n"]));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct Dry {
    /// The penalty of a repetition of `allowed_length` tokens; 0 is off. Default 0.
    pub multiplier: f32,
    /// How fast the penalty grows with each further token, at least 1. Default 1.75.
    pub base: f32,
    /// The shortest repetition that is penalised, at least 1. Default 2.
    pub allowed_length: usize,
    /// How many of the last tokens of prompt and answer are searched; 0 for all. Default 0.
    pub range: usize,
    /// Texts that no repetition reaches over: every token that contains one of them is a border. Default a line break,
    /// `:`, `"` and `*`.
    pub sequence_breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        let sequence_breakers = ["\n", ":", "\"", "*"].map(String::from).into();
        Dry { multiplier: 0.0, base: 1.75, allowed_length: 2, range: 0, sequence_breakers }
    }
}

impl Dry {
    /// The defaults with this multiplier; 0.8 is usual.
    pub fn new(multiplier: f32) -> Self {
        Dry { multiplier, ..Self::default() }
    }

    /// See [`Dry::base`].
    pub fn base(mut self, base: f32) -> Self {
        self.base = base;
        self
    }

    /// See [`Dry::allowed_length`].
    pub fn allowed_length(mut self, tokens: usize) -> Self {
        self.allowed_length = tokens;
        self
    }

    /// See [`Dry::range`].
    pub fn range(mut self, tokens: usize) -> Self {
        self.range = tokens;
        self
    }

    /// See [`Dry::sequence_breakers`].
    pub fn sequence_breakers<T: Into<String>>(mut self, breakers: impl IntoIterator<Item = T>) -> Self {
        self.sequence_breakers = breakers.into_iter().map(Into::into).collect();
        self
    }
}

/// How an answer is generated. Options that are not set follow the checkpoint's `generation_config.json`, as far as it
/// has them. `docs/generation.md` explains the chain that chooses tokens, with the bounds and the source of each
/// parameter.
///
/// ```
/// use qwen::GenerateOptions;
/// let options = GenerateOptions::new().temperature(0.7).top_p(0.8).top_k(20).seed(1).max_new_tokens(64);
/// assert_eq!(options.temperature, Some(0.7));
/// ```
///
/// With serde they can be read from JSON or other formats, as in a server's requests: missing keys follow the
/// checkpoint, and unknown keys are refused.
///
/// ```
/// use qwen::GenerateOptions;
/// let options: GenerateOptions = serde_json::from_str(r#"{"max_new_tokens": 64, "top_p": 0.8}"#)?;
/// assert_eq!(options, GenerateOptions::new().max_new_tokens(64).top_p(0.8));
/// assert!(serde_json::from_str::<GenerateOptions>(r#"{"max_tokens": 64}"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The maximum number of tokens in the answer. With 0 the prompt is computed, so that requests that begin with it are
    /// answered sooner, and the answer is empty.
    pub max_new_tokens: Option<usize>,
    /// The answer has at least this many tokens: those that would end it are not chosen before.
    pub min_new_tokens: Option<usize>,
    /// Randomness of sampling: logits are divided by it. 0 always takes the most likely token.
    pub temperature: Option<f32>,
    /// The temperature varies by this much around its value: down where the model is sure, up where it is not. 0 is off.
    pub dynatemp_range: Option<f32>,
    /// The power of the relative entropy by which it varies. 1 when not set.
    pub dynatemp_exponent: Option<f32>,
    /// Sample from this many of the most likely tokens. 0 keeps all tokens.
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens whose probabilities add up to this. 1 keeps all tokens.
    pub top_p: Option<f32>,
    /// Sample from tokens that are at least this fraction as probable as the most likely one. 0 keeps all tokens.
    pub min_p: Option<f32>,
    /// Sample from the tokens whose surprise is nearest to the entropy, until their probabilities add up to this. 1
    /// keeps all tokens.
    pub typical_p: Option<f32>,
    /// Sample from logits within this many standard deviations of the largest one. 0 keeps all tokens.
    pub top_n_sigma: Option<f32>,
    /// Drop tokens below this probability. 0 keeps all tokens.
    pub epsilon_cutoff: Option<f32>,
    /// Drop tokens whose probability is below both this and `sqrt(eta_cutoff) * exp(-entropy)`. 0 keeps all tokens.
    pub eta_cutoff: Option<f32>,
    /// How often the most likely tokens are excluded (XTC), as a probability. 0 is off.
    pub xtc_probability: Option<f32>,
    /// Of the tokens that are at least this probable, XTC leaves only the least likely one. 0.1 when not set.
    pub xtc_threshold: Option<f32>,
    /// Keep the surprise of tokens near a target (mirostat 2), in place of all cuts.
    pub mirostat: Option<Mirostat>,
    /// Makes tokens of the prompt and of the answer so far less likely, if above 1. 1 does nothing.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that the answer has. 0 does nothing.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token for each time that the answer has it. 0 does nothing.
    pub frequency_penalty: Option<f32>,
    /// All three penalties count this many of the last tokens of prompt and answer, in place of what the preset says.
    pub penalty_window: Option<usize>,
    /// Penalties on sequences that repeat.
    pub dry: Option<Dry>,
    /// Added to the logits of these ids.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The only ids that may be chosen; empty for all.
    pub allowed_token_ids: Vec<u32>,
    /// Ids that are never chosen.
    pub banned_token_ids: Vec<u32>,
    /// Sequences of ids that never become complete.
    pub banned_sequences: Vec<Vec<u32>>,
    /// Texts that are not written in their usual tokens, at the beginning of a word or within one. Other tokens can
    /// spell them still.
    pub bad_words: Vec<String>,
    /// No sequence of this many tokens comes twice in prompt and answer. 0 is off.
    pub no_repeat_ngram_size: Option<usize>,
    /// What the answer begins with.
    pub forced_token_ids: Vec<u32>,
    /// Whose order of stages, and whose meaning of penalties; transformers' when not set.
    pub preset: Preset,
    /// The stages in this order, in place of the preset's.
    pub stages: Option<Vec<Stage>>,
    /// The program's own stages.
    #[serde(skip)]
    pub processors: Processors,
    /// Seed for sampling. When not set, each answer draws one of its own, which [`Stats::seed`](crate::Stats::seed)
    /// names.
    pub seed: Option<u64>,
    /// Token ids that end the answer, in addition to those of the checkpoint.
    pub stop_token_ids: Vec<u32>,
    /// Texts that end the answer before they begin: nothing of them is shown, wherever tokens begin and end. The first
    /// one that is complete ends the answer. At most 128, none of them empty. In JSON a single one may be a string.
    #[serde(deserialize_with = "one_or_several")]
    pub stop: Vec<String>,
    /// Continue after the checkpoint's stop tokens.
    pub ignore_eos: bool,
    /// What the answer has to be: see [`Grammar`].
    pub grammar: Option<Grammar>,
    /// Give the log-probabilities of each token and of this many of the most likely ones, at most 100, as the model gives
    /// them: before penalties, cuts and the temperature. See [`TokenStream::logprobs`](crate::TokenStream::logprobs).
    pub logprobs: Option<usize>,
    /// Whether the next tokens are guessed and checked several at a time: by the prompt, which makes answers that repeat
    /// parts of it faster, or by a draft model. Tokens are the same with and without. Default [`Speculation::Off`].
    pub speculation: Speculation,
    /// Requests share the K/V of common prompt prefixes only with those of the same salt. Give each tenant one where
    /// nobody may notice, by the time of the first token, what others asked.
    pub cache_salt: String,
    /// The low-rank adapter that the answer is computed with, which the engine has loaded
    /// ([`Engine::load_adapter`](crate::Engine::load_adapter)). Default none: the model alone. Not part of the options as
    /// data.
    #[serde(skip)]
    pub adapter: Option<Adapter>,
    /// Whose request it is: where more requests wait than can run, users take turns, however many each of them sends.
    pub user: String,
    /// Requests of a higher priority run first, and pause last when memory runs out. Default 0.
    pub priority: i32,
    /// The answer fails with [`ErrorKind::DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) when it is not complete
    /// after this time, also while it waits. What has arrived until then stays. In JSON a number of seconds. Default any
    /// time.
    #[serde(with = "qwen_core::seconds::optional", rename = "timeout_seconds")]
    pub timeout: Option<Duration>,
}

/// A setter for each field, named as the field; `some` for fields that may not be set.
macro_rules! setters {
    ($($kind:tt $name:ident: $type:ty;)*) => {
        $(setters!(@ $kind $name: $type);)*
    };
    (@ some $name:ident: $type:ty) => {
        #[doc = concat!("See [`GenerateOptions::", stringify!($name), "`].")]
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = Some($name);
            self
        }
    };
    (@ plain $name:ident: $type:ty) => {
        #[doc = concat!("See [`GenerateOptions::", stringify!($name), "`].")]
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = $name;
            self
        }
    };
    (@ into $name:ident: $type:ty) => {
        #[doc = concat!("See [`GenerateOptions::", stringify!($name), "`].")]
        pub fn $name(mut self, $name: impl Into<$type>) -> Self {
            self.$name = $name.into();
            self
        }
    };
}

impl GenerateOptions {
    /// All options follow the checkpoint.
    pub fn new() -> Self {
        Self::default()
    }

    /// Take the most likely token each time, without penalty.
    pub fn greedy(self) -> Self {
        self.temperature(0.0).repetition_penalty(1.0)
    }

    setters! {
        some max_new_tokens: usize;
        some min_new_tokens: usize;
        some temperature: f32;
        some dynatemp_range: f32;
        some dynatemp_exponent: f32;
        some top_k: usize;
        some top_p: f32;
        some min_p: f32;
        some typical_p: f32;
        some top_n_sigma: f32;
        some epsilon_cutoff: f32;
        some eta_cutoff: f32;
        some xtc_probability: f32;
        some xtc_threshold: f32;
        some mirostat: Mirostat;
        some repetition_penalty: f32;
        some presence_penalty: f32;
        some frequency_penalty: f32;
        some penalty_window: usize;
        some dry: Dry;
        into logit_bias: BTreeMap<u32, f32>;
        into allowed_token_ids: Vec<u32>;
        into banned_token_ids: Vec<u32>;
        into banned_sequences: Vec<Vec<u32>>;
        some no_repeat_ngram_size: usize;
        into forced_token_ids: Vec<u32>;
        plain preset: Preset;
        into stages: Option<Vec<Stage>>;
        some seed: u64;
        into stop_token_ids: Vec<u32>;
        plain ignore_eos: bool;
        some grammar: Grammar;
        some logprobs: usize;
        plain speculation: Speculation;
        into cache_salt: String;
        into user: String;
        plain priority: i32;
        some timeout: Duration;
    }

    /// See [`GenerateOptions::stop`](field@GenerateOptions::stop).
    ///
    /// ```
    /// use qwen::{Engine, FinishReason, GenerateOptions, StoppedBy};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut stream = engine.generate("What is 3 + 4?", &GenerateOptions::new().greedy().stop(["is 7", "\n\n"]))?;
    /// let text: String = stream.by_ref().collect::<qwen::Result<_>>()?;
    /// # if stream.finish_reason() == Some(FinishReason::StopString) {
    /// assert_eq!(stream.stopped_by(), Some(&StoppedBy::String("is 7".into())));
    /// # }
    /// assert!(!text.contains("is 7"));
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn stop(mut self, strings: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = strings.into_iter().map(Into::into).collect();
        self
    }

    /// See [`GenerateOptions::adapter`](field@GenerateOptions::adapter).
    pub fn adapter<'a>(mut self, adapter: impl Into<Option<&'a Adapter>>) -> Self {
        self.adapter = adapter.into().cloned();
        self
    }

    /// See [`GenerateOptions::bad_words`].
    pub fn bad_words<T: Into<String>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.bad_words = words.into_iter().map(Into::into).collect();
        self
    }

    /// Add a stage of the program's own, which runs as [`Stage::Custom`], after those that were added before.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use qwen::{GenerateOptions, History, LogitsProcessor};
    ///
    /// /// Only even ids.
    /// #[derive(Debug)]
    /// struct Even;
    ///
    /// impl LogitsProcessor for Even {
    ///     fn process(&self, _: &History<'_>, logits: &mut [f32]) {
    ///         logits.iter_mut().skip(1).step_by(2).for_each(|logit| *logit = f32::NEG_INFINITY);
    ///     }
    /// }
    ///
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let options = GenerateOptions::new().processor(Arc::new(Even)).max_new_tokens(8);
    /// for id in engine.generate_ids([1, 2, 3], &options)? {
    ///     assert_eq!(id? % 2, 0);
    /// }
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn processor(mut self, processor: Arc<dyn LogitsProcessor>) -> Self {
        self.processors.push(processor);
        self
    }
}

fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a list of strings")]
    enum Strings {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Strings::deserialize(deserializer)? {
        Strings::One(string) => vec![string],
        Strings::Several(strings) => strings,
    })
}
