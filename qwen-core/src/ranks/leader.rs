//! Rank 0: a runner whose steps all ranks compute.

use std::sync::Arc;

use super::frame::Kind;
use super::link::{Link, damaged};
use super::peer::Failure;
use super::values::{receive_hidden, send_hidden};
use super::wire;
use crate::backend::{Backend, Interrupt};
use crate::batch::{Batch, Damage, Limits, StepOutput};
use crate::error::{Error, Result};
use crate::kv::CopyBlock;
use crate::runner::{ModelRunner, Runner};

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
/// the device of the rank before hands over.
fn at_once<B: Backend>(
    runner: &mut ModelRunner<B>,
    link: &Link,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
) -> Result<()> {
    let before = runner.hands_over().then(|| link.world_size() - 1);
    link.send(Kind::Step, step)?;
    if let Some(before) = before {
        runner.take_over(batch.num_tokens(), before)?;
    }
    let key = runner.compute(batch, None, output, &Interrupt::default())?;
    all_done(link)?;
    if !output.is_sound() {
        link.send(Kind::Locate, &[])?;
        let mut found = runner.locate_in_turn(batch, key, before, None)?;
        for rank in 1..link.world_size() {
            found.extend(receive_damage(link, rank, batch)?);
        }
        output.set_damage(batch, &found);
    }
    Ok(())
}

/// A step that the ranks compute one after the other, each its layers, by way of the host; rank 0 the last ones. False
/// when it was cancelled.
fn by_layers<B: Backend>(
    runner: &mut ModelRunner<B>,
    link: &Link,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
    interrupt: &Interrupt,
) -> Result<bool> {
    let mut hidden = vec![0.0; batch.num_tokens() * runner.spec().hidden_size];
    for rank in 1..link.world_size() {
        if interrupt.is_raised() {
            return Ok(false);
        }
        link.send_to(rank, Kind::Step, step)?;
        if rank > 1 {
            send_hidden(link, rank, &hidden)?;
        }
        receive_hidden(link, rank, &mut hidden)?;
        link.receive(rank, Kind::Done)?;
    }
    let key = match runner.compute(batch, Some(&hidden), output, interrupt) {
        Ok(key) => key,
        Err(Error::Cancelled) => return Ok(false),
        Err(error) => return Err(error),
    };
    if !output.is_sound() {
        let mut found = runner.locate(batch, Some(&hidden), key)?;
        for rank in 1..link.world_size() {
            link.send_to(rank, Kind::Locate, &[])?;
            found.extend(receive_damage(link, rank, batch)?);
        }
        output.set_damage(batch, &found);
    }
    Ok(true)
}

/// What a rank found damaged in its part of the step.
fn receive_damage(link: &Link, rank: usize, batch: &Batch) -> Result<Vec<Damage>> {
    let found = link.receive(rank, Kind::Done)?;
    wire::damage_from_bytes(&found, batch.num_seqs()).map_err(|reason| damaged(rank, &reason))
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
        // A cancelled step leaves the ranks in step: it is no failure of theirs.
        let completed = self.together(|runner, link| {
            // By layers rank 0 has the last ones, and another rank has the first.
            let shares_heads = runner.spec().is_first();
            match shares_heads || runner.hands_over() {
                true => at_once(runner, link, &step, batch, output).map(|()| true),
                false => by_layers(runner, link, &step, batch, output, interrupt),
            }
        })?;
        if completed { Ok(()) } else { Err(Error::Cancelled) }
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
