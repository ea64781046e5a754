//! The answers of one request, read side by side as they come, whatever protocol they are written in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use qwen::{AnswerParser, Delta, Engine, FinishReason, GenerateOptions, Logprobs, TextStream, Tokenizer};

use crate::admission::Place;
use crate::app::App;
use crate::error::Result;

/// More of an answer.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// More of its text as the model wrote it.
    pub(crate) text: String,
    /// What that means, if it is read by a parser.
    pub(crate) deltas: Vec<Delta>,
    /// The tokens of the text, if their log-probabilities are wanted.
    pub(crate) tokens: Vec<Logprobs>,
    /// Why it has ended, if it has.
    pub(crate) finish: Option<FinishReason>,
}

/// Tokens of prompts and answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
}

/// How answers are read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// What tells text, thoughts and calls apart.
    pub(crate) parser: Option<AnswerParser>,
    /// Whether an answer ends with its first call.
    pub(crate) single_call: bool,
}

/// The answers of one request. Dropping them cancels what is not complete.
#[derive(Debug)]
pub(crate) struct Answers {
    app: Arc<App>,
    engine: Engine,
    tokenizer: Tokenizer,
    choices: Vec<Choice>,
    /// The one that is asked next.
    next: usize,
}

impl Answers {
    /// Answers of this engine.
    ///
    /// # Errors
    /// If it has no tokenizer.
    pub(crate) fn new(app: &Arc<App>, engine: &Engine) -> Result<Self> {
        let tokenizer = engine.tokenizer()?.clone();
        Ok(Answers { app: app.clone(), engine: engine.clone(), tokenizer, choices: Vec::new(), next: 0 })
    }

    /// Ask for `n` answers to `prompt`, which differ by their seeds.
    ///
    /// # Errors
    /// For options and prompts that the engine refuses, and where too many requests wait.
    pub(crate) fn ask(&mut self, prompt: &[u32], n: usize, options: &GenerateOptions, reading: &Reading) -> Result<()> {
        let engine = self.engine.clone();
        self.ask_by(prompt.len(), n, options, reading, |options| engine.generate_text(prompt, options))
    }

    /// As [`Answers::ask`], for streams that `begin` makes of prompts of about `tokens` tokens.
    ///
    /// # Errors
    /// Those of `begin`, and where too many requests wait.
    pub(crate) fn ask_by(
        &mut self,
        tokens: usize,
        n: usize,
        options: &GenerateOptions,
        reading: &Reading,
        begin: impl Fn(&GenerateOptions) -> qwen::Result<TextStream>,
    ) -> Result<()> {
        // Further answers find the K/V of the prompt.
        let mut place = Some(self.app.admission.enter(tokens)?);
        for number in 0..n as u64 {
            let mut options = options.clone().timeout(self.app.settings.request_timeout);
            options.seed = options.seed.map(|seed| seed.wrapping_add(number));
            let started = Instant::now();
            let mut stream = begin(&options)?;
            let (app, stats_of) = (self.app.clone(), self.engine.clone());
            let mut has_begun = false;
            stream.on_prompt_progress(move |_| {
                if !std::mem::replace(&mut has_begun, true) {
                    // The first part of the prompt was computed by the latest step.
                    let step = stats_of.stats().last_step;
                    app.metrics.queue_time.observe(started.elapsed().saturating_sub(step));
                }
            });
            self.choices.push(Choice {
                stream,
                place: place.take(),
                is_first: number == 0,
                parser: reading.parser.clone(),
                single_call: reading.single_call,
                logprobs: options.logprobs.is_some(),
                shown: 0,
                placed: 0,
                reported: 0,
                said: self.app.settings.log_prompts.then(String::new),
                started,
                is_done: false,
            });
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// More of any answer, with its number. Nothing when all are complete.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<(usize, Piece)>>> {
        let len = self.choices.len();
        let mut all_done = true;
        for offset in 0..len {
            let index = (self.next + offset) % len;
            let choice = &mut self.choices[index];
            if choice.is_done {
                continue;
            }
            all_done = false;
            if let Poll::Ready(piece) = choice.poll_next(context, &self.tokenizer, &self.app) {
                self.next = (index + 1) % len;
                return Poll::Ready(Some(piece.map(|piece| (index, piece))));
            }
        }
        if all_done { Poll::Ready(None) } else { Poll::Pending }
    }

    /// [`Answers::poll_next`], awaited.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Piece)>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Tokens so far. A prompt with several answers counts once.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for choice in &self.choices {
            let stats = choice.stream.stats();
            if choice.is_first {
                usage.prompt_tokens += stats.prompt_tokens;
                usage.cached_tokens += stats.cached_tokens;
            }
            usage.completion_tokens += stats.new_tokens;
        }
        usage
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let cancelled = self.choices.iter().filter(|choice| !choice.is_done).count();
        self.app.metrics.cancelled.fetch_add(cancelled as u64, Ordering::Relaxed);
    }
}

/// One answer.
#[derive(Debug)]
struct Choice {
    stream: TextStream,
    /// Until the first token.
    place: Option<Place>,
    /// Whether it is the first one to its prompt.
    is_first: bool,
    parser: Option<AnswerParser>,
    single_call: bool,
    logprobs: bool,
    /// Bytes of text that were passed on.
    shown: usize,
    /// Bytes of the tokens whose log-probabilities were passed on, and how many they are.
    placed: usize,
    reported: usize,
    /// Its text so far, if it will be logged.
    said: Option<String>,
    started: Instant,
    is_done: bool,
}

impl Choice {
    fn poll_next(&mut self, context: &mut Context<'_>, tokenizer: &Tokenizer, app: &App) -> Poll<Result<Piece>> {
        let polled = self.stream.poll_next(context);
        if self.stream.stats().first_token.is_some()
            && let Some(place) = self.place.take()
        {
            place.first_token();
        }
        let mut piece = Piece::default();
        match ready!(polled) {
            Some(Ok(text)) => {
                self.shown += text.len();
                if let Some(said) = &mut self.said {
                    said.push_str(&text);
                }
                piece.deltas = self.parser.as_mut().map(|parser| parser.push(&text)).unwrap_or_default();
                piece.text = text;
                if self.single_call && cut_behind_call(&mut piece.deltas) {
                    // What comes behind the first call is not computed.
                    self.stream.canceller().cancel();
                    piece.finish = Some(FinishReason::Stop);
                }
            }
            Some(Err(error)) => {
                self.is_done = true;
                return Poll::Ready(Err(error.into()));
            }
            None => {
                piece.deltas = self.parser.as_mut().map(AnswerParser::finish).unwrap_or_default();
                piece.finish = Some(self.stream.finish_reason().unwrap_or(FinishReason::Cancelled));
            }
        }
        if self.logprobs {
            self.take_tokens(&mut piece, tokenizer);
        }
        if piece.finish.is_some() {
            self.finish(app);
        }
        Poll::Ready(Ok(piece))
    }

    /// The tokens whose text begins within what is shown. Behind a stop string they are not part of the answer.
    fn take_tokens(&mut self, piece: &mut Piece, tokenizer: &Tokenizer) {
        let takes_all = matches!(piece.finish, Some(reason) if reason != FinishReason::StopString);
        for token in self.stream.logprobs().iter().skip(self.reported) {
            if !takes_all && self.placed >= self.shown {
                break;
            }
            self.placed += match tokenizer.is_special(token.id) {
                true => 0,
                false => tokenizer.token_bytes(token.id).len(),
            };
            self.reported += 1;
            piece.tokens.push(token.clone());
        }
    }

    fn finish(&mut self, app: &App) {
        self.is_done = true;
        self.place = None;
        if let Some(answer) = self.said.take() {
            tracing::info!(answer, "answer");
        }
        let (stats, metrics) = (self.stream.stats(), &app.metrics);
        metrics.answer_time.observe(self.started.elapsed());
        if let Some(first) = stats.first_token {
            metrics.first_token.observe(first);
        }
        if let Some(speed) = stats.tokens_per_second().filter(|speed| *speed > 0.0) {
            metrics.token_time.observe(Duration::from_secs_f64(1.0 / speed));
        }
        let prompt_tokens = if self.is_first { stats.prompt_tokens } else { 0 };
        metrics.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
        metrics.cached_tokens.fetch_add(stats.cached_tokens.min(prompt_tokens) as u64, Ordering::Relaxed);
        metrics.new_tokens.fetch_add(stats.new_tokens as u64, Ordering::Relaxed);
    }
}

/// Leave out what stands behind the first complete call. Whether there is one.
fn cut_behind_call(deltas: &mut Vec<Delta>) -> bool {
    let end = deltas.iter().position(|delta| matches!(delta, Delta::ToolCall(call) if call.is_complete));
    if let Some(end) = end {
        deltas.truncate(end + 1);
    }
    end.is_some()
}
