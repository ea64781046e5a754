//! The loop of the ranks other than 0: receive a step, compute this rank's part, answer.

use super::frame::Kind;
use super::transport::{Transport, damaged};
use super::values::{receive_hidden, send_hidden};
use super::wire::{self, Writer};
use crate::backend::{Backend, Interrupt};
use crate::error::Result;
use crate::model::runner::{ModelRunner, Runner, Stage};

/// Compute the steps of rank 0's [`super::DistributedRunner`] until that is dropped. `runner` holds this rank's part of
/// the model, for the same limits as rank 0's.
///
/// # Errors
/// Errors of the device, which are also reported to rank 0; and [`crate::Error::RankFailed`] when another rank fails or
/// disconnects.
pub fn worker_loop<B: Backend>(mut runner: ModelRunner<B>, transport: &Transport) -> Result<()> {
    serve(&mut runner, transport).map_err(|error| transport.end_with(error))
}

fn serve<B: Backend>(runner: &mut ModelRunner<B>, transport: &Transport) -> Result<()> {
    let no_sense = |reason: String| damaged(0, &reason);
    let hidden_size = runner.spec().hidden_size;
    let (is_first, is_last) = (runner.spec().is_first(), runner.spec().is_last());
    let neighbours = (transport.rank().saturating_sub(1), (transport.rank() + 1) % transport.world_size());
    let on_device = runner.hands_over();
    let (mut passed, mut last) = (Vec::new(), None);
    loop {
        let message = transport.receive_any(0)?;
        let mut answer = Writer::default();
        match message.kind {
            Kind::Step => {
                let batch = wire::step_from_bytes(&message.payload, runner.limits()).map_err(no_sense)?;
                let mut hidden = None;
                if !is_first && on_device {
                    runner.take_over(batch.num_tokens(), neighbours.0)?;
                } else if !is_first {
                    let values = hidden.insert(vec![0.0; batch.num_tokens() * hidden_size]);
                    receive_hidden(transport, 0, values)?;
                }
                let key = runner.run(&batch, hidden.as_deref(), &Interrupt::default())?;
                if !is_last && on_device {
                    runner.pass_on(batch.num_tokens(), neighbours.1)?;
                } else if !is_last {
                    runner.read_hidden(batch.num_tokens(), &mut passed)?;
                    send_hidden(transport, 0, &passed)?;
                }
                last = Some((batch, hidden, key));
            }
            Kind::Locate => {
                let (batch, hidden, key) = last.as_ref().ok_or_else(|| no_sense("no step was sent before".into()))?;
                let found = if on_device {
                    let (from, to) = ((!is_first).then_some(neighbours.0), (!is_last).then_some(neighbours.1));
                    runner.locate_in_turn(batch, *key, from, to)?
                } else {
                    runner.locate(batch, hidden.as_deref(), *key)?
                };
                answer.damage(&found);
            }
            Kind::CopyBlocks => {
                let copies = wire::copies_from_bytes(&message.payload, runner.limits()).map_err(no_sense)?;
                runner.copy_blocks(&copies)?;
            }
            Kind::Shutdown => return Ok(()),
            other => return Err(no_sense(format!("{other:?} between steps"))),
        }
        // A device may report an error late: get it before the answer.
        runner.synchronize()?;
        transport.send(Kind::Done, &answer.0)?;
    }
}
