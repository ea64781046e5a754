//! The tokens of a step, drawn on several threads where there are many of them.
//!
//! A row of logits takes a tenth of a millisecond and more. For a few rows, or on one thread, nothing is started.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::sampling::Workspace;

/// Draws rows: memory for each thread.
#[derive(Debug)]
pub(super) struct Drawer {
    workspaces: Vec<Workspace>,
}

impl Drawer {
    /// The most threads that are of use.
    const MAX_THREADS: usize = 16;
    /// Starting a thread takes as long as half a row.
    const ROWS_PER_THREAD: usize = 4;

    /// On at most this many threads, that of the caller included.
    pub(super) fn new(threads: usize) -> Self {
        let workspaces = std::iter::repeat_with(Workspace::default).take(threads.clamp(1, Self::MAX_THREADS)).collect();
        Drawer { workspaces }
    }

    /// What `run` makes of each job, in order; `num_rows` are the rows that each of them draws from. The results do not
    /// depend on the number of threads.
    pub(super) fn run<J: Send, R: Send>(
        &mut self,
        num_rows: &[usize],
        jobs: Vec<J>,
        run: impl Fn(J, &mut Workspace) -> R + Sync,
    ) -> Vec<R> {
        let threads = self.num_threads(num_rows);
        let mut done = Vec::with_capacity(jobs.len());
        let queue = Mutex::new(jobs.into_iter().enumerate());
        // Nothing that holds the lock can panic.
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = |workspace: &mut Workspace| -> Vec<(usize, R)> {
            std::iter::from_fn(&next).map(|(index, job)| (index, run(job, workspace))).collect()
        };
        let work = &work;
        thread::scope(|scope| {
            let Some((own, others)) = self.workspaces.get_mut(..threads).and_then(<[_]>::split_first_mut) else {
                return;
            };
            let start = |workspace| thread::Builder::new().spawn_scoped(scope, move || work(workspace));
            // Where the system starts no thread, the others do its part.
            let others: Vec<_> = others.iter_mut().map_while(|workspace| start(workspace).ok()).collect();
            done.extend(work(own));
            for other in others {
                // Only a fault of this library panics there: then it does so here.
                done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
        });
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }

    /// A job is never divided.
    fn num_threads(&self, num_rows: &[usize]) -> usize {
        let (rows, jobs) = (num_rows.iter().sum::<usize>(), num_rows.iter().filter(|rows| **rows > 0).count());
        (rows / Self::ROWS_PER_THREAD).min(jobs).clamp(1, self.workspaces.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_threads_for_rows_and_no_more_than_jobs() {
        let drawer = Drawer::new(4);
        // Eight guesses each are as much work as eight answers.
        for (num_rows, expected) in [
            (&[][..], 1),
            (&[1, 1, 1, 0, 0, 0, 0, 0], 1),
            (&[1, 1, 1, 1, 1, 1, 1, 1], 2),
            (&[8, 8], 2),
            (&[31], 1),
            (&[9, 9, 0, 9, 9, 9], 4),
        ] {
            assert_eq!(drawer.num_threads(num_rows), expected, "{num_rows:?}");
        }
    }
}
