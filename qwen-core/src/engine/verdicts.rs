//! From the rows of a step's output to the result for each sequence. Damage in a row ends only its own sequence.

use super::sampling::{Logprobs, SampleError, Workspace, logprobs};
use super::scheduler::{Scheduled, Scheduler, Verdict};
use super::sequence::{Sequence, Task};
use crate::backend::Limits;
use crate::error::{Error, Result};
use crate::model::batch::{StepOutput, WantLogits};

/// The verdict on each scheduled sequence, in order.
///
/// # Errors
/// [`Error::Device`] when the output does not have the rows that the step wants, or has an invalid id.
pub(super) fn verdicts(
    scheduler: &mut Scheduler,
    output: &mut StepOutput,
    limits: &Limits,
    workspace: &mut Workspace,
) -> Result<Vec<Verdict>> {
    let scheduled = scheduler.scheduled().to_vec();
    let mut rows = Rows { output, limits, next: 0 };
    let verdicts = scheduled.iter().enumerate().map(|(seq, &part)| {
        let verdict = verdict(scheduler.sequence(part), part, &mut rows, workspace)?;
        Ok(verdict.unwrap_or_else(|| Verdict::Failed(rows.damage(seq, scheduler.sequence(part)))))
    });
    verdicts.collect()
}

/// The step's result for one sequence, or `None` if one of its rows is damaged.
fn verdict(
    sequence: &mut Sequence,
    part: Scheduled,
    rows: &mut Rows<'_>,
    workspace: &mut Workspace,
) -> Result<Option<Verdict>> {
    match (&mut sequence.task, part.logits) {
        (_, WantLogits::None) => Ok(Some(Verdict::Prompt)),
        (Task::Score { .. }, _) => {
            let mut logits = Vec::with_capacity(part.num_tokens);
            for _ in 0..part.num_tokens {
                let (id, values) = rows.next_with_values()?;
                logits.extend(id.map(|_| values.to_vec()));
            }
            Ok((logits.len() == part.num_tokens).then_some(Verdict::Logits(logits)))
        }
        (Task::Generate { .. }, _) => answer(sequence, part, rows, workspace),
    }
}

/// The next tokens of an answer: what the first row gives, and as long as that is what was guessed, what the next row
/// gives. `None` if the first row is damaged.
fn answer(
    sequence: &mut Sequence,
    part: Scheduled,
    rows: &mut Rows<'_>,
    workspace: &mut Workspace,
) -> Result<Option<Verdict>> {
    let end = match part.logits {
        WantLogits::ArgmaxAll | WantLogits::All => rows.next + part.num_tokens,
        _ => rows.next + 1,
    };
    let (known, mut verdict) = (sequence.tokens.len(), None);
    let mut tokens: Vec<(u32, Option<Logprobs>)> = Vec::with_capacity(1);
    while rows.next < end {
        let (id, logprobs) = match next_token(sequence, part.logits, rows, workspace)? {
            Next::Token(id, logprobs) => (id, logprobs),
            // The next step fails if the token before it is not the last of the answer.
            Next::Damaged => break,
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
    Failed(Error),
}

/// The token that the next row gives.
fn next_token(
    sequence: &mut Sequence,
    wanted: WantLogits,
    rows: &mut Rows<'_>,
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
    // Sampling changes the row.
    let before = top.map(|top| (values.to_vec(), top));
    Ok(match sampler.sample(tokens, values, workspace) {
        Ok(id) => Next::Token(id, before.and_then(|(row, top)| logprobs(&row, id, top))),
        Err(SampleError::Damaged) => Next::Damaged,
        Err(error) => Next::Failed(Error::argument("sampling", error.to_string())),
    })
}

/// The rows of a step's output, one after the other.
struct Rows<'a> {
    output: &'a mut StepOutput,
    limits: &'a Limits,
    next: usize,
}

impl Rows<'_> {
    /// The id of the next row's largest logit, `None` when the row is damaged.
    fn next(&mut self) -> Result<Option<u32>> {
        let id = self.output.argmax.get(self.next).copied().ok_or_else(|| self.missing())?;
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
        if self.output.logits.len() < start.saturating_add(width) {
            return Err(self.missing());
        }
        let id = self.next()?;
        Ok((id, self.output.logits.get_mut(start..start + width).unwrap_or_default()))
    }

    fn missing(&self) -> Error {
        let StepOutput { argmax, logits, .. } = &*self.output;
        failed(format!("row {} is wanted, {} ids and {} logits came", self.next, argmax.len(), logits.len()))
    }

    /// The error for sequence number `seq` of the step, which has a damaged row.
    fn damage(&self, seq: usize, sequence: &Sequence) -> Error {
        let found = self.output.damage.iter().find(|damage| damage.seq == seq);
        let mut place = found.map_or("the output head", |damage| damage.place.as_str()).to_owned();
        // Only the last part of a prompt was checked: the K/V that it attends to may have been damaged before.
        let has_earlier_part = sequence.num_computed_tokens > 0 && sequence.num_computed_tokens < sequence.prompt_len;
        if has_earlier_part && place != "the embedding" {
            place += ", or before it in an earlier part of the prompt";
        }
        Error::NonFinite { sequence: sequence.id.0, place }
    }
}

fn failed(reason: String) -> Error {
    Error::Device { device: "the runner".into(), op: "execute".into(), reason }
}
