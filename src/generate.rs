//! How to generate. The streams that answers arrive in are in `stream.rs`.

use std::time::Instant;

use qwen_core::GenerationConfig;
use qwen_core::engine::sampling::SamplingParams;
use qwen_core::engine::{GenerateParams, Request};
use qwen_core::numerics::float_env::FloatEnv;
use serde::{Deserialize, Deserializer, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::stop_strings::StopWatch;
use crate::stream::{TextStream, TokenStream};

impl Engine {
    /// Continue `prompt`, without a chat template. Control tokens in it take effect, and the tokenizer adds what it
    /// adds to every text, such as a BOS, as in transformers
    /// ([`encode_prompt`](qwen_tokenizer::Tokenizer::encode_prompt)).
    ///
    /// # Errors
    /// Without a tokenizer; for an empty prompt; for one longer than the context, which is detected cheaply, however
    /// long it is.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<TextStream> {
        let tokenizer = self.tokenizer()?;
        let ids = tokenizer.encode_prompt(prompt, self.prompt_room())?;
        self.stream_text(ids, options)
    }

    /// Continue a prompt of token ids. With [stop strings](GenerateOptions::stop), for which the model needs a tokenizer,
    /// the ids end with the one that completes a stop string.
    ///
    /// # Errors
    /// For parameters out of range; for an empty prompt, ids outside the vocabulary, or a prompt longer than the
    /// context; and [`qwen_core::Error::QueueFull`] when too many requests are waiting
    /// ([`crate::EngineOptions::max_waiting`]).
    pub fn generate_ids(&self, prompt: impl Into<Vec<u32>>, options: &GenerateOptions) -> Result<TokenStream> {
        let _float_env = FloatEnv::enter();
        let started = Instant::now();
        let prompt = prompt.into();
        let prompt_tokens = prompt.len();
        let request = options.request(prompt, self.generation_config(), self.stop_token_ids())?;
        let watch = match options.stop.as_slice() {
            [] => None,
            strings => Some(StopWatch::new(self.tokenizer()?.decode_stream(true), strings)),
        };
        let (events, canceller) = self.worker().submit(request, watch)?;
        Ok(TokenStream::new(self.worker().clone(), events, canceller, prompt_tokens, started))
    }

    pub(crate) fn stream_text(&self, ids: Vec<u32>, options: &GenerateOptions) -> Result<TextStream> {
        let decoder = self.tokenizer()?.decode_stream(true);
        Ok(TextStream::new(self.generate_ids(ids, options)?, decoder, &options.stop))
    }
}

/// How an answer is generated. Options that are not set follow the checkpoint's `generation_config.json`.
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
    /// The maximum number of tokens in the answer.
    pub max_new_tokens: Option<usize>,
    /// Randomness of sampling: logits are divided by it. 0 always takes the most likely token.
    pub temperature: Option<f32>,
    /// Sample from this many of the most likely tokens. 0 keeps all tokens.
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens whose probabilities add up to this. 1 keeps all tokens.
    pub top_p: Option<f32>,
    /// Sample from tokens that are at least this fraction as probable as the most likely one. 0 keeps all tokens.
    pub min_p: Option<f32>,
    /// Makes tokens of the prompt and of the answer so far less likely, if above 1. 1 does nothing.
    pub repetition_penalty: Option<f32>,
    /// Seed for sampling; 0 when not set, so that answers are reproducible by default.
    pub seed: u64,
    /// Token ids that end the answer, in addition to those of the checkpoint.
    pub stop_token_ids: Vec<u32>,
    /// Texts that end the answer before they begin: nothing of them is shown, wherever tokens begin and end. The first
    /// one that is complete ends the answer. At most 128, none of them empty. In JSON a single one may be a string.
    #[serde(deserialize_with = "one_or_several")]
    pub stop: Vec<String>,
    /// Continue after the checkpoint's stop tokens.
    pub ignore_eos: bool,
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

    /// See [`GenerateOptions::max_new_tokens`].
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = Some(tokens);
        self
    }

    /// See [`GenerateOptions::temperature`].
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// See [`GenerateOptions::top_k`].
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.top_k = Some(top_k);
        self
    }

    /// See [`GenerateOptions::top_p`].
    pub fn top_p(mut self, top_p: f32) -> Self {
        self.top_p = Some(top_p);
        self
    }

    /// See [`GenerateOptions::min_p`].
    pub fn min_p(mut self, min_p: f32) -> Self {
        self.min_p = Some(min_p);
        self
    }

    /// See [`GenerateOptions::repetition_penalty`].
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = Some(penalty);
        self
    }

    /// See [`GenerateOptions::seed`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// See [`GenerateOptions::stop_token_ids`].
    pub fn stop_token_ids(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.stop_token_ids = ids.into();
        self
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

    /// See [`GenerateOptions::ignore_eos`].
    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    /// The request for `prompt`. Options that the caller did not set are taken from the checkpoint, if the request uses
    /// them at all.
    ///
    /// # Errors
    /// When the prompt alone reaches the checkpoint's `max_length`, and when a checkpoint value that the request uses
    /// is wrong.
    pub(crate) fn request(&self, prompt: Vec<u32>, defaults: &GenerationConfig, stop: &[u32]) -> Result<Request> {
        self.check_stop()?;
        let or_default = |field: &str, set: Option<f32>, default: f32| -> Result<f32> {
            match set {
                Some(value) => Ok(value),
                None => defaults.check(field).map(|()| default).map_err(Error::from),
            }
        };
        let temperature = match self.temperature {
            // Setting a temperature means sampling.
            Some(temperature) => temperature,
            // Without do_sample the file's temperature is not used.
            None => {
                defaults.check("do_sample")?;
                if defaults.do_sample { or_default("temperature", None, defaults.temperature)? } else { 0.0 }
            }
        };
        let mut stop_token_ids = self.stop_token_ids.clone();
        if !self.ignore_eos {
            if stop_token_ids.is_empty() {
                defaults.check("eos_token_id")?;
            }
            stop_token_ids.extend_from_slice(stop);
        }
        let repetition_penalty =
            or_default("repetition_penalty", self.repetition_penalty, defaults.repetition_penalty)?;
        let mut sampling =
            SamplingParams::new().temperature(temperature).repetition_penalty(repetition_penalty).seed(self.seed);
        if temperature == 0.0 {
            // Greedy decoding: the file's sampling parameters are not used either.
            sampling.top_k = self.top_k.unwrap_or(sampling.top_k);
            sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
            sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        } else {
            if self.top_k.is_none() {
                defaults.check("top_k")?;
            }
            sampling.top_k = self.top_k.unwrap_or(defaults.top_k);
            sampling.top_p = or_default("top_p", self.top_p, defaults.top_p)?;
            sampling.min_p = or_default("min_p", self.min_p, defaults.min_p)?;
        }
        if self.max_new_tokens.is_none() {
            defaults.check("max_new_tokens")?;
            if defaults.max_new_tokens.is_none() {
                defaults.check("max_length")?;
            }
        }
        // As in transformers, `max_length` includes the prompt, and `max_new_tokens` overrides it.
        let max_new_tokens = match (self.max_new_tokens.or(defaults.max_new_tokens), defaults.max_length) {
            (None, Some(max_length)) if prompt.len() >= max_length => {
                let reason = format!(
                    "generation_config.json allows {max_length} tokens of prompt and answer, the prompt has {}: set \
                     max_new_tokens",
                    prompt.len()
                );
                return Err(qwen_core::Error::argument("max_length", reason).into());
            }
            (None, Some(max_length)) => Some(max_length - prompt.len()),
            (max_new_tokens, _) => max_new_tokens,
        };
        let params = GenerateParams::new().max_new_tokens(max_new_tokens).stop_token_ids(stop_token_ids);
        Ok(Request::generate(prompt, params.sampling(sampling)))
    }

    fn check_stop(&self) -> Result<()> {
        let reason = match self.stop.len() {
            len if len > MAX_STOP_STRINGS => format!("there may be {MAX_STOP_STRINGS} stop strings, there are {len}"),
            _ if self.stop.iter().any(String::is_empty) => "an empty string would end every answer at once".into(),
            _ => return Ok(()),
        };
        Err(qwen_core::Error::argument("stop", reason).into())
    }
}

/// Each of them is searched for in every answer, for each byte.
const MAX_STOP_STRINGS: usize = 128;

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
