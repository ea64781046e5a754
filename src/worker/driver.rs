//! An engine at work: requests come in, steps run, events go out. On which thread is its worker's matter.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use qwen_core::engine::{Canceller, EngineCore, Event, FinishReason, Intake, Request, SeqId, Ticket};
use qwen_core::numerics::float_env::FloatEnv;

use crate::channel::Sender;
use crate::events::{debug, wants_debug};
use crate::stop_strings::StopWatch;

/// What happened to a request, and when: a reader may be slower than the engine.
pub(crate) type Stamped = (Output, Instant);

/// What happened to a request.
#[derive(Debug)]
pub(crate) enum Output {
    /// In a step of the engine.
    Step(Event),
    /// Its text has reached this stop string. The last output.
    StopString(String),
}

/// A request on its way to the engine.
pub(super) struct Submission {
    pub(super) request: Request,
    pub(super) ticket: Ticket,
    pub(super) outlet: Outlet,
}

/// Something to do with the engine between its steps.
pub(super) type Job = Box<dyn FnOnce(&mut EngineCore) + Send>;

/// Where the events of a request go.
pub(super) struct Outlet {
    pub(super) events: Sender<Stamped>,
    pub(super) canceller: Canceller,
    /// Searches for stop strings.
    pub(super) watch: Option<StopWatch>,
}

impl Outlet {
    /// Pass an event on. False after the last one.
    fn send(&mut self, event: Event) -> bool {
        let is_last = matches!(event, Event::Finished(_) | Event::Failed(_));
        let stop = match (&event, &mut self.watch) {
            (Event::Token(id), Some(watch)) => watch.push(*id),
            _ => None,
        };
        let (now, is_stopped) = (Instant::now(), stop.is_some());
        let is_read = self.events.send((Output::Step(event), now))
            && stop.is_none_or(|stop| self.events.send((Output::StopString(stop), now)));
        // The stream was dropped, so nobody reads the rest, or the answer is complete.
        if !is_read || is_stopped {
            self.canceller.cancel();
        }
        !is_last && !is_stopped
    }
}

/// Requests on their way to the engine.
#[derive(Default)]
pub(super) struct Submissions {
    state: Mutex<Queue>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) requests: VecDeque<Submission>,
    jobs: Vec<Job>,
    /// The length at which cancelled requests are removed.
    sweep_at: usize,
    is_closed: bool,
}

impl fmt::Debug for Submissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submissions").finish_non_exhaustive()
    }
}

impl Submissions {
    // Nothing that holds the lock can panic halfway through a change.
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if the engine accepts no more requests.
    pub(super) fn push(&self, submission: Submission) -> bool {
        let mut queue = self.lock();
        if queue.is_closed {
            return false;
        }
        queue.push(submission);
        true
    }

    /// False if the engine does nothing more.
    pub(super) fn push_job(&self, job: Job) -> bool {
        let mut queue = self.lock();
        if queue.is_closed {
            return false;
        }
        queue.jobs.push(job);
        true
    }

    /// Accept no more requests, and drop the queued ones: their readers see that the channel is closed.
    pub(super) fn close(&self) {
        let dropped = {
            let mut queue = self.lock();
            queue.is_closed = true;
            (mem::take(&mut queue.requests), mem::take(&mut queue.jobs))
        };
        drop(dropped);
    }
}

impl Queue {
    /// The minimum length at which the queue is searched for cancelled requests.
    pub(super) const SWEEP_AT: usize = 64;

    /// A cancelled request frees its place in the waiting list at once, so the list does not bound this queue during a
    /// long step: cancelled requests are removed before the queue doubles.
    fn push(&mut self, submission: Submission) {
        if self.requests.len() >= self.sweep_at.max(Self::SWEEP_AT) {
            self.requests.retain_mut(|waiting| {
                let is_cancelled = waiting.ticket.is_cancelled();
                if is_cancelled {
                    waiting.outlet.send(Event::Finished(FinishReason::Cancelled));
                }
                !is_cancelled
            });
            self.sweep_at = 2 * self.requests.len();
        }
        self.requests.push_back(submission);
    }
}

/// Closes the queue even if the thread panics.
pub(super) struct CloseOnDrop(pub(super) Arc<Submissions>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The engine, and where its events go.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) core: EngineCore,
    pub(super) intake: Intake,
    pub(super) submissions: Arc<Submissions>,
    pub(super) outlets: HashMap<SeqId, Outlet>,
    pub(super) some_wait: bool,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").finish_non_exhaustive()
    }
}

impl Driver {
    /// Run requests until the worker's handle is dropped. Without work the thread sleeps.
    pub(super) fn run(mut self) {
        let _float_env = FloatEnv::enter();
        loop {
            // Read before looking for work: whatever arrives in between ends the wait below.
            let seen = self.intake.signals();
            match self.round() {
                Some(true) => {}
                Some(false) => self.intake.wait(seen),
                None => return,
            }
        }
    }

    /// [`Driver::round`] on a host's thread, which may survive a panic: nobody waits for this engine any more.
    pub(super) fn host_round(&mut self) -> Option<bool> {
        catch_unwind(AssertUnwindSafe(|| self.round())).unwrap_or_else(|panic| {
            self.submissions.close();
            self.outlets.clear();
            resume_unwind(panic)
        })
    }

    /// Take what was submitted, and run one step. Whether there was something to compute; `None` if the worker was
    /// dropped: no engine or stream holds it any more.
    pub(super) fn round(&mut self) -> Option<bool> {
        let (arrived, jobs) = {
            let mut queue = self.submissions.lock();
            if queue.is_closed {
                return None;
            }
            (mem::take(&mut queue.requests), mem::take(&mut queue.jobs))
        };
        jobs.into_iter().for_each(|job| job(&mut self.core));
        for Submission { request, ticket, mut outlet } in arrived {
            match self.core.add(request, ticket) {
                Ok(id) => drop(self.outlets.insert(id, outlet)),
                Err(error) => drop(outlet.send(Event::Failed(error))),
            }
        }
        let outlets = &mut self.outlets;
        let progress = self.core.step(|id, event| {
            if outlets.get_mut(&id).is_some_and(|outlet| !outlet.send(event)) {
                outlets.remove(&id);
            }
        });
        let waiting = if wants_debug() { self.intake.num_waiting() } else { 0 };
        if (waiting > 0) != self.some_wait {
            self.some_wait = waiting > 0;
            match self.some_wait {
                true => debug!("{waiting} requests wait for room in the batch or the K/V store"),
                false => debug!("no request waits"),
            }
        }
        Some(progress)
    }
}
