//! The other ranks: they compute what rank 0 sends.

use super::frame::Kind;
use super::link::{Link, damaged};
use super::wire;
use crate::backend::{Backend, Interrupt};
use crate::error::{Error, Result};
use crate::runner::{ModelRunner, Runner};

/// Compute with rank 0, a [`super::LeaderRunner`], until it is done. `runner` holds this rank's part of the model, for
/// the same limits as rank 0's.
///
/// # Errors
/// What the device reports, which rank 0 is told; and [`Error::RankFailed`] when another rank failed or is lost.
pub fn follow<B: Backend>(mut runner: ModelRunner<B>, link: &Link) -> Result<()> {
    serve(&mut runner, link).inspect_err(|error| link.fail(error))
}

fn serve<B: Backend>(runner: &mut ModelRunner<B>, link: &Link) -> Result<()> {
    let no_sense = |reason: String| damaged(0, &reason);
    let mut last = None;
    loop {
        let message = link.receive_any(0)?;
        match message.kind {
            Kind::Step => {
                let batch = wire::step_from_bytes(&message.payload, runner.limits()).map_err(no_sense)?;
                // The step that would be located is this one, even if it fails.
                let key = runner.run(&batch, None, &Interrupt::default())?;
                last = Some((batch, key));
            }
            Kind::Locate => {
                let (batch, key) = last.as_ref().ok_or_else(|| no_sense("no step came before".into()))?;
                // Rank 0 finds the same and reports it; this rank only takes part.
                let _: Error = runner.non_finite(batch, None, *key)?;
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
        link.send(Kind::Done, &[])?;
    }
}
