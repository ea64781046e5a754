//! From the rows of a step's output to the result for each sequence. Damage in a row ends only its own sequence.

use std::time::{Duration, Instant};

use super::Event;
use super::draws::Drawer;
use super::sampling::{Logprobs, SampleError, Workspace, logprobs};
use super::scheduler::{Scheduled, Scheduler, Verdict};
use super::sequence::{Rows as Uses, Sequence, Task};
use crate::backend::Limits;
use crate::error::{Error, Result};
use crate::model::batch::{Damage, StepOutput, WantLogits};

/// How long a step waits for the masks of constraints. A sequence whose mask is later than that has no token of the step.
const MASK_WAIT: Duration = Duration::from_millis(20);

/// The verdict on each scheduled sequence, in order.
///
/// # Errors
/// [`Error::Device`] when the output does not have the rows that the step wants, or has an invalid id.
pub(super) fn verdicts(
    scheduler: &mut Scheduler,
    output: &mut StepOutput,
    limits: &Limits,
    drawer: &mut Drawer,
) -> Result<Vec<Verdict>> {
    let mut parts = scheduler.scheduled_sequences();
    let StepOutput { argmax, logits, hidden, damage } = output;
    let came = (argmax.len(), logits.len());
    let num_hidden: usize = parts.iter().map(|(part, _)| num_hidden(part.logits)).sum();
    if num_hidden > 0 && (hidden.is_empty() || !hidden.len().is_multiple_of(num_hidden)) {
        return Err(failed(format!("{num_hidden} rows of hidden states are wanted, {} values came", hidden.len())));
    }
    let hidden_size = hidden.len() / num_hidden.max(1);
    let mut rest = Rows { argmax, values: logits, hidden, hidden_size, limits, next: 0, first: 0, came };
    let num_drawn = |part: &Scheduled| match part.logits {
        WantLogits::Last => 1,
        WantLogits::All => part.num_tokens,
        _ => 0,
    };
    let drawn: Vec<usize> = parts.iter().map(|(part, _)| num_drawn(part)).collect();
    let jobs: Vec<_> = parts.iter_mut().map(|(part, sequence)| (rest.split(*part), *part, &mut **sequence)).collect();
    let until = Instant::now() + MASK_WAIT;
    let results = drawer.run(&drawn, jobs, |(mut rows, part, sequence), workspace| {
        verdict(sequence, part, &mut rows, until, workspace)
    });
    let verdicts = results.into_iter().zip(&parts).enumerate().map(|(seq, (verdict, (_, sequence)))| {
        Ok(verdict?.unwrap_or_else(|| Verdict::Failed(error_of(damage, seq, sequence))))
    });
    verdicts.collect()
}

/// The step's result for one sequence, or `None` if one of its rows is damaged.
fn verdict(
    sequence: &mut Sequence,
    part: Scheduled,
    rows: &mut Rows<'_>,
    until: Instant,
    workspace: &mut Workspace,
) -> Result<Option<Verdict>> {
    match (&mut sequence.task, part.logits) {
        (_, WantLogits::None) => Ok(Some(Verdict::Prompt)),
        (Task::Score { rows: Uses::Hidden(pool), .. }, WantLogits::Hidden(count)) => {
            let is_sound = rows.hidden.iter().all(|value| value.is_finite());
            rows.hidden.chunks_exact(rows.hidden_size.max(1)).for_each(|row| pool.add(row));
            let is_last = sequence.num_computed_tokens + part.num_tokens == sequence.tokens.len();
            let embedding = is_last.then(|| Event::Embedding(pool.mean()));
            Ok(is_sound.then(|| Verdict::Rows(count, embedding.into_iter().collect())))
        }
        (Task::Score { rows: uses, num_scored }, WantLogits::Tail(count)) => {
            let num_token_ids = rows.limits.num_token_ids;
            // Rows that are scored are those of the last targets.
            let first = sequence.num_computed_tokens.max(*num_scored);
            let mut events = Vec::with_capacity(count);
            let mut is_sound = true;
            for position in first..first + count {
                let (id, values) = rows.next_with_values()?;
                match uses {
                    _ if id.is_none() => is_sound = false,
                    Uses::Logprobs(params) => {
                        let index = (position + params.targets.len()).saturating_sub(sequence.prompt_len);
                        let found = params.of_row(index, values.get(..num_token_ids).unwrap_or_default());
                        events.extend(found.into_iter().map(Event::Scored));
                    }
                    _ => events.push(Event::Logits(values.to_vec())),
                }
            }
            Ok(is_sound.then_some(Verdict::Rows(count, events)))
        }
        (Task::Score { .. }, _) => Err(failed("a scored sequence wants other rows".into())),
        (Task::Generate { .. }, _) => answer(sequence, part, rows, until, workspace),
    }
}

/// The next tokens of an answer: what the first row gives, and as long as that is what was guessed, what the next row
/// gives. `None` if the first row is damaged.
fn answer(
    sequence: &mut Sequence,
    part: Scheduled,
    rows: &mut Rows<'_>,
    until: Instant,
    workspace: &mut Workspace,
) -> Result<Option<Verdict>> {
    let end = match part.logits {
        WantLogits::ArgmaxAll | WantLogits::All => rows.next + part.num_tokens,
        _ => rows.next + 1,
    };
    let (known, mut verdict) = (sequence.tokens.len(), None);
    let mut tokens: Vec<(u32, Option<Logprobs>)> = Vec::with_capacity(1);
    while rows.next < end {
        let (id, logprobs) = match next_token(sequence, part.logits, rows, until, workspace)? {
            Next::Token(id, logprobs) => (id, logprobs),
            // The next step fails if the token before it is not the last of the answer.
            Next::Damaged => break,
            Next::Late => {
                verdict = Some(Verdict::Late);
                break;
            }
            Next::Failed(error) => {
                verdict = Some(Verdict::Failed(error));
                break;
            }
        };
        let as_guessed = sequence.draft.get(tokens.len()) == Some(&id);
        sequence.tokens.push(id);
        tokens.push((id, logprobs));
        if !as_guessed || sequence.finish_reason().is_some() {
            break;
        }
    }
    sequence.tokens.truncate(known);
    rows.next = end;
    Ok(if tokens.is_empty() { verdict } else { Some(Verdict::Tokens(tokens)) })
}

enum Next {
    Token(u32, Option<Logprobs>),
    Damaged,
    Late,
    Failed(Error),
}

/// The token that the next row gives.
fn next_token(
    sequence: &mut Sequence,
    wanted: WantLogits,
    rows: &mut Rows<'_>,
    until: Instant,
    workspace: &mut Workspace,
) -> Result<Next> {
    let Sequence { task, tokens, .. } = sequence;
    let Task::Generate { sampler, logprobs: top, .. } = task else { return Ok(Next::Damaged) };
    if matches!(wanted, WantLogits::Argmax | WantLogits::ArgmaxAll) {
        return Ok(rows.next()?.map_or(Next::Damaged, |id| Next::Token(id, None)));
    }
    let num_token_ids = rows.limits.num_token_ids;
    let (id, values) = rows.next_with_values()?;
    let values = values.get_mut(..num_token_ids).unwrap_or_default();
    if id.is_none() {
        return Ok(Next::Damaged);
    }
    if !sampler.wait(tokens, until) {
        return Ok(Next::Late);
    }
    // Sampling changes the row.
    let before = top.map(|top| (values.to_vec(), top));
    Ok(match sampler.sample(tokens, values, workspace) {
        Ok(id) => Next::Token(id, before.and_then(|(row, top)| logprobs(&row, id, top))),
        Err(SampleError::Damaged) => Next::Damaged,
        Err(SampleError::Constraint(error)) => Next::Failed(Error::Grammar { reason: error.to_string() }),
        Err(error) => Next::Failed(Error::argument("sampling", error.to_string())),
    })
}

/// Rows of hidden states that a sequence wants.
fn num_hidden(wanted: WantLogits) -> usize {
    if let WantLogits::Hidden(rows) = wanted { rows } else { 0 }
}

/// Rows of a step's output, one after the other. Those with values come first.
struct Rows<'a> {
    argmax: &'a [Option<u32>],
    values: &'a mut [f32],
    hidden: &'a [f32],
    hidden_size: usize,
    limits: &'a Limits,
    next: usize,
    /// The number of the first one in the step.
    first: usize,
    /// How many ids and logits the step has.
    came: (usize, usize),
}

impl<'a> Rows<'a> {
    /// Split the rows of a part off, as far as they are there.
    fn split(&mut self, part: Scheduled) -> Rows<'a> {
        let (num_rows, has_values) = match part.logits {
            WantLogits::None | WantLogits::Hidden(_) => (0, false),
            WantLogits::Argmax => (1, false),
            WantLogits::ArgmaxAll => (part.num_tokens, false),
            WantLogits::Last => (1, true),
            WantLogits::All => (part.num_tokens, true),
            WantLogits::Tail(rows) => (rows, true),
        };
        let (argmax, rest) = self.argmax.split_at(num_rows.min(self.argmax.len()));
        let num_values = if has_values { num_rows.saturating_mul(self.limits.vocab_size) } else { 0 };
        let values = std::mem::take(&mut self.values);
        let (values, rest_of_values) = values.split_at_mut(num_values.min(values.len()));
        (self.argmax, self.values) = (rest, rest_of_values);
        let (hidden, rest_of_hidden) = self.hidden.split_at(num_hidden(part.logits) * self.hidden_size);
        self.hidden = rest_of_hidden;
        let first = self.first;
        self.first += num_rows;
        Rows { argmax, values, hidden, next: 0, first, ..*self }
    }

    /// The id of the next row's largest logit, `None` when the row is damaged.
    fn next(&mut self) -> Result<Option<u32>> {
        let id = self.argmax.get(self.next).copied().ok_or_else(|| self.missing())?;
        self.next += 1;
        match id.filter(|id| *id as usize >= self.limits.num_token_ids) {
            Some(id) => {
                Err(failed(format!("id {id} is not below {}, the number of token ids", self.limits.num_token_ids)))
            }
            None => Ok(id),
        }
    }

    /// The same, with the row's logits.
    fn next_with_values(&mut self) -> Result<(Option<u32>, &mut [f32])> {
        let (start, width) = (self.next.saturating_mul(self.limits.vocab_size), self.limits.vocab_size);
        if self.values.len() < start.saturating_add(width) {
            return Err(self.missing());
        }
        let id = self.next()?;
        Ok((id, self.values.get_mut(start..start + width).unwrap_or_default()))
    }

    fn missing(&self) -> Error {
        let (ids, logits) = self.came;
        failed(format!("row {} is wanted, {ids} ids and {logits} logits came", self.first + self.next))
    }
}

/// The error for sequence number `seq` of the step, which has a damaged row.
fn error_of(damage: &[Damage], seq: usize, sequence: &Sequence) -> Error {
    let found = damage.iter().find(|damage| damage.seq == seq);
    let mut place = found.map_or("the output head", |damage| damage.place.as_str()).to_owned();
    // Only the last part of a prompt was checked: the K/V that it attends to may have been damaged before.
    let has_earlier_part = sequence.num_computed_tokens > 0 && sequence.num_computed_tokens < sequence.prompt_len;
    if has_earlier_part && place != "the embedding" {
        place += ", or before it in an earlier part of the prompt";
    }
    Error::NonFinite { sequence: sequence.id.0, place }
}

fn failed(reason: String) -> Error {
    Error::Device { device: "the runner".into(), op: "execute".into(), reason }
}
