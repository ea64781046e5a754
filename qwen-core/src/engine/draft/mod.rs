//! A draft model: a small model that guesses the next tokens of answers, which the large model then checks in one step.
//!
//! It is a second [`Runner`] with K/V of its own. Before a step of the large model it computes what it lacks of each
//! sequence that wants guesses, a long text in several steps, and goes on from there: one step of its own for each guess,
//! for all sequences together. What it would write is drawn by the sequence's own sampler, with the random numbers that
//! the large model's draws will have, so that sampled answers are guessed as often as the two models agree.
//!
//! Nothing here decides about an answer: the large model draws each token, as without guesses. So a draft model that
//! fails, runs out of memory or guesses badly costs time at most. `worth.rs` decides how much of it.

mod state;
mod worth;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use self::state::State;
use self::worth::{Outlook, Worth};
use super::SeqId;
use super::draws::Drawer;
use super::kv::BlockPool;
use super::sampling::{Sampler, Workspace};
use super::scheduler::Drafting;
use super::sequence::{Sequence, Task};
use crate::backend::{Interrupt, Limits};
use crate::error::{Error, Result};
use crate::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use crate::model::rope::stage_reaching;
use crate::model::runner::Runner;

/// The most guesses for a sequence in a step.
const MOST: usize = 15;

/// Tokens that a sequence computes in its first step, as any that is not behind: its last one, and the last guess if all
/// were right.
const NEAR: usize = 2;

/// Tokens of the first step that catches up, whose time is not known yet.
const FIRST_CHUNK: usize = 64;

/// A draft model, and what it has of each sequence.
pub(super) struct DraftModel {
    runner: Box<dyn Runner>,
    pool: BlockPool,
    states: HashMap<SeqId, State>,
    worth: Worth,
    batch: Batch,
    output: StepOutput,
    /// Counts the steps of the large model.
    round: u64,
    /// Whether it is no longer used, since its device failed.
    has_failed: bool,
}

/// A sequence in a round of guesses.
struct Member {
    /// Its index among the running sequences.
    index: usize,
    id: SeqId,
    /// Its sampler as it will be at the next guess.
    sampler: Sampler,
    /// How many guesses it wants.
    count: usize,
    /// Whether they are only compared with what comes.
    is_probe: bool,
    /// Its stage of RoPE in the draft model.
    rope_stage: u32,
    /// Tokens without guesses.
    num_known: usize,
    /// Whether it takes part in further steps of the round.
    goes_on: bool,
}

impl DraftModel {
    pub(super) fn new(runner: Box<dyn Runner>) -> Self {
        let Limits { num_blocks, block_size, .. } = *runner.limits();
        DraftModel {
            runner,
            pool: BlockPool::new(num_blocks),
            states: HashMap::new(),
            worth: Worth::default(),
            batch: Batch::new(block_size),
            output: StepOutput::default(),
            round: 0,
            has_failed: false,
        }
    }

    /// Leave guesses in the sequences that want some and for which they are worth their time. Returns the time that this
    /// took.
    ///
    /// # Errors
    /// The device's. No sequence has guesses then, and there will be none any more.
    pub(super) fn guess(&mut self, mut drafting: Drafting<'_>, drawer: &mut Drawer) -> Result<Duration> {
        let started = Instant::now();
        let wanting = drafting.running.iter_mut().filter(|sequence| sequence.has_draft_model());
        let wanting: HashSet<SeqId> = wanting
            .map(|sequence| {
                sequence.draft.clear();
                sequence.id
            })
            .collect();
        if self.has_failed || (wanting.is_empty() && self.states.is_empty()) {
            return Ok(Duration::ZERO);
        }
        self.round += 1;
        let DraftModel { states, pool, .. } = self;
        states.retain(|id, state| {
            let stays = wanting.contains(id);
            if !stays {
                state.give_up(pool);
            }
            stays
        });
        let mut members = self.members(&mut drafting);
        if members.is_empty() {
            return Ok(started.elapsed());
        }
        let outcome = self.run(&mut members, &mut drafting, drawer);
        for member in &members {
            let sequence = &mut drafting.running[member.index];
            let guesses = sequence.tokens.split_off(member.num_known);
            let Some(state) = self.states.get_mut(&member.id).filter(|_| outcome.is_ok()) else { continue };
            if drafting.prefix_cache {
                state.publish(&sequence.tokens, &mut self.pool);
            }
            if !member.is_probe {
                sequence.draft.extend_from_slice(&guesses);
            }
            state.guesses = guesses;
        }
        if outcome.is_err() {
            self.has_failed = true;
            self.states.drain().for_each(|(_, mut state)| state.withdraw(&mut self.pool));
        }
        outcome.map(|()| started.elapsed())
    }

    /// Count steps as they are expected to be, not as they are measured.
    #[cfg(test)]
    pub(super) fn freeze(&mut self) {
        self.worth.times.is_frozen = true;
    }

    /// Whether it holds nothing of any sequence.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.states.is_empty() && self.pool.num_free() == self.pool.num_blocks()
    }

    /// A step of the large model took this long: some of it may be spent on probes.
    pub(super) fn earn(&mut self, elapsed: Duration) {
        self.worth.earn(elapsed.as_secs_f64());
    }

    /// The sequences for which guesses are worth their time, with blocks for them.
    fn members(&mut self, drafting: &mut Drafting<'_>) -> Vec<Member> {
        let DraftModel { runner, pool, states, worth, round, .. } = self;
        let Limits { max_model_len, block_size, max_num_seqs, max_num_logits, num_token_ids, .. } = *runner.limits();
        worth.pace.at_most = drafting.max_step_time;
        let num_running = drafting.running.len();
        let wanting = drafting.running.iter().enumerate();
        let wanting = wanting.filter(|(_, sequence)| sequence.has_draft_model() && sequence.num_guesses() > 0);
        let wanting: Vec<(usize, &Sequence)> = wanting.take(max_num_seqs.min(max_num_logits)).collect();
        let num_drafting = wanting.len();
        let mut members = Vec::new();
        for (index, sequence) in wanting {
            let Task::Generate { sampler, .. } = &sequence.task else { continue };
            // The first one that reaches far enough, as in the large model.
            let rope_stage = stage_reaching(runner.rope_contexts(), sequence.max_len) as u32;
            let state = states.entry(sequence.id).or_insert_with(|| {
                worth.begin();
                State::new(&sequence.cache_salt(), rope_stage, block_size)
            });
            let tokens = &sequence.tokens;
            state.look(tokens, num_token_ids, worth);
            if state.is_unfit {
                state.give_up(pool);
                continue;
            }
            if drafting.prefix_cache {
                state.catch_up(tokens, pool);
            }
            let left = sequence.num_guesses();
            let positions = (max_model_len + 1).saturating_sub(tokens.len());
            let outlook = Outlook {
                rate: worth.rate(&state.record),
                behind: (tokens.len() - state.num_computed_tokens).saturating_sub(NEAR),
                left,
                most: left.min(positions).min(drafting.num_rows / num_drafting).min(MOST),
                num_drafting,
                num_running,
            };
            let count = worth.count(&outlook, drafting.times);
            let is_probe = count == 0;
            if is_probe && (outlook.most == 0 || !worth.pay_probe(outlook.behind)) {
                continue;
            }
            state.last_round = *round;
            members.push(Member {
                index,
                id: sequence.id,
                sampler: sampler.clone(),
                count: count.max(1),
                is_probe,
                rope_stage,
                num_known: tokens.len(),
                goes_on: true,
            });
        }
        members.retain(|member| self.reserve(member));
        // A runner reads the values of the leading rows only.
        members.sort_by_key(|member| member.sampler.is_argmax());
        members
    }

    /// Allocate blocks for a sequence and its guesses, from states that are not used now if there are no others. False
    /// if there are none: then it gives up those that it has, so that others can go on.
    fn reserve(&mut self, member: &Member) -> bool {
        let DraftModel { pool, states, round, .. } = self;
        let end = member.num_known + member.count - 1;
        loop {
            let Some(state) = states.get_mut(&member.id) else { return false };
            let needed = end.div_ceil(state.blocks.table.block_size());
            // A shared block is never written: what is shared are full blocks of known tokens.
            if needed.saturating_sub(state.blocks.table.blocks().len()) <= pool.num_free()
                && state.blocks.table.reserve(state.num_computed_tokens, end, pool).is_ok_and(|copy| copy.is_none())
            {
                return true;
            }
            let has_blocks = |state: &State| !state.blocks.table.blocks().is_empty();
            let idle = states.values_mut().filter(|state| state.last_round != *round && has_blocks(state));
            match idle.min_by_key(|state| state.last_round) {
                Some(idle) => idle.give_up(pool),
                None => break,
            }
        }
        if let Some(state) = states.get_mut(&member.id) {
            state.give_up(pool);
        }
        false
    }

    /// Guess for all members, one step for each guess. The guesses are behind the tokens of their sequences.
    fn run(&mut self, members: &mut [Member], drafting: &mut Drafting<'_>, drawer: &mut Drawer) -> Result<()> {
        for step in 0..MOST {
            let started = Instant::now();
            let parts = self.fill(members, drafting.running)?;
            if parts.is_empty() {
                break;
            }
            self.runner.execute(&self.batch, &mut self.output, &Interrupt::default())?;
            for &(member, num_tokens) in &parts {
                if let Some(state) = self.states.get_mut(&members[member].id) {
                    state.num_computed_tokens += num_tokens;
                }
            }
            self.draw(members, &parts, drafting.running, drawer)?;
            let seconds = started.elapsed().as_secs_f64();
            match step == 0 && parts.iter().any(|(_, num_tokens)| *num_tokens > NEAR) {
                true => self.worth.pace.record(self.batch.num_tokens(), seconds),
                false => self.worth.times.record(parts.len(), seconds),
            }
        }
        Ok(())
    }

    /// Fill the batch with the next tokens of the members that go on. Returns which of them it has, each with its tokens.
    fn fill(&mut self, members: &mut [Member], running: &[Sequence]) -> Result<Vec<(usize, usize)>> {
        let DraftModel { runner, states, batch, worth, .. } = self;
        batch.clear();
        let mut budget = runner.limits().max_num_batched_tokens;
        let pending = |member: &Member| {
            let computed = states.get(&member.id).map_or(0, |state| state.num_computed_tokens);
            running[member.index].tokens.len().saturating_sub(computed)
        };
        let mut shares: Vec<usize> =
            members.iter().map(|member| if member.goes_on { pending(member) } else { 0 }).collect();
        // Who is behind gets what the others leave.
        for share in shares.iter_mut().filter(|share| **share <= NEAR) {
            *share = (*share).min(budget);
            budget -= *share;
        }
        budget = budget.min(match worth.pace.seconds_per_token() {
            Some(_) => worth.pace.num_tokens(),
            None => FIRST_CHUNK,
        });
        for share in shares.iter_mut().filter(|share| **share > NEAR) {
            *share = (*share).min(budget);
            budget -= *share;
        }
        let mut parts = Vec::with_capacity(members.len());
        for (index, (member, share)) in members.iter_mut().zip(shares).enumerate() {
            let Some(state) = states.get(&member.id).filter(|_| member.goes_on && share > 0) else {
                member.goes_on = false;
                continue;
            };
            let (first, tokens) = (state.num_computed_tokens, &running[member.index].tokens);
            member.goes_on = first + share == tokens.len();
            let logits = match (member.goes_on, member.sampler.is_argmax()) {
                (false, _) => WantLogits::None,
                (true, true) => WantLogits::Argmax,
                (true, false) => WantLogits::Last,
            };
            batch.push(SequenceStep {
                input_ids: &tokens[first..first + share],
                num_computed_tokens: first,
                block_table: state.blocks.table.blocks(),
                logits,
                rope_stage: member.rope_stage,
                adapter: None,
            })?;
            parts.push((index, share));
        }
        Ok(parts)
    }

    /// Draw the next guess of each member whose tokens are computed.
    fn draw(
        &mut self,
        members: &mut [Member],
        parts: &[(usize, usize)],
        running: &mut [Sequence],
        drawer: &mut Drawer,
    ) -> Result<()> {
        let Limits { vocab_size, num_token_ids, .. } = *self.runner.limits();
        let StepOutput { argmax, logits, .. } = &mut self.output;
        let mut rows = logits.chunks_exact_mut(vocab_size.max(1));
        let mut members: Vec<Option<&mut Member>> = members.iter_mut().map(Some).collect();
        let complete = parts.iter().filter_map(|(index, _)| members[*index].take()).filter(|member| member.goes_on);
        let complete: Vec<&mut Member> = complete.collect();
        if argmax.len() < complete.len() {
            return Err(failed(format!("{} ids are wanted, {} came", complete.len(), argmax.len())));
        }
        let mut jobs = Vec::with_capacity(complete.len());
        for (member, &id) in complete.into_iter().zip(argmax.iter()) {
            let row = match member.sampler.is_argmax() {
                true => None,
                false => Some(rows.next().ok_or_else(|| failed("a row of logits is missing".into()))?),
            };
            jobs.push((member, id, row));
        }
        let tokens: &[Sequence] = running;
        let num_drawn: Vec<usize> = jobs.iter().map(|(_, _, row)| usize::from(row.is_some())).collect();
        let drawn = drawer.run(&num_drawn, jobs, |job, workspace| draw_one(job, tokens, num_token_ids, workspace));
        for (member, drawn, is_damaged) in drawn {
            let sequence = &mut running[member.index];
            if is_damaged && let Some(state) = self.states.get_mut(&member.id) {
                state.is_unfit = true;
                state.withdraw(&mut self.pool);
            }
            // Forced tokens may be any.
            let Some(id) = drawn.filter(|id| (*id as usize) < num_token_ids) else {
                member.goes_on = false;
                continue;
            };
            sequence.tokens.push(id);
            let guessed = sequence.tokens.len() - member.num_known;
            member.goes_on = guessed < member.count && sequence.finish_reason().is_none();
        }
        Ok(())
    }
}

/// A member with the id of its row's largest logit, and with the row where its sampler draws from that.
type Job<'a> = (&'a mut Member, Option<u32>, Option<&'a mut [f32]>);

/// How long a guess waits for the mask of a constraint.
const MASK_WAIT: Duration = Duration::from_millis(2);

/// The next guess, if there is one, and whether its row is damaged.
fn draw_one<'a>(
    (member, largest, row): Job<'a>,
    running: &[Sequence],
    num_token_ids: usize,
    workspace: &mut Workspace,
) -> (&'a mut Member, Option<u32>, bool) {
    let drawn = match (largest, row) {
        (Some(_), Some(row)) => {
            let row = row.get_mut(..num_token_ids).unwrap_or_default();
            let tokens = &running[member.index].tokens;
            // A row that nothing can be drawn from ends the guesses, not the answer.
            let is_ready = member.sampler.wait(tokens, Instant::now() + MASK_WAIT);
            if is_ready { member.sampler.sample(tokens, row, workspace).ok() } else { None }
        }
        (largest, _) => largest,
    };
    (member, drawn, largest.is_none())
}

fn failed(reason: String) -> Error {
    Error::Device { device: "the draft model's runner".into(), op: "execute".into(), reason }
}
