//! The logits of a whole prompt, row by row.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use qwen_core::engine::{Canceller, Event, LoadedAdapter, Request, RowWindow};

use crate::channel::{Receiver, Wait};
use crate::engine::Engine;
use crate::error::Result;
use crate::worker::{Output, Stamped, Worker};

impl Engine {
    /// The logits after each token of `ids`, row by row, while other requests run. Holds only a few rows in memory,
    /// however long the prompt is. The prompt may fill the whole context.
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
        LogitsRows::new(self.worker().clone(), ids.into(), self.hold(self.default_adapter())?)
    }

    /// The logits after each token of `ids` at once: `[ids.len(), vocab_size]`. For short prompts: a row of a Qwen2.5
    /// model takes 600 KB.
    ///
    /// # Errors
    /// As [`Engine::logits_rows`], and [`qwen_core::Error::DoesNotFit`] with the figures when all rows together need
    /// more memory than is free.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let free = qwen_core::memory::available_memory().map_or(u64::MAX, |memory| memory.available);
        self.logits_rows(ids)?.together(self.config().vocab_size, free)
    }
}

/// The logits after each token of a prompt, in order: rows of `vocab_size` values. Created by [`Engine::logits_rows`].
///
/// Owned: it can be moved into a thread. The engine computes only a few rows ahead of the reader; dropping the iterator
/// cancels the rest.
#[derive(Debug)]
#[must_use = "dropping the rows cancels them"]
pub struct LogitsRows {
    // Keeps the engine's thread alive.
    worker: Arc<Worker>,
    events: Receiver<Stamped>,
    canceller: Canceller,
    window: RowWindow,
    left: usize,
}

impl LogitsRows {
    pub(crate) fn new(worker: Arc<Worker>, prompt: Vec<u32>, adapter: Option<Arc<LoadedAdapter>>) -> Result<Self> {
        // One step's rows can be read while the next step computes.
        let window = worker.intake().window(worker.limits().max_num_logits.saturating_mul(2));
        let left = prompt.len();
        let request = Request::score(prompt, window.clone()).adapter(adapter);
        let (events, canceller) = worker.submit(request, None)?;
        Ok(LogitsRows { worker, events, canceller, window, left })
    }

    /// All rows at once, of `width` values each, if they are no larger than the `free` bytes.
    ///
    /// # Errors
    /// [`qwen_core::Error::DoesNotFit`] with the figures, and the error that ends the rows early.
    pub(crate) fn together(self, width: usize, free: u64) -> Result<Vec<f32>> {
        let len = self.left.saturating_mul(width);
        let needed = (len as u64).saturating_mul(4);
        let mut logits: Vec<f32> = Vec::new();
        if needed > free || logits.try_reserve_exact(len).is_err() {
            let advice = format!(": {} rows of logits at once; read them one by one with logits_rows", self.left);
            return Err(qwen_core::Error::DoesNotFit { needed, available: free, advice }.into());
        }
        for row in self {
            logits.extend_from_slice(&row?);
        }
        Ok(logits)
    }

    /// A handle that stops the computation from any thread. The iterator then returns [`qwen_core::Error::Cancelled`].
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// The next row if it is there: see [`TextStream::try_next`](crate::TextStream::try_next).
    pub fn try_next(&mut self) -> Poll<Option<Result<Vec<f32>>>> {
        self.advance(&mut Wait::Not)
    }

    /// The next row for a task: see [`TextStream::poll_next`](crate::TextStream::poll_next).
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Vec<f32>>>> {
        self.advance(&mut Wait::Wake(context))
    }

    fn advance(&mut self, wait: &mut Wait<'_, '_>) -> Poll<Option<Result<Vec<f32>>>> {
        let error = loop {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            match ready!(self.worker.receive(&mut self.events, wait)) {
                Ok((Output::Step(Event::Logits(row)), _)) => {
                    self.window.give_back();
                    self.left -= 1;
                    return Poll::Ready(Some(Ok(row)));
                }
                Ok((Output::Step(Event::Finished(_)), _)) => break qwen_core::Error::Cancelled.into(),
                Ok((Output::Step(Event::Failed(error)), _)) => break error.into(),
                // Progress of the prompt, and what only other requests get.
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        self.left = 0;
        Poll::Ready(Some(Err(error)))
    }
}

impl Iterator for LogitsRows {
    type Item = Result<Vec<f32>>;

    fn next(&mut self) -> Option<Result<Vec<f32>>> {
        Wait::block(|wait| self.advance(wait))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left > 0), Some(self.left))
    }
}

impl Drop for LogitsRows {
    fn drop(&mut self) {
        if self.left > 0 && self.worker.is_here() {
            self.canceller.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::tests::worker;

    #[test]
    fn rows_that_do_not_fit_together_are_refused_with_the_figure() {
        let worker = Arc::new(worker());
        let rows = |len: usize| LogitsRows::new(worker.clone(), vec![1; len], None).unwrap();
        assert_eq!(rows(64).together(1000, 256_000).unwrap(), vec![0.5; 64_000]);
        let error = rows(64).together(1000, 255_999).unwrap_err().to_string();
        let expected =
            "needs 256000 bytes of memory, 255999 bytes are available: 64 rows of logits at once; read them one";
        assert!(error.starts_with(expected), "{error}");
        // A size that overflows is too large.
        assert!(rows(64).together(usize::MAX, u64::MAX - 1).is_err());
        assert_eq!(rows(64).map(Result::unwrap).filter(|row| row.len() == 1000).count(), 64);
    }
}
