//! Rank 0's runner, whose steps are computed by all ranks.

use std::sync::Arc;

use super::failure::Failure;
use super::frame::Kind;
use super::transport::{Transport, damaged};
use super::values::{receive_hidden, send_hidden};
use super::wire;
use crate::backend::Limits;
use crate::backend::{Backend, Interrupt};
use crate::error::{Error, Result};
use crate::model::batch::CopyBlock;
use crate::model::batch::{Batch, Damage, StepOutput};
use crate::model::runner::{ModelRunner, Runner, Stage};

/// A [`Runner`] over several processes. It sends each step to the other ranks, which run [`super::worker_loop`],
/// computes its own part, and reads the logits.
///
/// An interrupt takes effect between steps: once a step has begun, all ranks complete it, since a rank that stopped
/// would leave the others waiting for its part of a sum. With pipeline parallelism it also takes effect between stages,
/// unless devices exchange the activations. When a rank fails, every later step fails too, and the other ranks end at
/// once, even if no step is running.
#[derive(Debug)]
pub struct DistributedRunner<B: Backend> {
    runner: ModelRunner<B>,
    transport: Arc<Transport>,
    failure: Option<Failure>,
}

impl<B: Backend> DistributedRunner<B> {
    /// The runner of rank 0, with `runner` for rank 0's part of the model.
    pub fn new(runner: ModelRunner<B>, transport: Arc<Transport>) -> Self {
        transport.report_failures();
        DistributedRunner { runner, transport, failure: None }
    }

    /// Do something on all ranks. An error leaves them out of sync, so it ends them all.
    fn together<T>(&mut self, act: impl FnOnce(&mut ModelRunner<B>, &Transport) -> Result<T>) -> Result<T> {
        if let Some(failure) = &self.failure {
            return Err(failure.error());
        }
        act(&mut self.runner, &self.transport).map_err(|error| {
            self.failure = Some(self.transport.cause(&error));
            self.transport.end_with(error)
        })
    }
}

/// A step that all ranks begin at once: each computes its share of every layer, or its layers on the activations that
/// the previous rank's device sends.
fn step_at_once<B: Backend>(
    runner: &mut ModelRunner<B>,
    transport: &Transport,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
) -> Result<()> {
    let previous = runner.hands_over().then(|| transport.world_size() - 1);
    transport.send(Kind::Step, step)?;
    if let Some(previous) = previous {
        runner.take_over(batch.num_tokens(), previous)?;
    }
    let key = runner.compute(batch, None, output, &Interrupt::default())?;
    wait_for_all(transport)?;
    if !output.is_sound() {
        transport.send(Kind::Locate, &[])?;
        let mut found = runner.locate_in_turn(batch, key, previous, None)?;
        for rank in 1..transport.world_size() {
            found.extend(receive_damage(transport, rank, batch)?);
        }
        output.set_damage(batch, &found);
    }
    Ok(())
}

/// A step that the ranks compute one after another, each its layers, with activations passed through the hosts; rank 0
/// has the last layers. Returns false if it was cancelled.
fn step_in_turn<B: Backend>(
    runner: &mut ModelRunner<B>,
    transport: &Transport,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
    interrupt: &Interrupt,
) -> Result<bool> {
    let mut hidden = vec![0.0; batch.num_tokens() * runner.spec().hidden_size];
    for rank in 1..transport.world_size() {
        if interrupt.is_raised() {
            return Ok(false);
        }
        transport.send_to(rank, Kind::Step, step)?;
        if rank > 1 {
            send_hidden(transport, rank, &hidden)?;
        }
        receive_hidden(transport, rank, &mut hidden)?;
        transport.receive(rank, Kind::Done)?;
    }
    let key = match runner.compute(batch, Some(&hidden), output, interrupt) {
        Ok(key) => key,
        Err(Error::Cancelled) => return Ok(false),
        Err(error) => return Err(error),
    };
    if !output.is_sound() {
        let mut found = runner.locate(batch, Some(&hidden), key)?;
        for rank in 1..transport.world_size() {
            transport.send_to(rank, Kind::Locate, &[])?;
            found.extend(receive_damage(transport, rank, batch)?);
        }
        output.set_damage(batch, &found);
    }
    Ok(true)
}

/// The damage that a rank found in its part of the step.
fn receive_damage(transport: &Transport, rank: usize, batch: &Batch) -> Result<Vec<Damage>> {
    let found = transport.receive(rank, Kind::Done)?;
    wire::damage_from_bytes(&found, batch.num_seqs()).map_err(|reason| damaged(rank, &reason))
}

/// Wait until all ranks have done what they were sent.
fn wait_for_all(transport: &Transport) -> Result<()> {
    (1..transport.world_size()).try_for_each(|rank| transport.receive(rank, Kind::Done).map(drop))
}

impl<B: Backend> Runner for DistributedRunner<B> {
    fn limits(&self) -> &Limits {
        self.runner.limits()
    }

    fn rope_contexts(&self) -> &[usize] {
        self.runner.rope_contexts()
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        batch.check(self.limits())?;
        let step = wire::step_to_bytes(batch, self.limits())?;
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        // A cancelled step leaves the ranks in sync: it is not a failure of a rank.
        let completed = self.together(|runner, transport| {
            // Only ranks that share heads have the first layer on rank 0.
            let shares_heads = runner.spec().is_first();
            match shares_heads || runner.hands_over() {
                true => step_at_once(runner, transport, &step, batch, output).map(|()| true),
                false => step_in_turn(runner, transport, &step, batch, output, interrupt),
            }
        })?;
        if completed { Ok(()) } else { Err(Error::Cancelled) }
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        self.together(|runner, transport| {
            transport.send(Kind::CopyBlocks, &wire::copies_to_bytes(copies))?;
            runner.copy_blocks(copies)?;
            wait_for_all(transport)
        })
    }
}

impl<B: Backend> Drop for DistributedRunner<B> {
    fn drop(&mut self) {
        if self.failure.is_none() {
            self.transport.shut_down();
        }
    }
}
