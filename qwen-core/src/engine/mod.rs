//! Requests of token ids: which sequences run, in which steps, and what is sampled from their logits.
//!
//! [`EngineCore`] is plain `&mut self` code over a [`Runner`]: no text, no device, no thread. The facade gives
//! it a thread and turns ids into text. Other threads reach an engine only through its [`Intake`].
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod adapters;
mod draft;
mod draws;
mod intake;
mod interruption;
pub mod kv;
mod logprobs;
mod pace;
mod pooling;
mod queue;
mod request;
pub mod sampling;
mod scheduler;
mod sequence;
mod snapshot;
mod speculation;
mod stats;
mod verdicts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::{Batch, StepOutput};
use crate::model::runner::Runner;
use crate::numerics::float_env::FloatEnv;
pub use adapters::LoadedAdapter;
use draft::DraftModel;
use draws::Drawer;
pub use intake::{Canceller, Intake, RowWindow, Ticket};
pub use interruption::Work;
pub use logprobs::LogprobsParams;
pub use pooling::Pooling;
pub use request::{FinishReason, GenerateParams, Goal, Request};
use sampling::Logprobs;
use scheduler::Scheduler;
pub use sequence::SeqId;
pub use snapshot::SavedRoot;
pub use speculation::Speculation;
pub use stats::EngineStats;

/// What happened to a sequence in a step.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A part of the prompt is computed.
    Prompt {
        /// Tokens of the prompt that are computed so far.
        done: usize,
        /// How many of these were not computed for this request, since their K/V was there.
        cached: usize,
    },
    /// The log-probabilities at the next token of the answer, which follows. Only if they are wanted
    /// ([`GenerateParams::logprobs`]).
    Logprobs(Logprobs),
    /// The next token of the answer.
    Token(u32),
    /// The stop token that ends the answer and is no part of it. [`FinishReason::Stop`] follows.
    StopToken(u32),
    /// `[vocab_size]` the logits after the next token of a [`Goal::Score`].
    Logits(Vec<f32>),
    /// How likely the next target or alternative of a [`Goal::Logprobs`] is.
    Scored(Logprobs),
    /// `[hidden_size]` the result of a [`Goal::Embed`].
    Embedding(Vec<f32>),
    /// The request is complete. The last event.
    Finished(FinishReason),
    /// The sequence could not be completed. The last event.
    Failed(Error),
}

/// Runs requests, several at a time.
pub struct EngineCore {
    runner: Box<dyn Runner>,
    scheduler: Scheduler,
    batch: Batch,
    output: StepOutput,
    drawer: Drawer,
    draft: Option<DraftModel>,
    intake: Intake,
    adapters: Vec<Arc<LoadedAdapter>>,
    /// What happened in a step. Reused.
    events: Vec<(SeqId, Event)>,
}

impl std::fmt::Debug for EngineCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineCore").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

impl EngineCore {
    /// An engine over `runner`. Tickets and cancels are those of `intake`.
    pub fn new(runner: Box<dyn Runner>, intake: Intake) -> Self {
        let limits = runner.limits();
        intake.set_max_step_tokens(limits.max_num_batched_tokens);
        let (scheduler, batch) = (Scheduler::new(limits, runner.rope_contexts()), Batch::new(limits.block_size));
        let (output, drawer, adapters) = (StepOutput::default(), Drawer::new(1), Vec::new());
        EngineCore { runner, scheduler, batch, output, drawer, draft: None, intake, adapters, events: Vec::new() }
    }

    /// Sample on at most this many threads, where many rows have to be. By default on one, that of the caller. The
    /// number changes no token.
    pub fn with_sampling_threads(mut self, threads: usize) -> Self {
        self.drawer = Drawer::new(threads);
        self
    }

    /// Guess the next tokens of requests with [`Speculation::Draft`] by a second, small model: `runner`, whose token ids
    /// have to mean the same. It has K/V of its own, and should have room for as many sequences. Its limits may be others;
    /// a sequence that exceeds them has no guesses.
    ///
    /// Where it fails, it is not used any more, and answers go on without: see [`Intake::draft_error`].
    pub fn with_draft(mut self, runner: Box<dyn Runner>) -> Self {
        self.draft = Some(DraftModel::new(runner));
        self
    }

    /// Whether requests share the K/V of common prompt prefixes, also with earlier requests. They do by default.
    pub fn with_prefix_cache(mut self, on: bool) -> Self {
        self.scheduler.prefix_cache = on;
        self
    }

    /// How long a step may take while answers run: parts of prompts are cut to what was computed in that time lately.
    /// Any time by default.
    pub fn with_max_step_time(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.scheduler.pace.at_most = time.into();
        self
    }

    /// The limits of the runner.
    pub fn limits(&self) -> &Limits {
        self.runner.limits()
    }

    /// Queue a request.
    ///
    /// # Errors
    /// As [`Request::check`], and [`Error::InvalidArgument`] for [`Speculation::Draft`] without a draft model, and for an
    /// adapter of another engine.
    pub fn add(&mut self, request: Request, ticket: Ticket) -> Result<SeqId> {
        let _float_env = FloatEnv::enter();
        if self.draft.is_none()
            && matches!(&request.goal, Goal::Generate(params) if params.speculation == Speculation::Draft)
        {
            return Err(Error::argument("speculation", "the engine has no draft model"));
        }
        self.check_adapter(request.adapter.as_ref())?;
        self.scheduler.add(request, ticket, self.runner.limits())
    }

    /// Whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Run one step and report what happened to which sequence. False if there was nothing to compute: no requests, or
    /// only requests whose readers have no room for rows. Use [`Intake::wait`] then to wait until it is worth trying
    /// again.
    pub fn step(&mut self, mut report: impl FnMut(SeqId, Event)) -> bool {
        let _float_env = FloatEnv::enter();
        self.free_adapters();
        let EngineCore { runner, scheduler, batch, output, drawer, draft, intake, events, .. } = self;
        let started = Instant::now();
        // Reported when the figures are written down, so that who hears of an end finds it there.
        let mut note = |id, event| events.push((id, event));
        scheduler.remove_ended(started, &mut note);
        let drafting = draft.as_mut().map_or(Ok(Duration::ZERO), |draft| draft.guess(scheduler.drafting(), drawer));
        let drafting = drafting.unwrap_or_else(|error| {
            intake.set_draft_error(&error);
            Duration::ZERO
        });
        scheduler.draft_time += drafting;
        scheduler.schedule();
        if scheduler.scheduled().is_empty() {
            intake.set_stats(scheduler.stats(), None);
            intake.set_deadline(scheduler.next_deadline());
            events.drain(..).for_each(|(id, event)| report(id, event));
            return false;
        }
        scheduler.prepare_masks();
        let members: Vec<_> = scheduler.members().collect();
        let (outcome, interrupted) = intake.during_step(members.into_iter(), |interrupt| {
            scheduler.copy_blocks(|copies| runner.copy_blocks(copies))?;
            scheduler.fill(batch)?;
            runner.execute(batch, output, interrupt)
        });
        let large = started.elapsed().saturating_sub(drafting);
        scheduler.record(large);
        draft.iter_mut().for_each(|draft| draft.earn(large));
        match outcome.and_then(|()| verdicts::verdicts(scheduler, output, runner.limits(), drawer)) {
            Ok(verdicts) => scheduler.update(verdicts, &mut note),
            // A request of the step was cancelled: the others compute the step again.
            Err(Error::Cancelled) if interrupted => scheduler.remove_ended(Instant::now(), &mut note),
            // Retrying might go on forever.
            Err(Error::Cancelled) => {
                let reason = "the runner cancelled a step that nobody cancelled".into();
                scheduler.fail_scheduled(Error::StepFailed { reason, kind: ErrorKind::Device }, &mut note);
            }
            // Any other failure is a device failure: the sequences of the step cannot continue.
            Err(error) => scheduler.fail_scheduled(error, &mut note),
        }
        intake.set_stats(scheduler.stats(), Some(started.elapsed()));
        events.drain(..).for_each(|(id, event)| report(id, event));
        // There may be no further step that would free what its last request held.
        self.free_adapters();
        true
    }
}

#[cfg(test)]
mod tests;
