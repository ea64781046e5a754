//! The other ranks: they compute what rank 0 sends.

use super::frame::Kind;
use super::link::{Link, damaged};
use super::values::{receive_hidden, send_hidden};
use super::wire::{self, Writer};
use crate::backend::{Backend, Interrupt};
use crate::error::Result;
use crate::runner::{ModelRunner, Runner};

/// Compute with rank 0, a [`super::LeaderRunner`], until it is done. `runner` holds this rank's part of the model, for
/// the same limits as rank 0's.
///
/// # Errors
/// What the device reports, which rank 0 is told; and [`Error::RankFailed`] when another rank failed or is lost.
pub fn follow<B: Backend>(mut runner: ModelRunner<B>, link: &Link) -> Result<()> {
    serve(&mut runner, link).map_err(|error| link.end_with(error))
}

fn serve<B: Backend>(runner: &mut ModelRunner<B>, link: &Link) -> Result<()> {
    let no_sense = |reason: String| damaged(0, &reason);
    let (hidden_size, begins, goes_on) =
        (runner.spec().hidden_size, runner.spec().is_first(), !runner.spec().is_last());
    let neighbours = (link.rank().saturating_sub(1), (link.rank() + 1) % link.world_size());
    let on_device = runner.hands_over();
    let mut last = None;
    loop {
        let message = link.receive_any(0)?;
        let mut answer = Writer::default();
        match message.kind {
            Kind::Step => {
                let batch = wire::step_from_bytes(&message.payload, runner.limits()).map_err(no_sense)?;
                let mut hidden = None;
                if !begins && on_device {
                    runner.take_over(batch.num_tokens(), neighbours.0)?;
                } else if !begins {
                    let values = hidden.insert(vec![0.0; batch.num_tokens() * hidden_size]);
                    receive_hidden(link, 0, values)?;
                }
                let key = runner.run(&batch, hidden.as_deref(), &Interrupt::default())?;
                if goes_on && on_device {
                    runner.pass_on(batch.num_tokens(), neighbours.1)?;
                } else if goes_on {
                    send_hidden(link, 0, &runner.read_hidden(batch.num_tokens())?)?;
                }
                last = Some((batch, hidden, key));
            }
            Kind::Locate => {
                let (batch, hidden, key) = last.as_ref().ok_or_else(|| no_sense("no step came before".into()))?;
                let found = if on_device {
                    let (from, to) = ((!begins).then_some(neighbours.0), goes_on.then_some(neighbours.1));
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
        // What a device reports late belongs to what it was told last.
        runner.synchronize()?;
        link.send(Kind::Done, &answer.0)?;
    }
}
