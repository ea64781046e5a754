//! From the rows of a step's output to the result for each sequence. Damage in a row ends only its own sequence.

use super::Event;
use super::scheduler::{Scheduled, Scheduler, Verdict};
use super::sequence::{Rows as Uses, Sequence, Task};
use crate::backend::Limits;
use crate::error::{Error, Result};
use crate::model::batch::{StepOutput, WantLogits};

/// The verdict on each scheduled sequence, in order.
///
/// # Errors
/// [`Error::Device`] when the output does not have the rows that the step wants, or has an invalid id.
pub(super) fn verdicts(scheduler: &mut Scheduler, output: &mut StepOutput, limits: &Limits) -> Result<Vec<Verdict>> {
    let scheduled = scheduler.scheduled().to_vec();
    let num_hidden =
        scheduled.iter().map(|part| if let WantLogits::Hidden(rows) = part.logits { rows } else { 0 }).sum();
    let mut rows = Rows { output, limits, next: 0, next_hidden: 0, num_hidden };
    let verdicts = scheduled.iter().enumerate().map(|(seq, &part)| {
        let verdict = verdict(scheduler.sequence(part), part, &mut rows)?;
        Ok(verdict.unwrap_or_else(|| Verdict::Failed(rows.damage(seq, scheduler.sequence(part)))))
    });
    verdicts.collect()
}

/// The step's result for one sequence, or `None` if one of its rows is damaged.
fn verdict(sequence: &mut Sequence, part: Scheduled, rows: &mut Rows<'_>) -> Result<Option<Verdict>> {
    let position = sequence.tokens.len() - sequence.prompt_len;
    match (&mut sequence.task, part.logits) {
        (_, WantLogits::None) => Ok(Some(Verdict::Prompt)),
        (Task::Score { rows: Uses::Hidden(pool), .. }, WantLogits::Hidden(count)) => {
            let mut is_sound = true;
            for _ in 0..count {
                let values = rows.next_hidden()?;
                is_sound &= values.iter().all(|value| value.is_finite());
                pool.add(values);
            }
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
                        events.extend(found.into_iter().map(Event::Logprobs));
                    }
                    _ => events.push(Event::Logits(values.to_vec())),
                }
            }
            Ok(is_sound.then_some(Verdict::Rows(count, events)))
        }
        (Task::Score { .. }, _) => Err(failed("a scored sequence wants other rows".into())),
        (Task::Generate { sampler, .. }, WantLogits::Argmax) => Ok(rows.next()?.map(|id| {
            sampler.accept(id);
            Verdict::Token(id)
        })),
        (Task::Generate { sampler, .. }, _) => {
            let num_token_ids = rows.limits.num_token_ids;
            let (id, values) = rows.next_with_values()?;
            let values = values.get_mut(..num_token_ids).unwrap_or_default();
            Ok(id.and_then(|_| sampler.sample(position, values)).map(Verdict::Token))
        }
    }
}

/// The rows of a step's output, one after the other.
struct Rows<'a> {
    output: &'a mut StepOutput,
    limits: &'a Limits,
    next: usize,
    next_hidden: usize,
    num_hidden: usize,
}

impl Rows<'_> {
    /// The next row of hidden states.
    fn next_hidden(&mut self) -> Result<&[f32]> {
        let (len, count) = (self.output.hidden.len(), self.num_hidden.max(1));
        let width = len / count;
        if width == 0 || !len.is_multiple_of(count) {
            return Err(failed(format!("{count} rows of hidden states are wanted, {len} values came")));
        }
        let start = self.next_hidden * width;
        self.next_hidden += 1;
        Ok(self.output.hidden.get(start..start + width).unwrap_or_default())
    }

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
