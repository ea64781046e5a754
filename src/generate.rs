//! Requests for answers, and the streams that they arrive in.

mod options;
mod request;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use qwen_core::engine::sampling::Logprobs;
use qwen_core::engine::{Canceller, Event, FinishReason};
use qwen_core::numerics::float_env::FloatEnv;
use qwen_tokenizer::DecodeStream;

use crate::engine::Engine;
use crate::error::{Error, Result};
pub use crate::generate::options::{Dry, GenerateOptions};
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
        let (request, seed) = options.request(prompt, self)?;
        let (events, canceller) = self.worker().submit(request)?;
        let stats = Stats { prompt_tokens, seed, ..Stats::default() };
        Ok(TokenStream::new(self.worker().clone(), events, canceller, stats, started))
    }

    pub(crate) fn stream_text(&self, ids: Vec<u32>, options: &GenerateOptions) -> Result<TextStream> {
        let decoder = self.tokenizer()?.decode_stream(true);
        Ok(TextStream::new(self.generate_ids(ids, options)?, decoder))
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
    logprobs: Vec<Logprobs>,
    on_prompt_progress: OnPromptProgress,
    finish_reason: Option<FinishReason>,
    done: bool,
}

impl TokenStream {
    pub(crate) fn new(
        worker: Arc<Worker>,
        events: Receiver<Stamped>,
        canceller: Canceller,
        stats: Stats,
        started: Instant,
    ) -> Self {
        TokenStream {
            worker,
            events,
            canceller,
            started,
            stats,
            logprobs: Vec::new(),
            on_prompt_progress: OnPromptProgress::default(),
            finish_reason: None,
            done: false,
        }
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

    /// The log-probabilities of the tokens so far, one entry a token, as the model gives them: before penalties, cuts
    /// and the temperature. Empty unless the options ask for them ([`GenerateOptions::logprobs`]).
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let options = qwen::GenerateOptions::new().logprobs(3).max_new_tokens(8);
    /// let mut stream = engine.generate("What is 3 + 4?", &options)?;
    /// let text: String = stream.by_ref().collect::<qwen::Result<_>>()?;
    /// for (id, at) in stream.ids().iter().zip(stream.logprobs()) {
    ///     assert_eq!((at.chosen.id, at.top.len()), (*id, 3));
    /// }
    /// # assert_eq!(stream.ids().len(), stream.logprobs().len());
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn logprobs(&self) -> &[Logprobs] {
        &self.logprobs
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
                Ok((Event::Logprobs(logprobs), _)) => self.logprobs.push(logprobs),
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

    /// See [`TokenStream::logprobs`].
    pub fn logprobs(&self) -> &[Logprobs] {
        self.tokens.logprobs()
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
