//! Rank 0: a runner whose steps all ranks compute.

use std::sync::Arc;

use super::frame::Kind;
use super::link::{Link, damaged};
use super::peer::Failure;
use super::values::{receive_hidden, send_hidden};
use super::wire::{self, Reader};
use crate::backend::{Backend, Interrupt};
use crate::batch::{Batch, Limits, StepOutput};
use crate::error::{Error, Result};
use crate::kv::CopyBlock;
use crate::runner::{self, ModelRunner, Runner};

/// A [`Runner`] over several processes: it sends each step to the other ranks, which are in [`super::follow`], computes
/// its own part of it, and reads the logits.
///
/// An interrupt is heeded between steps: a step that has begun is computed to its end on all ranks, since one that left
/// it would leave the others waiting for its part of a sum. Ranks that share layers heed it between their parts, unless
/// devices hand activations on. When a rank fails, so does every step from then on; the other ranks end then, whether or
/// not there is a step.
#[derive(Debug)]
pub struct LeaderRunner<B: Backend> {
    runner: ModelRunner<B>,
    link: Arc<Link>,
    failure: Option<Failure>,
}

impl<B: Backend> LeaderRunner<B> {
    /// The runner of rank 0, which holds `runner`'s part of the model.
    pub fn new(runner: ModelRunner<B>, link: Arc<Link>) -> Self {
        link.spread_losses();
        LeaderRunner { runner, link, failure: None }
    }

    /// Do something with all ranks. An error leaves them out of step, and ends their common work.
    fn together<T>(&mut self, act: impl FnOnce(&mut ModelRunner<B>, &Link) -> Result<T>) -> Result<T> {
        if let Some(failure) = &self.failure {
            return Err(failure.error());
        }
        act(&mut self.runner, &self.link).map_err(|error| {
            self.failure = Some(self.link.cause(&error));
            self.link.end_with(error)
        })
    }
}

/// A step that all ranks have at once: each computes its share of every layer, or its layers on the activations that
/// the device of the rank before hands over. What is returned is why it has no output.
fn at_once<B: Backend>(
    runner: &mut ModelRunner<B>,
    link: &Link,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
) -> Result<Option<Error>> {
    let before = runner.hands_over().then(|| link.world_size() - 1);
    link.send(Kind::Step, step)?;
    if let Some(before) = before {
        runner.take_over(batch.num_tokens(), before)?;
    }
    let key = runner.run(batch, None, &Interrupt::default())?;
    let finite = runner.read_output(batch, output)?;
    all_done(link)?;
    if finite {
        return Ok(None);
    }
    link.send(Kind::Locate, &[])?;
    let mut place = runner.locate_in_turn(batch, key, before, None)?;
    for rank in 1..link.world_size() {
        let found = link.receive(rank, Kind::Done)?;
        let found = Reader(&found).text().map_err(|reason| damaged(rank, &reason))?;
        place = place.or(Some(found).filter(|found| !found.is_empty()));
    }
    Ok(Some(runner::non_finite_in(place)))
}

/// A step that the ranks compute one after the other, each its layers, by way of the host; rank 0 the last ones. What is
/// returned is why it has no output.
fn by_layers<B: Backend>(
    runner: &mut ModelRunner<B>,
    link: &Link,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
    interrupt: &Interrupt,
) -> Result<Option<Error>> {
    let mut hidden = vec![0.0; batch.num_tokens() * runner.spec().hidden_size];
    for rank in 1..link.world_size() {
        if interrupt.is_raised() {
            return Ok(Some(Error::Cancelled));
        }
        link.send_to(rank, Kind::Step, step)?;
        if rank > 1 {
            send_hidden(link, rank, &hidden)?;
        }
        receive_hidden(link, rank, &mut hidden)?;
        link.receive(rank, Kind::Done)?;
        if !hidden.iter().all(|value| value.is_finite()) {
            link.send_to(rank, Kind::Locate, &[])?;
            let place = link.receive(rank, Kind::Done)?;
            let place = Reader(&place).text().map_err(|reason| damaged(rank, &reason))?;
            return Ok(Some(Error::NonFinite { place }));
        }
    }
    match runner.execute_with(batch, Some(&hidden), output, interrupt) {
        Ok(()) => Ok(None),
        Err(error @ (Error::Cancelled | Error::NonFinite { .. })) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// Wait until all ranks have done what they were told.
fn all_done(link: &Link) -> Result<()> {
    (1..link.world_size()).try_for_each(|rank| link.receive(rank, Kind::Done).map(drop))
}

impl<B: Backend> Runner for LeaderRunner<B> {
    fn limits(&self) -> &Limits {
        self.runner.limits()
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        batch.check(self.limits())?;
        let step = wire::step_to_bytes(batch, self.limits())?;
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        // What leaves the ranks in step is no failure of theirs: it comes beside one.
        let ended = self.together(|runner, link| {
            // By layers rank 0 has the last ones, and another rank has the first.
            let shares_heads = runner.spec().is_first();
            match shares_heads || runner.hands_over() {
                true => at_once(runner, link, &step, batch, output),
                false => by_layers(runner, link, &step, batch, output, interrupt),
            }
        })?;
        ended.map_or(Ok(()), Err)
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        self.together(|runner, link| {
            link.send(Kind::CopyBlocks, &wire::copies_to_bytes(copies))?;
            runner.copy_blocks(copies)?;
            all_done(link)
        })
    }
}

impl<B: Backend> Drop for LeaderRunner<B> {
    fn drop(&mut self) {
        if self.failure.is_none() {
            self.link.shut_down();
        }
    }
}
