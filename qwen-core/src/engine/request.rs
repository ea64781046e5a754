//! What a caller asks of an engine, in token ids, and why it ends.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::adapters::LoadedAdapter;
use super::intake::RowWindow;
use super::speculation::Speculation;
use crate::backend::Limits;
use crate::engine::logprobs::LogprobsParams;
use crate::engine::pooling::Pooling;
use crate::engine::sampling::{Constraint, SamplingParams, SharedConstraint};
use crate::error::{Error, Result};
use crate::model::rope::stage_reaching;

/// Why a request ended. Displayed and serialised as `stop`, `stop_string`, `length`, `context_full` and `cancelled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model gave a stop token.
    Stop,
    /// The text reached a stop string. An engine by token ids has no text: whoever decodes its ids ends the answer so.
    StopString,
    /// `max_new_tokens` is used up; for other goals than an answer, all ids are computed.
    Length,
    /// The context is used up before `max_new_tokens` is.
    ContextFull,
    /// The caller cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name, as OpenAI's API has it where it has one.
    pub const fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::StopString => "stop_string",
            FinishReason::Length => "length",
            FinishReason::ContextFull => "context_full",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A request to an engine, in token ids.
///
/// ```
/// use qwen_core::engine::{GenerateParams, Request};
/// let request = Request::generate([1, 2, 3], GenerateParams::new().max_new_tokens(20));
/// assert_eq!(request.prompt, [1, 2, 3]);
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is added to an engine"]
#[non_exhaustive]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// What to compute from it.
    pub goal: Goal,
    /// Requests share K/V of common prompt prefixes only with those of the same salt. One for each tenant keeps them
    /// from noticing, by the time of the first token, what others asked.
    pub cache_salt: Arc<str>,
    /// The low-rank adapter that it is computed with, which stays loaded as long as the request. Default none.
    pub adapter: Option<Arc<LoadedAdapter>>,
    /// Whose it is: waiting requests of several users are admitted in turns.
    pub user: Arc<str>,
    /// Requests of a higher priority are admitted first, and give their blocks up last. Default 0.
    pub priority: i32,
    /// When the request fails: looked at before each step, and while all requests wait for their readers. Default never.
    pub deadline: Option<Instant>,
    /// Room for the tokens of an answer: it pauses while its reader has not taken that many. Default any number.
    pub window: Option<RowWindow>,
}

/// What an engine computes from a prompt.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "there is one for each request, and it is soon taken apart")]
pub enum Goal {
    /// An answer: [`super::Event::Token`] by token, each after its [`super::Event::Logprobs`] if these are wanted.
    Generate(GenerateParams),
    /// The logits after each token of the prompt: [`super::Event::Logits`] by row, as far as the reader's window is
    /// open.
    Score(RowWindow),
    /// How likely tokens are: [`super::Event::Scored`] for each, in order.
    Logprobs(LogprobsParams),
    /// The hidden states after the final norm, made one vector: one [`super::Event::Embedding`].
    Embed(Pooling),
}

/// How an answer is generated. The default is greedy, to the end of the context.
#[derive(Debug, Clone, Default, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct GenerateParams {
    /// The maximum number of tokens in the answer; `None` for as many as fit in the context. With 0 the prompt is
    /// computed, so that later requests find its K/V, and the answer is empty.
    pub max_new_tokens: Option<usize>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Report the log-probabilities of each token and of this many of the most likely ones, at most
    /// [`GenerateParams::MAX_LOGPROBS`]. `None` reports none.
    pub logprobs: Option<usize>,
    /// Whether the next tokens are guessed and checked several at a time.
    pub speculation: Speculation,
    /// What the answer may be. Default anything.
    pub constraint: Option<SharedConstraint>,
}

impl GenerateParams {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`GenerateParams::max_new_tokens`].
    pub fn max_new_tokens(mut self, tokens: impl Into<Option<usize>>) -> Self {
        self.max_new_tokens = tokens.into();
        self
    }

    /// See [`GenerateParams::stop_token_ids`].
    pub fn stop_token_ids(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.stop_token_ids = ids.into();
        self
    }

    /// The bound of [`GenerateParams::logprobs`].
    pub const MAX_LOGPROBS: usize = 100;

    /// See [`GenerateParams::logprobs`].
    pub fn logprobs(mut self, top: impl Into<Option<usize>>) -> Self {
        self.logprobs = top.into();
        self
    }

    /// See [`GenerateParams::speculation`].
    pub fn speculation(mut self, speculation: Speculation) -> Self {
        self.speculation = speculation;
        self
    }

    /// See [`GenerateParams::constraint`].
    pub fn constraint(mut self, constraint: Arc<dyn Constraint>) -> Self {
        self.constraint = Some(SharedConstraint(constraint));
        self
    }

    /// See [`GenerateParams::sampling`].
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }
}

impl Request {
    /// A request for an answer to `prompt`.
    pub fn generate(prompt: impl Into<Vec<u32>>, params: GenerateParams) -> Self {
        Self::new(prompt.into(), Goal::Generate(params))
    }

    /// A request for the logits after each token of `prompt`, which go through `window`.
    pub fn score(prompt: impl Into<Vec<u32>>, window: RowWindow) -> Self {
        Self::new(prompt.into(), Goal::Score(window))
    }

    /// How many tokens are expected of an answer without a bound, where the stage of RoPE depends on it: as many as the
    /// model card says that the family generates.
    pub const ANSWER_WITHOUT_BOUND: usize = 8192;

    fn new(prompt: Vec<u32>, goal: Goal) -> Self {
        Request {
            prompt,
            goal,
            cache_salt: "".into(),
            adapter: None,
            user: "".into(),
            priority: 0,
            deadline: None,
            window: None,
        }
    }

    /// See [`Request::adapter`].
    pub fn adapter(mut self, adapter: impl Into<Option<Arc<LoadedAdapter>>>) -> Self {
        self.adapter = adapter.into();
        self
    }

    /// See [`Request::user`].
    pub fn user(mut self, user: impl Into<Arc<str>>) -> Self {
        self.user = user.into();
        self
    }

    /// See [`Request::priority`].
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// See [`Request::deadline`].
    pub fn deadline(mut self, deadline: impl Into<Option<Instant>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// See [`Request::window`].
    pub fn window(mut self, window: RowWindow) -> Self {
        self.window = Some(window);
        self
    }

    /// See [`Request::cache_salt`].
    pub fn cache_salt(mut self, salt: impl Into<Arc<str>>) -> Self {
        self.cache_salt = salt.into();
        self
    }

    /// A request for log-probabilities after the last tokens of `prompt`.
    pub fn logprobs(prompt: impl Into<Vec<u32>>, params: LogprobsParams) -> Self {
        Self::new(prompt.into(), Goal::Logprobs(params))
    }

    /// A request for the embedding of `prompt`.
    pub fn embed(prompt: impl Into<Vec<u32>>, pooling: Pooling) -> Self {
        Self::new(prompt.into(), Goal::Embed(pooling))
    }

    /// Check the request against the engine's limits. [`super::EngineCore::add`] does so too; callers on another thread
    /// can check earlier.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextLength`], [`Error::InvalidTokenId`], [`Error::OutOfBlocks`] for an
    /// answer that does not fit in an engine with these limits, and [`Error::InvalidArgument`] for the parameters.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        let Request { prompt, goal, .. } = self;
        // An answer needs room for at least one token.
        let (context, room) = (limits.max_model_len, matches!(goal, Goal::Generate(_)) as usize);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let limit = context.saturating_sub(room);
        if prompt.len() > limit {
            return Err(Error::ContextLength { prompt: prompt.len(), limit, context });
        }
        if let Some((position, &id)) = prompt.iter().enumerate().find(|(_, id)| **id as usize >= limits.vocab_size) {
            return Err(Error::InvalidTokenId { id, position, vocab_size: limits.vocab_size });
        }
        if let Goal::Generate(params) = goal {
            params.sampling.check()?;
            params.sampling.check_ids(limits.num_token_ids)?;
            if let Some(top) = params.logprobs.filter(|top| *top > GenerateParams::MAX_LOGPROBS) {
                let reason = format!("must be at most {}, is {top}", GenerateParams::MAX_LOGPROBS);
                return Err(Error::argument("logprobs", reason));
            }
        }
        if let Goal::Logprobs(params) = goal {
            params.check(prompt.len(), limits.num_token_ids.min(limits.vocab_size))?;
        }
        let (positions, available) = (self.max_len(limits), limits.num_blocks);
        let needed = positions.div_ceil(limits.block_size.max(1));
        if needed > available {
            let advice =
                format!("{positions} positions are asked for; lower max_new_tokens or load with a larger context");
            return Err(Error::OutOfBlocks { needed, available, advice });
        }
        Ok(())
    }

    /// Tokens of prompt and answer at most.
    pub(super) fn max_len(&self, limits: &Limits) -> usize {
        match &self.goal {
            Goal::Generate(GenerateParams { max_new_tokens: Some(new), .. }) => {
                limits.max_model_len.min(self.prompt.len().saturating_add(*new))
            }
            Goal::Generate(_) => limits.max_model_len,
            Goal::Score(_) | Goal::Logprobs(_) | Goal::Embed(_) => self.prompt.len(),
        }
    }

    /// The first stage of RoPE that reaches far enough: for the longest answer that is asked for, or where none is, for
    /// [`Request::ANSWER_WITHOUT_BOUND`].
    pub(super) fn rope_stage(&self, limits: &Limits, rope_contexts: &[usize]) -> usize {
        let is_unbounded = matches!(&self.goal, Goal::Generate(GenerateParams { max_new_tokens: None, .. }));
        let bound =
            if is_unbounded { self.prompt.len().saturating_add(Self::ANSWER_WITHOUT_BOUND) } else { usize::MAX };
        stage_reaching(rope_contexts, self.max_len(limits).min(bound))
    }

    /// Why an answer of `max_len` tokens ends.
    pub(super) fn full(&self, limits: &Limits) -> FinishReason {
        let asked = match &self.goal {
            Goal::Generate(params) => params.max_new_tokens.map(|new| self.prompt.len().saturating_add(new)),
            Goal::Score(_) | Goal::Logprobs(_) | Goal::Embed(_) => Some(self.prompt.len()),
        };
        match asked {
            Some(tokens) if tokens <= limits.max_model_len => FinishReason::Length,
            _ => FinishReason::ContextFull,
        }
    }
}
