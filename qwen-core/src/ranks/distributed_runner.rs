//! Rank 0's runner, whose steps all ranks compute.

use std::sync::Arc;

use super::failure::Failure;
use super::frame::Kind;
use super::transport::{Transport, damaged};
use super::values::{receive_hidden, send_hidden};
use super::wire::{self, Reader};
use crate::backend::{Backend, Interrupt};
use crate::batch::{Batch, Limits, StepOutput};
use crate::error::{Error, Result};
use crate::kv::CopyBlock;
use crate::runner::{self, ModelRunner, Runner};

/// A [`Runner`] over several processes. It sends each step to the other ranks, which run [`super::worker_loop`],
/// computes its own part, and reads the logits.
///
/// An interrupt takes effect between steps: once a step has begun, all ranks compute it to its end, since a rank that
/// left would keep the others waiting for its part of a sum. Ranks that share layers look between their parts, unless
/// devices exchange the activations. When a rank fails, every later step fails too, and the other ranks end at once,
/// even if no step is running.
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

    /// Do something on all ranks. An error leaves them out of step, so it ends them all.
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
/// the previous rank's device sends. Returns why there is no output, if there is none.
fn step_at_once<B: Backend>(
    runner: &mut ModelRunner<B>,
    transport: &Transport,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
) -> Result<Option<Error>> {
    let previous = runner.hands_over().then(|| transport.world_size() - 1);
    transport.send(Kind::Step, step)?;
    if let Some(previous) = previous {
        runner.take_over(batch.num_tokens(), previous)?;
    }
    let key = runner.run(batch, None, &Interrupt::default())?;
    let finite = runner.read_output(batch, output)?;
    wait_for_all(transport)?;
    if finite {
        return Ok(None);
    }
    transport.send(Kind::Locate, &[])?;
    let mut place = runner.locate_in_turn(batch, key, previous, None)?;
    for rank in 1..transport.world_size() {
        let found = transport.receive(rank, Kind::Done)?;
        let found = Reader(&found).text().map_err(|reason| damaged(rank, &reason))?;
        place = place.or(Some(found).filter(|found| !found.is_empty()));
    }
    Ok(Some(runner::non_finite_in(place)))
}

/// A step that the ranks compute one after the other, each its layers, with activations through the hosts; rank 0 has
/// the last layers. Returns why there is no output, if there is none.
fn step_in_turn<B: Backend>(
    runner: &mut ModelRunner<B>,
    transport: &Transport,
    step: &[u8],
    batch: &Batch,
    output: &mut StepOutput,
    interrupt: &Interrupt,
) -> Result<Option<Error>> {
    let mut hidden = vec![0.0; batch.num_tokens() * runner.spec().hidden_size];
    for rank in 1..transport.world_size() {
        if interrupt.is_raised() {
            return Ok(Some(Error::Cancelled));
        }
        transport.send_to(rank, Kind::Step, step)?;
        if rank > 1 {
            send_hidden(transport, rank, &hidden)?;
        }
        receive_hidden(transport, rank, &mut hidden)?;
        transport.receive(rank, Kind::Done)?;
        if !hidden.iter().all(|value| value.is_finite()) {
            transport.send_to(rank, Kind::Locate, &[])?;
            let place = transport.receive(rank, Kind::Done)?;
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

/// Wait until all ranks have done what they were sent.
fn wait_for_all(transport: &Transport) -> Result<()> {
    (1..transport.world_size()).try_for_each(|rank| transport.receive(rank, Kind::Done).map(drop))
}

impl<B: Backend> Runner for DistributedRunner<B> {
    fn limits(&self) -> &Limits {
        self.runner.limits()
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        batch.check(self.limits())?;
        let step = wire::step_to_bytes(batch, self.limits())?;
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        // An error that leaves the ranks in step is returned as a value: it is no failure of a rank.
        let ended = self.together(|runner, transport| {
            // Only ranks that share heads have the first layer on rank 0.
            let shares_heads = runner.spec().is_first();
            match shares_heads || runner.hands_over() {
                true => step_at_once(runner, transport, &step, batch, output),
                false => step_in_turn(runner, transport, &step, batch, output, interrupt),
            }
        })?;
        ended.map_or(Ok(()), Err)
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
