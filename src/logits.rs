//! The logits of a whole prompt, row by row.

use std::sync::mpsc::Receiver;

use qwen_core::engine::{Canceller, Event, Goal, Request, RowWindow};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::worker::Stamped;

/// The logits after each token of a prompt, in order: rows of `vocab_size` values. Made by [`Engine::logits_rows`].
///
/// Owned: it may move into a thread. The engine computes a few rows ahead of the reader and no more; dropping the
/// iterator cancels the rest.
#[derive(Debug)]
pub struct LogitsRows {
    engine: Engine,
    events: Receiver<Stamped>,
    canceller: Canceller,
    window: RowWindow,
    left: usize,
}

impl LogitsRows {
    pub(crate) fn new(engine: Engine, prompt: Vec<u32>) -> Result<Self> {
        let worker = engine.worker();
        // One step's rows to be read while the next step computes.
        let window = worker.intake().window(worker.limits().max_num_logits.saturating_mul(2));
        let left = prompt.len();
        let request = Request { prompt, goal: Goal::Score(window.clone()) };
        let (events, canceller) = worker.submit(request)?;
        Ok(LogitsRows { engine, events, canceller, window, left })
    }

    /// A handle that stops the computation from any thread. The iterator then gives [`qwen_core::Error::Cancelled`].
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl Iterator for LogitsRows {
    type Item = Result<Vec<f32>>;

    fn next(&mut self) -> Option<Result<Vec<f32>>> {
        let error = loop {
            if self.left == 0 {
                return None;
            }
            if let Err(error) = self.engine.worker().check_alive() {
                break error;
            }
            match self.events.recv() {
                Ok((Event::Logits(row), _)) => {
                    self.window.give_back();
                    self.left -= 1;
                    return Some(Ok(row));
                }
                Ok((Event::Prompt(_) | Event::Token(_), _)) => {}
                Ok((Event::Finished(_), _)) => break qwen_core::Error::Cancelled.into(),
                Ok((Event::Failed(error), _)) => break error.into(),
                Err(_) => break Error::stopped("its thread has ended"),
            }
        };
        self.left = 0;
        Some(Err(error))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left > 0), Some(self.left))
    }
}

impl Drop for LogitsRows {
    fn drop(&mut self) {
        if self.left > 0 && self.engine.worker().is_here() {
            self.canceller.cancel();
        }
    }
}
