//! How to generate, and the streams that answers arrive in.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use qwen_core::GenerationConfig;
use qwen_core::engine::sampling::SamplingParams;
use qwen_core::engine::{Canceller, Event, FinishReason, GenerateParams, Request};
use qwen_core::numerics::float_env::FloatEnv;
use qwen_tokenizer::DecodeStream;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::stats::{PromptProgress, Stats};
use crate::worker::{Stamped, Worker};

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

    /// Continue a prompt of token ids.
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
        let (events, canceller) = self.worker().submit(request)?;
        Ok(TokenStream::new(self.worker().clone(), events, canceller, prompt_tokens, started))
    }

    pub(crate) fn stream_text(&self, ids: Vec<u32>, options: &GenerateOptions) -> Result<TextStream> {
        let decoder = self.tokenizer()?.decode_stream(true);
        Ok(TextStream::new(self.generate_ids(ids, options)?, decoder))
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
    /// Continue after the checkpoint's stop tokens.
    pub ignore_eos: bool,
    /// Requests share the K/V of common prompt prefixes only with those of the same salt. Give each tenant one where
    /// nobody may notice, by the time of the first token, what others asked.
    pub cache_salt: String,
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

    /// See [`GenerateOptions::ignore_eos`].
    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    /// See [`GenerateOptions::cache_salt`].
    pub fn cache_salt(mut self, salt: impl Into<String>) -> Self {
        self.cache_salt = salt.into();
        self
    }

    /// The request for `prompt`. Options that the caller did not set are taken from the checkpoint, if the request uses
    /// them at all.
    ///
    /// # Errors
    /// When the prompt alone reaches the checkpoint's `max_length`, and when a checkpoint value that the request uses
    /// is wrong.
    pub(crate) fn request(&self, prompt: Vec<u32>, defaults: &GenerationConfig, stop: &[u32]) -> Result<Request> {
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
        Ok(Request::generate(prompt, params.sampling(sampling)).cache_salt(self.cache_salt.as_str()))
    }
}

/// What the program does at each part of the prompt.
#[derive(Default)]
struct OnPromptProgress(Option<Box<dyn FnMut(PromptProgress) + Send>>);

impl fmt::Debug for OnPromptProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some(..)" } else { "None" })
    }
}

/// An answer as token ids. Owned: it can be moved into a thread. Dropping it cancels the rest.
#[derive(Debug)]
#[must_use = "dropping a stream cancels it"]
pub struct TokenStream {
    // Keeps the engine's thread alive until the answer is complete.
    worker: Arc<Worker>,
    events: Receiver<Stamped>,
    canceller: Canceller,
    started: Instant,
    stats: Stats,
    on_prompt_progress: OnPromptProgress,
    finish_reason: Option<FinishReason>,
    done: bool,
}

impl TokenStream {
    pub(crate) fn new(
        worker: Arc<Worker>,
        events: Receiver<Stamped>,
        canceller: Canceller,
        prompt_tokens: usize,
        started: Instant,
    ) -> Self {
        let stats = Stats { prompt_tokens, ..Stats::default() };
        let on_prompt_progress = OnPromptProgress::default();
        TokenStream { worker, events, canceller, started, stats, on_prompt_progress, finish_reason: None, done: false }
    }

    /// Call `report` after each computed part of the prompt, until the first token. Long prompts are computed in parts
    /// ([`EngineOptions::max_num_batched_tokens`](crate::EngineOptions::max_num_batched_tokens)). It is called on the
    /// thread that waits for the first token, in `next`.
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut stream = engine.generate("What is 3 + 4?", &qwen::GenerateOptions::new())?;
    /// stream.on_prompt_progress(|progress| eprintln!("{} of {} tokens", progress.done, progress.total));
    /// println!("{}", stream.text()?);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn on_prompt_progress(&mut self, report: impl FnMut(PromptProgress) + Send + 'static) {
        self.on_prompt_progress = OnPromptProgress(Some(Box::new(report)));
    }

    /// A handle that stops the answer from any thread, also while the prompt is being computed.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// Tokens and times of the answer so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

impl Iterator for TokenStream {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Result<u32>> {
        while !self.done {
            if let Err(error) = self.worker.check_alive() {
                self.done = true;
                return Some(Err(error));
            }
            match self.events.recv() {
                Ok((Event::Token(id), at)) => {
                    let elapsed = at.saturating_duration_since(self.started);
                    let first = *self.stats.first_token.get_or_insert(elapsed);
                    self.stats.generation = elapsed.saturating_sub(first);
                    self.stats.new_tokens += 1;
                    return Some(Ok(id));
                }
                Ok((Event::Prompt { done, cached }, _)) => {
                    self.stats.cached_tokens = cached;
                    if let Some(report) = &mut self.on_prompt_progress.0 {
                        report(PromptProgress { done, total: self.stats.prompt_tokens });
                    }
                }
                Ok((Event::Finished(reason), _)) => {
                    self.finish_reason = Some(reason);
                    self.done = true;
                }
                Ok((Event::Failed(error), _)) => {
                    self.done = true;
                    return Some(Err(error.into()));
                }
                // Only other kinds of requests get these.
                Ok(_) => {}
                Err(_) => {
                    self.done = true;
                    return Some(Err(Error::stopped("its thread has ended")));
                }
            }
        }
        None
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.done && self.worker.is_here() {
            self.canceller.cancel();
        }
    }
}

/// An answer as text: each piece is whole characters. Owned: it can be moved into a thread. Dropping it cancels the
/// rest.
#[derive(Debug)]
#[must_use = "dropping a stream cancels it"]
pub struct TextStream {
    tokens: TokenStream,
    decoder: Option<DecodeStream>,
    ids: Vec<u32>,
    /// Whether the pieces so far are the complete text of these ids, with no partial character held back.
    is_whole: bool,
}

impl TextStream {
    pub(crate) fn new(tokens: TokenStream, decoder: DecodeStream) -> Self {
        TextStream { tokens, decoder: Some(decoder), ids: Vec::new(), is_whole: true }
    }

    /// See [`TokenStream::on_prompt_progress`].
    pub fn on_prompt_progress(&mut self, report: impl FnMut(PromptProgress) + Send + 'static) {
        self.tokens.on_prompt_progress(report);
    }

    /// A handle that stops the answer from any thread, also while the prompt is being computed.
    pub fn canceller(&self) -> Canceller {
        self.tokens.canceller()
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.tokens.finish_reason()
    }

    /// Tokens and times of the answer so far.
    pub fn stats(&self) -> Stats {
        self.tokens.stats()
    }

    /// The ids of the answer so far, without the stop token. The last ones may be part of a character that is not
    /// complete yet.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Wait for the whole answer.
    ///
    /// # Errors
    /// The error that ended it early.
    pub fn text(self) -> Result<String> {
        self.collect()
    }
}

impl Iterator for TextStream {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        while let Some(decoder) = &mut self.decoder {
            let piece = match self.tokens.next() {
                Some(Ok(id)) => {
                    self.ids.push(id);
                    let piece = decoder.push(id);
                    self.is_whole = !decoder.is_pending();
                    piece
                }
                Some(Err(error)) => {
                    self.decoder = None;
                    return Some(Err(error));
                }
                None => {
                    self.is_whole = true;
                    self.decoder.take().and_then(|mut decoder| decoder.finish())
                }
            };
            if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
                return Some(Ok(piece));
            }
        }
        None
    }
}
