//! The sampling of one sequence: from a row of logits and what came before it to a token.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::constraint::{ConstraintError, ConstraintState, State};
use super::dry;
use super::masks;
use super::params::SamplingParams;
use super::penalties;
use super::pool::Pool;
use super::processor::History;
use super::random::{Purpose, uniform};
use super::select::Candidate;
use super::stage::Stage;
use crate::error::Result;
use crate::numerics::float_env::FloatEnv;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The model's logits have a NaN or positive infinity among them, or none is finite.
    #[error("the model's logits are damaged")]
    Damaged,
    /// What is banned, allowed and forced leaves no token, or the caller's stages do not.
    #[error(
        "no token is left: the grammar, allowed, banned and forced ids, `min_new_tokens` and the caller's own stages rule \
         out all of them"
    )]
    NothingLeft,
    /// The constraint does not say what may follow.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// A stage of the caller's own panicked, or made a NaN or positive infinity.
    #[error("a logits processor failed: {0}")]
    Processor(String),
}

/// What sampling remembers from token to token. Small, and `Copy`: keep one to come back to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerState {
    /// Mirostat's bound, in bits.
    mirostat_mu: f64,
}

/// Memory that sampling works in. One serves any number of samplers, one after the other.
#[derive(Debug, Default)]
pub struct Workspace {
    candidates: Vec<Candidate>,
    ids: Vec<u32>,
    values: Vec<f32>,
    dry: dry::Scratch,
}

/// Chooses the tokens of one sequence.
///
/// What it chooses is a function of the parameters, the tokens so far, the logits and its [`SamplerState`], which only
/// mirostat changes. So it can be asked about tokens that are only tried: clone it, which is cheap, or
/// [restore](Sampler::restore) its state afterwards.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: Arc<SamplingParams>,
    /// Those with an effect.
    stages: Arc<[Stage]>,
    prompt_len: usize,
    /// The distinct ids of the prompt, if a penalty needs them.
    prompt_ids: Arc<[u32]>,
    stop_token_ids: Arc<[u32]>,
    /// What the answer may be. Copies of the sampler share it.
    constraint: Option<State>,
    state: SamplerState,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    ///
    /// # Errors
    /// As [`SamplingParams::check`].
    pub fn new(params: SamplingParams, prompt: &[u32]) -> Result<Self> {
        params.check()?;
        let counts_prompt = params.is_set(Stage::RepetitionPenalty) && params.window().is_none();
        let mut prompt_ids = if counts_prompt { prompt.to_vec() } else { Vec::new() };
        prompt_ids.sort_unstable();
        prompt_ids.dedup();
        Ok(Sampler {
            stages: params.active_stages().into(),
            prompt_len: prompt.len(),
            prompt_ids: prompt_ids.into(),
            stop_token_ids: Arc::default(),
            constraint: None,
            state: SamplerState { mirostat_mu: params.mirostat.map_or(0.0, |m| 2.0 * f64::from(m.tau)) },
            params: Arc::new(params),
        })
    }

    /// The ids that end an answer, which [`SamplingParams::min_new_tokens`] puts off.
    #[must_use]
    pub fn stop_token_ids(mut self, ids: &[u32]) -> Self {
        self.stop_token_ids = ids.into();
        self
    }

    /// Choose only what this allows.
    #[must_use]
    pub fn constrained(mut self, state: Box<dyn ConstraintState>) -> Self {
        self.constraint = Some(State::new(state));
        self
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Whether every choice is the plain argmax of the logits, which a device can compute itself.
    pub fn is_argmax(&self) -> bool {
        let params = &self.params;
        let is_changed = !self.changes_nothing() || masks::is_set(params) || !params.forced_token_ids.is_empty();
        params.is_greedy() && !is_changed && self.constraint.is_none()
    }

    /// Begin to compute what the constraint needs for the tokens that follow `tokens`, and `tokens` with each further one
    /// of `guesses`.
    pub(in crate::engine) fn prepare(&self, tokens: &[u32], guesses: &[u32]) {
        if let Some(constraint) = &self.constraint {
            constraint.lock().prepare(self.answer(tokens), guesses);
        }
    }

    /// Wait until then for what the constraint needs to choose the token that follows `tokens`. False if it is not there.
    pub(in crate::engine) fn wait(&self, tokens: &[u32], until: Instant) -> bool {
        self.constraint.as_ref().is_none_or(|constraint| constraint.lock().wait(self.answer(tokens), until))
    }

    /// Put the tokens that have to follow `tokens` in place of `guesses`, at most `at_most` of them; without any, cut
    /// `guesses` to those that may follow.
    pub(in crate::engine) fn guide(&self, tokens: &[u32], guesses: &mut Vec<u32>, at_most: usize) {
        let Some(constraint) = self.constraint.as_ref().filter(|_| at_most > 0) else { return };
        let (mut constraint, answer) = (constraint.lock(), self.answer(tokens));
        match constraint.forced(answer, at_most) {
            forced if !forced.is_empty() => *guesses = forced,
            _ if guesses.is_empty() => {}
            _ => guesses.truncate(constraint.num_allowed(answer, guesses)),
        }
    }

    fn answer<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        tokens.get(self.prompt_len..).unwrap_or_default()
    }

    /// Leave only the logits of what the constraint allows. False without a constraint.
    fn constrain(&self, history: &History<'_>, logits: &mut [f32]) -> Result<bool, SampleError> {
        let Some(constraint) = &self.constraint else { return Ok(false) };
        constraint.lock().mask(history.answer())?.apply(logits);
        Ok(true)
    }

    /// Whether no stage changes the values of logits.
    fn changes_nothing(&self) -> bool {
        !self.stages.iter().any(|stage| stage.changes_logits())
    }

    /// The state, to be [restored](Sampler::restore) when the tokens that follow are taken back.
    pub fn state(&self) -> SamplerState {
        self.state
    }

    /// Go back to an earlier state of this sampler.
    pub fn restore(&mut self, state: SamplerState) {
        self.state = state;
    }

    /// Choose the token that follows `tokens`: the prompt and the answer so far. `logits` has one value for each id
    /// that may be chosen, negative infinity for those that are ruled out; it is changed.
    ///
    /// ```
    /// use qwen_core::engine::sampling::{SampleError, Sampler, SamplingParams, Workspace};
    /// let (mut sampler, mut workspace) = (Sampler::new(SamplingParams::default(), &[7])?, Workspace::default());
    /// assert_eq!(sampler.sample(&[7], &mut [0.0, 2.0, 1.0], &mut workspace), Ok(1));
    /// assert_eq!(sampler.sample(&[7, 1], &mut [0.0, f32::NAN, 1.0], &mut workspace), Err(SampleError::Damaged));
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`SampleError`], for which another row or other parameters are needed.
    pub fn sample(
        &mut self,
        tokens: &[u32],
        logits: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<u32, SampleError> {
        let _float_env = FloatEnv::enter();
        let history = History::new(tokens, self.prompt_len);
        let (mut best, mut max) = largest(logits).ok_or(SampleError::Damaged)?;
        let is_constrained = self.constrain(&history, logits)?;
        if let Some(forced) = self.params.forced_token_ids.get(history.position()) {
            return self.checked(*forced, logits);
        }
        if is_constrained {
            (best, max) = largest(logits).ok_or(SampleError::NothingLeft)?;
        }
        if masks::is_set(&self.params) {
            masks::apply(&self.params, &self.stop_token_ids, &history, logits, &mut workspace.values);
            (best, max) = largest(logits).ok_or(SampleError::NothingLeft)?;
        }
        if self.params.is_greedy() {
            if self.changes_nothing() {
                return Ok(best);
            }
            self.stages.iter().try_for_each(|stage| self.change(*stage, &history, logits, workspace))?;
            return largest(logits).map(|(best, _)| best).ok_or(SampleError::NothingLeft);
        }
        let mut candidates = std::mem::take(&mut workspace.candidates);
        let chosen = self.choose(&history, logits, max, &mut candidates, workspace);
        workspace.candidates = candidates;
        chosen
    }

    /// Leave in `logits` what the token after `tokens` is drawn from: the logits after all stages, divided by the
    /// temperature, and negative infinity for every token that is out. Mirostat's bound is that of the state. At a greedy temperature nothing is cut or
    /// divided.
    ///
    /// ```
    /// use qwen_core::engine::sampling::{Sampler, SamplingParams, Workspace};
    /// let sampler = Sampler::new(SamplingParams::new().temperature(0.5).top_k(2), &[7])?;
    /// let mut logits = [0.5, 2.0, 1.0];
    /// sampler.process(&[7], &mut logits, &mut Workspace::default()).expect("they are finite");
    /// assert_eq!(logits, [f32::NEG_INFINITY, 4.0, 2.0]);
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn process(&self, tokens: &[u32], logits: &mut [f32], workspace: &mut Workspace) -> Result<(), SampleError> {
        let _float_env = FloatEnv::enter();
        let history = History::new(tokens, self.prompt_len);
        let (_, mut max) = largest(logits).ok_or(SampleError::Damaged)?;
        let is_constrained = self.constrain(&history, logits)?;
        if let Some(forced) = self.params.forced_token_ids.get(history.position()) {
            self.checked(*forced, logits)?;
            logits.fill(f32::NEG_INFINITY);
            if let Some(logit) = logits.get_mut(*forced as usize) {
                *logit = 0.0;
            }
            return Ok(());
        }
        if is_constrained {
            (_, max) = largest(logits).ok_or(SampleError::NothingLeft)?;
        }
        if masks::is_set(&self.params) {
            masks::apply(&self.params, &self.stop_token_ids, &history, logits, &mut workspace.values);
            (_, max) = largest(logits).ok_or(SampleError::NothingLeft)?;
        }
        let mut candidates = Vec::new();
        let mut pool = self.run(&history, logits, max, &mut candidates, workspace)?;
        if self.params.mirostat.is_some() && !self.params.is_greedy() {
            pool.max_surprise(self.state.mirostat_mu);
        }
        pool.into_logits();
        Ok(())
    }

    /// A forced token, if the constraint allows it.
    fn checked(&self, forced: u32, logits: &[f32]) -> Result<u32, SampleError> {
        let is_out = logits.get(forced as usize).is_none_or(|logit| *logit == f32::NEG_INFINITY);
        if self.constraint.is_some() && is_out { Err(SampleError::NothingLeft) } else { Ok(forced) }
    }

    fn choose(
        &mut self,
        history: &History<'_>,
        logits: &mut [f32],
        max: f32,
        candidates: &mut Vec<Candidate>,
        workspace: &mut Workspace,
    ) -> Result<u32, SampleError> {
        let share = uniform(self.params.seed, history.position(), Purpose::Draw);
        let mut pool = self.run(history, logits, max, candidates, workspace)?;
        let Some(mirostat) = self.params.mirostat else {
            return pool.draw(share).map(|drawn| drawn.id).ok_or(SampleError::NothingLeft);
        };
        let total = pool.max_surprise(self.state.mirostat_mu);
        let drawn = pool.draw(share).ok_or(SampleError::NothingLeft)?;
        let surprise = (total / drawn.weight).log2();
        self.state.mirostat_mu -= f64::from(mirostat.eta) * (surprise - f64::from(mirostat.tau));
        Ok(drawn.id)
    }

    /// All stages but mirostat and the draw.
    fn run<'a>(
        &self,
        history: &History<'_>,
        logits: &'a mut [f32],
        max: f32,
        candidates: &'a mut Vec<Candidate>,
        workspace: &mut Workspace,
    ) -> Result<Pool<'a>, SampleError> {
        let params = &self.params;
        let mut stages = self.stages.as_ref();
        let mut pool = Pool::new(logits, max, candidates);
        while let Some((stage, rest)) = stages.split_first() {
            if stage.changes_logits() {
                // As many of them as there are in a row: then the largest logit is another one.
                let count = stages.iter().take_while(|stage| stage.changes_logits()).count();
                let (these, rest) = stages.split_at(count);
                pool = pool.changed(|logits| {
                    these.iter().try_for_each(|stage| self.change(*stage, history, logits, workspace))?;
                    largest(logits).map(|(_, max)| max).ok_or(SampleError::NothingLeft)
                })?;
                stages = rest;
                continue;
            }
            match stage {
                Stage::Temperature => pool.set_temperature(self.temperature(&pool)),
                Stage::TopK => pool.top_k(params.top_k),
                Stage::TopP => pool.top_p(f64::from(params.top_p)),
                Stage::MinP => pool.min_p(f64::from(params.min_p)),
                Stage::TypicalP => pool.typical_p(f64::from(params.typical_p)),
                Stage::TopNSigma => pool.top_n_sigma(f64::from(params.top_n_sigma)),
                Stage::EpsilonCutoff => pool.epsilon_cutoff(f64::from(params.epsilon_cutoff)),
                Stage::EtaCutoff => pool.eta_cutoff(f64::from(params.eta_cutoff)),
                Stage::Xtc if self.xtc_acts(history) => pool.exclude_top(f64::from(params.xtc_threshold)),
                _ => {}
            }
            stages = rest;
        }
        Ok(pool)
    }

    fn xtc_acts(&self, history: &History<'_>) -> bool {
        let drawn = uniform(self.params.seed, history.position(), Purpose::Xtc);
        drawn < f64::from(self.params.xtc_probability)
    }

    fn temperature(&self, pool: &Pool<'_>) -> f64 {
        let (middle, range) = (f64::from(self.params.temperature), f64::from(self.params.dynatemp_range));
        if range == 0.0 {
            return middle;
        }
        let sums = pool.sums();
        if sums.len < 2 {
            return middle;
        }
        let relative = (sums.entropy() / (sums.len as f64).ln()).clamp(0.0, 1.0);
        let (low, high) = ((middle - range).max(0.0), middle + range);
        let temperature = low + (high - low) * relative.powf(f64::from(self.params.dynatemp_exponent));
        temperature.max(f64::from(SamplingParams::GREEDY_BELOW))
    }

    /// A stage that changes the values of logits. Others are left out.
    fn change(
        &self,
        stage: Stage,
        history: &History<'_>,
        logits: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<(), SampleError> {
        let params = &self.params;
        let ids = &mut workspace.ids;
        match stage {
            Stage::LogitBias => penalties::logit_bias(params, logits),
            Stage::RepetitionPenalty => penalties::repetition(params, &self.prompt_ids, history, logits, ids),
            Stage::FrequencyPenalty => {
                penalties::occurrences(params, [params.frequency_penalty, 0.0], history, logits, ids);
            }
            Stage::PresencePenalty => {
                penalties::occurrences(params, [0.0, params.presence_penalty], history, logits, ids);
            }
            Stage::Dry => {
                if let Some(dry) = &params.dry {
                    dry::apply(dry, history, logits, &mut workspace.dry);
                }
            }
            Stage::Custom => {
                for processor in params.processors.iter() {
                    // What it leaves half done is a row that is thrown away.
                    catch_unwind(AssertUnwindSafe(|| processor.process(history, logits)))
                        .map_err(|panic| SampleError::Processor(text_of(panic.as_ref())))?;
                }
                if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
                    return Err(SampleError::Processor("it left a NaN or positive infinity".into()));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// What a panic says.
fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it panicked").to_owned()
}

/// The id and the value of the largest logit, the lowest id among equals. `None` with a NaN or positive infinity among
/// them, and when none is finite.
fn largest(logits: &[f32]) -> Option<(u32, f32)> {
    const LANES: usize = 16;
    // Whether each value is below infinity, which a NaN is not, and the largest of each lane: as vectors do it.
    let (mut is_sound, mut maxima) = ([true; LANES], [f32::NEG_INFINITY; LANES]);
    let mut chunks = logits.chunks_exact(LANES);
    for chunk in &mut chunks {
        for ((logit, max), sound) in chunk.iter().zip(&mut maxima).zip(&mut is_sound) {
            *sound &= *logit < f32::INFINITY;
            *max = if *logit > *max { *logit } else { *max };
        }
    }
    for ((logit, max), sound) in chunks.remainder().iter().zip(&mut maxima).zip(&mut is_sound) {
        *sound &= *logit < f32::INFINITY;
        *max = if *logit > *max { *logit } else { *max };
    }
    let max = maxima.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    if !is_sound.into_iter().all(|sound| sound) || max == f32::NEG_INFINITY {
        return None;
    }
    // -0 and 0 are equal.
    let id = logits.iter().position(|logit| *logit == max)?;
    Some((id as u32, max))
}
