//! Who steps an engine: a thread of its own, which takes requests and sends events, or a host that calls
//! [`Worker::step`] ([`EngineOptions::manual`](crate::EngineOptions::manual)).
//!
//! A stream's channel holds at most one event for each part of the prompt; tokens and rows of logits are bounded by their
//! windows. So a slow reader never makes a channel grow without bound.

mod driver;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::task::{Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};

use qwen_core::backend::Limits;
use qwen_core::engine::{Canceller, EngineCore, Intake, Request};

use crate::channel::{Receiver, Wait, channel};
use crate::error::{Error, Result};
use crate::stop_strings::StopWatch;
use driver::{CloseOnDrop, Driver, Outlet, Submission, Submissions};
pub(crate) use driver::{Output, Stamped};

/// The handle of an engine. Dropping it ends the engine's thread.
#[derive(Debug)]
pub(crate) struct Worker {
    intake: Intake,
    limits: Limits,
    /// The process that has the engine: a fork of it does not.
    process: u32,
    submissions: Arc<Submissions>,
    stepper: Stepper,
}

/// Who steps the engine.
#[derive(Debug)]
enum Stepper {
    /// A thread. Taken when the worker is dropped.
    Thread(Option<JoinHandle<()>>),
    /// Whoever calls [`Worker::step`], or waits for an answer.
    Host(Box<Mutex<Driver>>),
}

impl Worker {
    /// Start a thread that runs the requests of `intake` on `core`.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub(crate) fn start(core: EngineCore, intake: Intake) -> qwen_core::Result<Self> {
        Self::new(core, intake, |driver| {
            let thread = std::thread::Builder::new().name("qwen-engine".into());
            let thread = thread.spawn(move || {
                let closing = CloseOnDrop(driver.submissions.clone());
                driver.run();
                drop(closing);
            });
            thread
                .map(|thread| Stepper::Thread(Some(thread)))
                .map_err(|error| qwen_core::Error::Io { path: "the engine's thread".into(), error })
        })
    }

    /// A worker that runs the requests of `intake` on `core` when it is told to.
    pub(crate) fn manual(core: EngineCore, intake: Intake) -> qwen_core::Result<Self> {
        Self::new(core, intake, |driver| Ok(Stepper::Host(Box::new(Mutex::new(driver)))))
    }

    fn new(
        core: EngineCore,
        intake: Intake,
        stepper: impl FnOnce(Driver) -> qwen_core::Result<Stepper>,
    ) -> qwen_core::Result<Self> {
        let limits = core.limits().clone();
        let submissions = Arc::<Submissions>::default();
        let driver = Driver {
            core,
            intake: intake.clone(),
            submissions: submissions.clone(),
            outlets: HashMap::new(),
            some_wait: false,
        };
        Ok(Worker { intake, limits, process: std::process::id(), submissions, stepper: stepper(driver)? })
    }

    /// Whether a host steps the engine.
    #[cfg(feature = "structure")]
    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.stepper, Stepper::Host(_))
    }

    /// Send a request to the engine. Its events go to the receiver, up to a stop string that `watch` finds.
    ///
    /// # Errors
    /// For an invalid request, when too many requests are waiting, and when the thread has ended.
    pub(crate) fn submit(&self, request: Request, watch: Option<StopWatch>) -> Result<(Receiver<Stamped>, Canceller)> {
        self.check_alive()?;
        request.check(&self.limits)?;
        let ticket = self.intake.ticket()?;
        let (canceller, (events, receiver)) = (ticket.canceller(), channel());
        let outlet = Outlet { events, canceller: canceller.clone(), watch };
        if !self.submissions.push(Submission { request, ticket, outlet }) {
            return Err(Error::stopped("its thread has ended"));
        }
        self.intake.signal();
        Ok((receiver, canceller))
    }

    /// The next event for a reader. Pending only if `wait` allows it.
    ///
    /// # Errors
    /// When no more will come.
    pub(crate) fn receive(&self, events: &mut Receiver<Stamped>, wait: &mut Wait<'_, '_>) -> Poll<Result<Stamped>> {
        if let Err(error) = self.check_alive() {
            return Poll::Ready(Err(error));
        }
        if let (Stepper::Host(_), Wait::Block) = (&self.stepper, &wait) {
            return Poll::Ready(self.step_for(events));
        }
        events.receive(wait).map(|event| event.ok_or_else(|| Error::stopped("its thread has ended")))
    }

    /// Step until an event has arrived.
    fn step_for(&self, events: &mut Receiver<Stamped>) -> Result<Stamped> {
        loop {
            let seen = self.intake.signals();
            let mut driver = self.driver()?;
            // Also what another thread's step brought while this one waited for the lock.
            if let Poll::Ready(event) = events.receive(&mut Wait::Not) {
                return event.ok_or_else(|| Error::stopped("its thread has ended"));
            }
            let progress = driver.host_round();
            drop(driver);
            if progress != Some(true) && events.len() == 0 {
                // Others may have to read their rows first.
                self.intake.wait(seen);
            }
        }
    }

    /// Do something with the engine between two of its steps, and wait for it.
    ///
    /// # Errors
    /// When the engine has ended.
    pub(crate) fn with_core<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut EngineCore) -> T + Send + 'static,
    ) -> Result<T> {
        self.check_alive()?;
        if let Stepper::Host(driver) = &self.stepper {
            let mut driver = driver.lock().map_err(|_| Error::stopped("a step of it panicked"))?;
            return Ok(job(&mut driver.core));
        }
        let ended = || Error::stopped("its thread has ended");
        let (sender, done) = mpsc::sync_channel(1);
        let job = Box::new(move |core: &mut EngineCore| {
            // Whoever asked waits for it.
            let _ = sender.send(job(core));
        });
        if !self.submissions.push_job(job) {
            return Err(ended());
        }
        self.intake.signal();
        done.recv().map_err(|_| ended())
    }

    /// A waker for the thread that calls this, which waits in [`Worker::await_wake`].
    pub(crate) fn waker(&self) -> Waker {
        let intake = matches!(self.stepper, Stepper::Host(_)).then(|| self.intake.clone());
        Waker::from(Arc::new(Unpark { thread: std::thread::current(), intake }))
    }

    /// Sleep until a reader with [`Worker::waker`] is woken, or run a step of a manual engine. `seen` are the signals of
    /// the intake before the readers were asked.
    pub(crate) fn await_wake(&self, seen: u64) {
        match &self.stepper {
            Stepper::Thread(_) => std::thread::park(),
            // After a panic the readers learn of it themselves.
            Stepper::Host(_) if self.step().is_ok_and(|progress| !progress) => self.intake.wait(seen),
            Stepper::Host(_) => {}
        }
    }

    /// Run one step. False if there was nothing to compute.
    ///
    /// # Errors
    /// When the engine has its own thread, and when an earlier step panicked.
    pub(crate) fn step(&self) -> Result<bool> {
        self.check_alive()?;
        Ok(self.driver()?.host_round() == Some(true))
    }

    fn driver(&self) -> Result<MutexGuard<'_, Driver>> {
        match &self.stepper {
            Stepper::Host(driver) => driver.lock().map_err(|_| Error::stopped("a step of it panicked")),
            Stepper::Thread(_) => {
                let reason = "the engine has a thread of its own: load it with EngineOptions::manual to step it";
                Err(qwen_core::Error::argument("step", reason).into())
            }
        }
    }

    pub(crate) fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether this is the process that has the engine.
    pub(crate) fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// # Errors
    /// In a process that was forked from the one that loaded the engine: it has no thread to answer.
    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.is_here() {
            true => Ok(()),
            false => Err(Error::stopped("it was loaded before this process was forked: load it after the fork")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // In a fork there is no thread to wait for, and locks held by the parent's threads are never released.
        if !self.is_here() {
            return;
        }
        // Every stream holds the worker, so none is open: end the thread, and wait until its memory is freed.
        self.submissions.close();
        self.intake.signal();
        let Stepper::Thread(thread) = &mut self.stepper else { return };
        if let Some(thread) = thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic of the thread has already ended the streams.
            let _ = thread.join();
        }
    }
}

/// Wakes a thread that reads several streams.
struct Unpark {
    thread: Thread,
    /// That of a manual engine, whose signals the thread may wait for.
    intake: Option<Intake>,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.intake.iter().for_each(Intake::signal);
        self.thread.unpark();
    }
}

#[cfg(test)]
pub(crate) mod tests;
