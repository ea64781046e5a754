//! The streams that answers arrive in: token ids, and text.
//!
//! A stream is read by a thread that waits (`Iterator`), by a task that is woken (`poll_next`), or by a program that asks
//! from time to time (`try_next`). All three are `advance`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use qwen_core::engine::sampling::Logprobs;
use qwen_core::engine::{Canceller, Event, FinishReason, RowWindow};
use qwen_tokenizer::DecodeStream;
use serde::{Deserialize, Serialize};

use crate::channel::{Receiver, Wait};
use crate::error::Result;
use crate::stats::{PromptProgress, Stats};
use crate::stop_strings::{Decided, StopStrings};
use crate::worker::{Output, Stamped, Worker};

/// What ended an answer of the reasons [`FinishReason::Stop`] and [`FinishReason::StopString`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoppedBy {
    /// This stop token.
    Token(u32),
    /// This one of [`GenerateOptions::stop`](field@crate::GenerateOptions::stop).
    String(String),
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
    /// Room for tokens that are not read yet.
    window: RowWindow,
    started: Instant,
    stats: Stats,
    logprobs: Vec<Logprobs>,
    on_prompt_progress: OnPromptProgress,
    finish_reason: Option<FinishReason>,
    stopped_by: Option<StoppedBy>,
    done: bool,
}

impl TokenStream {
    pub(crate) fn new(
        worker: Arc<Worker>,
        events: Receiver<Stamped>,
        canceller: Canceller,
        window: RowWindow,
        stats: Stats,
        started: Instant,
    ) -> Self {
        TokenStream {
            worker,
            events,
            canceller,
            window,
            started,
            stats,
            logprobs: Vec::new(),
            on_prompt_progress: OnPromptProgress::default(),
            finish_reason: None,
            stopped_by: None,
            done: false,
        }
    }

    /// Call `report` after each computed part of the prompt, until the first token. Long prompts are computed in parts
    /// ([`EngineOptions::max_num_batched_tokens`](crate::EngineOptions::max_num_batched_tokens)). It is called on the
    /// thread that reads the first token, in `next`; a panic in it ends this stream alone.
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

    /// The token or the string that ended the answer, if one did.
    pub fn stopped_by(&self) -> Option<&StoppedBy> {
        self.stopped_by.as_ref()
    }

    /// Tokens and times of the answer so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The log-probabilities of the tokens so far, one entry a token, as the model gives them: before penalties, cuts
    /// and the temperature. Empty unless the options ask for them
    /// ([`GenerateOptions::logprobs`](field@crate::GenerateOptions::logprobs)).
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let options = qwen::GenerateOptions::new().logprobs(3).max_new_tokens(8);
    /// let mut stream = engine.generate("What is 3 + 4?", &options)?;
    /// let text: String = stream.by_ref().collect::<qwen::Result<_>>()?;
    /// for (id, at) in stream.ids().iter().zip(stream.logprobs()) {
    ///     assert_eq!((at.id, at.top.len()), (*id, 3));
    /// }
    /// # assert_eq!(stream.ids().len(), stream.logprobs().len());
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn logprobs(&self) -> &[Logprobs] {
        &self.logprobs
    }

    /// How many events of the engine, nearly all of them tokens, have arrived and were not read yet. A stream that is
    /// not read keeps at most one for each position of the context (two with log-probabilities) and each part of the
    /// prompt.
    pub fn unread(&self) -> usize {
        self.events.len()
    }

    /// The next token if it is there: see [`TextStream::try_next`].
    pub fn try_next(&mut self) -> Poll<Option<Result<u32>>> {
        self.advance(&mut Wait::Not)
    }

    /// The next token for a task: see [`TextStream::poll_next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<u32>>> {
        self.advance(&mut Wait::Wake(context))
    }

    fn advance(&mut self, wait: &mut Wait<'_, '_>) -> Poll<Option<Result<u32>>> {
        while !self.done {
            match ready!(self.worker.receive(&mut self.events, wait)) {
                Ok((Output::Step(event), at)) => match event {
                    Event::Token(id) => {
                        self.window.give_back();
                        let elapsed = at.saturating_duration_since(self.started);
                        let first = *self.stats.first_token.get_or_insert(elapsed);
                        self.stats.generation = elapsed.saturating_sub(first);
                        self.stats.new_tokens += 1;
                        return Poll::Ready(Some(Ok(id)));
                    }
                    Event::Logprobs(logprobs) => self.logprobs.push(logprobs),
                    Event::StopToken(id) => self.stopped_by = Some(StoppedBy::Token(id)),
                    Event::Prompt { done, cached } => {
                        self.stats.cached_tokens = cached;
                        if let Some(report) = &mut self.on_prompt_progress.0 {
                            report(PromptProgress { done, total: self.stats.prompt_tokens });
                        }
                    }
                    Event::Finished(reason) => {
                        self.finish_reason = Some(reason);
                        self.done = true;
                    }
                    Event::Failed(error) => {
                        self.done = true;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    // Only other kinds of requests get these.
                    _ => {}
                },
                Ok((Output::StopString(string), _)) => self.stop(string),
                Err(error) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }

    /// The answer ends with this stop string, for which the engine has cancelled the rest.
    fn stop(&mut self, string: String) {
        self.finish_reason = Some(FinishReason::StopString);
        self.stopped_by = Some(StoppedBy::String(string));
        self.done = true;
    }
}

impl Iterator for TokenStream {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Result<u32>> {
        Wait::block(|wait| self.advance(wait))
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
    strings: StopStrings,
    ids: Vec<u32>,
    /// Bytes of the pieces so far.
    shown: usize,
    /// Where the text of whole ids ends: its bytes, and how many ids they are. None before what is shown.
    borders: VecDeque<(usize, usize)>,
    /// Bytes of the text of `ids`, without an incomplete character.
    decoded: usize,
}

impl TextStream {
    pub(crate) fn new(tokens: TokenStream, decoder: DecodeStream, stop: &[String]) -> Self {
        TextStream {
            tokens,
            decoder: Some(decoder),
            strings: StopStrings::new(stop),
            ids: Vec::new(),
            shown: 0,
            borders: VecDeque::from([(0, 0)]),
            decoded: 0,
        }
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

    /// The token or the string that ended the answer, if one did.
    pub fn stopped_by(&self) -> Option<&StoppedBy> {
        self.tokens.stopped_by()
    }

    /// Tokens and times of the answer so far.
    pub fn stats(&self) -> Stats {
        self.tokens.stats()
    }

    /// See [`TokenStream::logprobs`].
    pub fn logprobs(&self) -> &[Logprobs] {
        self.tokens.logprobs()
    }

    /// See [`TokenStream::unread`].
    pub fn unread(&self) -> usize {
        self.tokens.unread()
    }

    /// The ids of the answer so far, without the stop token. The last ones may be part of a character that is not
    /// complete yet, or of what may become a stop string. After a stop string its ids are here, too, although the text
    /// ends before it.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The ids that stand for the text so far, if it ends where a token does.
    pub(crate) fn whole_ids(&self) -> Option<&[u32]> {
        let border = self.borders.iter().rev().find(|(bytes, _)| *bytes == self.shown);
        border.and_then(|(_, ids)| self.ids.get(..*ids))
    }

    /// Wait for the whole answer.
    ///
    /// # Errors
    /// The error that ended it early.
    pub fn text(self) -> Result<String> {
        self.collect()
    }

    /// The next piece if it is there, without waiting: pending if the engine has not computed it yet, and nothing when
    /// the answer is complete. For programs that ask from time to time, such as once for each frame.
    ///
    /// ```
    /// use std::task::Poll;
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut stream = engine.generate("What is 3 + 4?", &qwen::GenerateOptions::new())?;
    /// let mut text = String::new();
    /// loop {
    ///     match stream.try_next() {
    ///         Poll::Ready(Some(piece)) => text += &piece?,
    ///         Poll::Ready(None) => break,
    ///         Poll::Pending => std::thread::yield_now(), // draw a frame
    ///     }
    /// }
    /// println!("{text}");
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn try_next(&mut self) -> Poll<Option<Result<String>>> {
        self.advance(&mut Wait::Not)
    }

    /// The next piece for a task, which is woken when there is more: what `futures_core::Stream::poll_next` does, and any
    /// async runtime can use.
    ///
    /// ```
    /// async fn answer(engine: &qwen::Engine) -> qwen::Result<String> {
    ///     let mut stream = engine.generate("What is 3 + 4?", &qwen::GenerateOptions::new())?;
    ///     let mut text = String::new();
    ///     while let Some(piece) = std::future::poll_fn(|context| stream.poll_next(context)).await {
    ///         text += &piece?;
    ///     }
    ///     Ok(text)
    /// }
    /// ```
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<String>>> {
        self.advance(&mut Wait::Wake(context))
    }

    pub(crate) fn advance(&mut self, wait: &mut Wait<'_, '_>) -> Poll<Option<Result<String>>> {
        while let Some(decoder) = &mut self.decoder {
            let (piece, is_whole, is_last) = match ready!(self.tokens.advance(wait)) {
                Some(Ok(id)) => {
                    self.ids.push(id);
                    let piece = decoder.push(id).unwrap_or_default();
                    (piece, !decoder.is_pending(), false)
                }
                Some(Err(error)) => {
                    self.decoder = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => (decoder.finish().unwrap_or_default(), true, true),
            };
            self.decoded += piece.len();
            if is_whole {
                match self.borders.back_mut() {
                    // A token without text.
                    Some((bytes, ids)) if *bytes == self.decoded => *ids = self.ids.len(),
                    _ => self.borders.push_back((self.decoded, self.ids.len())),
                }
            }
            let Decided { mut text, stop } = self.strings.push(piece);
            match stop {
                Some(string) => {
                    self.tokens.stop(string);
                    self.decoder = None;
                }
                None if is_last => {
                    text += &self.strings.finish();
                    self.decoder = None;
                }
                None => {}
            }
            self.shown += text.len();
            while self.borders.len() > 1 && self.borders.front().is_some_and(|(bytes, _)| *bytes < self.shown) {
                self.borders.pop_front();
            }
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(text)));
            }
        }
        Poll::Ready(None)
    }
}

impl Iterator for TextStream {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        Wait::block(|wait| self.advance(wait))
    }
}
