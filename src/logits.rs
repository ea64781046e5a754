//! The logits of a whole prompt, row by row.

use std::sync::mpsc::Receiver;

use qwen_core::engine::{Canceller, Event, Goal, Request, RowWindow};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::worker::Stamped;

impl Engine {
    /// The logits after each token of `ids`, row by row, while other requests run. Takes the memory of a few rows,
    /// however long the prompt is. The whole context may be filled.
    ///
    /// ```no_run
    /// let engine = qwen::Engine::load("path/to/Qwen2.5-0.5B")?;
    /// let ids = engine.tokenizer()?.encode("The sky is blue.", true)?;
    /// for (row, next) in engine.logits_rows(ids.as_slice())?.zip(&ids[1..]) {
    ///     println!("{}", row?[*next as usize]);
    /// }
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::generate_ids`].
    pub fn logits_rows(&self, ids: impl Into<Vec<u32>>) -> Result<LogitsRows> {
        LogitsRows::new(self.clone(), ids.into())
    }

    /// The logits after each token of `ids` at once: `[ids.len(), vocab_size]`. For short prompts: a row of Qwen2.5 has
    /// 600 KB.
    ///
    /// # Errors
    /// As [`Engine::logits_rows`], and [`qwen_core::Error::DoesNotFit`] with the figures when the rows together are
    /// larger than the memory that is free.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let len = ids.len().saturating_mul(self.config().vocab_size);
        let needed = (len as u64).saturating_mul(4);
        let rows = self.logits_rows(ids)?;
        let free = qwen_core::memory::available_memory().map_or(u64::MAX, |memory| memory.available);
        let mut logits: Vec<f32> = Vec::new();
        if needed > free || logits.try_reserve_exact(len).is_err() {
            let advice = format!(": {} rows at once; read them one by one with logits_rows", ids.len());
            return Err(qwen_core::Error::DoesNotFit { needed, available: free, advice }.into());
        }
        for row in rows {
            logits.extend_from_slice(&row?);
        }
        Ok(logits)
    }
}

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
