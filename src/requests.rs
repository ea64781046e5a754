//! Many requests that one thread waits for, such as prompts to answer or texts to score: a few at a time, so that others
//! find room, and enough to keep the engine busy.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use qwen_core::engine::{Canceller, Event, Request};

use crate::channel::{Receiver, Wait};
use crate::error::{ErrorKind, Result};
use crate::worker::{Output, Stamped, Worker};

/// Start all jobs as room frees, advance those that run whenever one of them goes on, and pass each result on with the
/// job's place: those that end first come first. A break ends all.
pub(crate) fn run_all<J, T>(
    worker: &Worker,
    jobs: impl Iterator<Item = impl Fn() -> Result<J>>,
    mut advance: impl FnMut(usize, &mut J, &mut Wait<'_, '_>) -> Poll<Result<T>>,
    mut take: impl FnMut(usize, Result<T>) -> ControlFlow<()>,
) {
    let at_a_time = worker.limits().max_num_seqs.saturating_mul(2).max(1);
    let mut running: Vec<(usize, J)> = Vec::new();
    let mut jobs = jobs.enumerate().peekable();
    let waker = worker.waker();
    let mut flow = ControlFlow::Continue(());
    while flow.is_continue() && (!running.is_empty() || jobs.peek().is_some()) {
        let seen = worker.intake().signals();
        while flow.is_continue()
            && running.len() < at_a_time
            && let Some((index, start)) = jobs.peek()
        {
            match start() {
                // One of these frees its place.
                Err(error) if error.kind() == ErrorKind::Busy && !running.is_empty() => break,
                Ok(job) => running.push((*index, job)),
                Err(error) => flow = take(*index, Err(error)),
            }
            jobs.next();
        }
        let before = running.len();
        let mut wait = Context::from_waker(&waker);
        running.retain_mut(|(index, job)| match advance(*index, job, &mut Wait::Wake(&mut wait)) {
            Poll::Ready(result) if flow.is_continue() => {
                flow = take(*index, result);
                false
            }
            poll => poll.is_pending(),
        });
        // One that has just ended may have left room for others.
        if before > 0 && running.len() == before {
            worker.await_wake(seen);
        }
    }
}

/// Run `requests`, and call `take` with what each gives, by its place. Each one's events are in order, those of several
/// are mixed. The first error ends all.
pub(crate) fn run(
    worker: &Arc<Worker>,
    requests: impl IntoIterator<Item = Request>,
    mut take: impl FnMut(usize, Event),
) -> Result<()> {
    let jobs = requests.into_iter().map(|request| move || Running::start(worker, request.clone()));
    let mut outcome = Ok(());
    let advance =
        |index, running: &mut Running<'_>, wait: &mut Wait<'_, '_>| running.advance(wait, |event| take(index, event));
    run_all(worker, jobs, advance, |_, result| match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            outcome = Err(error);
            ControlFlow::Break(())
        }
    });
    outcome
}

/// A request that runs. Dropping it cancels it.
struct Running<'a> {
    worker: &'a Worker,
    events: Receiver<Stamped>,
    canceller: Canceller,
    has_ended: bool,
}

impl<'a> Running<'a> {
    fn start(worker: &'a Worker, request: Request) -> Result<Self> {
        let (events, canceller) = worker.submit(request, None)?;
        Ok(Running { worker, events, canceller, has_ended: false })
    }

    /// Pass on what has arrived. Ready at its end.
    fn advance(&mut self, wait: &mut Wait<'_, '_>, mut take: impl FnMut(Event)) -> Poll<Result<()>> {
        loop {
            let result = match ready!(self.worker.receive(&mut self.events, wait)) {
                Ok((Output::Step(Event::Finished(_)), _)) => Ok(()),
                Ok((Output::Step(Event::Failed(error)), _)) => Err(error.into()),
                Ok((Output::Step(event), _)) => {
                    take(event);
                    continue;
                }
                // Only answers have stop strings.
                Ok((Output::StopString(_), _)) => continue,
                Err(error) => Err(error),
            };
            self.has_ended = true;
            return Poll::Ready(result);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.has_ended && self.worker.is_here() {
            self.canceller.cancel();
        }
    }
}
