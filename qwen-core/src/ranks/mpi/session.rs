//! One model's messages over MPI: sending, receiving, and waiting without missing that a rank has failed.
//!
//! Each session has tags of its own, so that nothing of an earlier one is taken for its messages: one for messages in
//! order, one for heartbeats and failures, which are looked for at any time, and one for values to sum. MPI itself says
//! nothing about a process that has stopped, so heartbeats do: a rank that is silent for too long has failed.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::super::failure::{Failure, Failures, Reported, lock};
use super::super::frame::{self, Frame, HEADER, Kind, MAX_PAYLOAD, Message};
use super::super::transport::Reports;
use super::library::{self, Reason};
use super::pause::Pause;
use super::world::World;
use crate::error::{Error, Result};

/// What a message belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Channel {
    /// Messages that the peer waits for, in order.
    Ordered,
    /// Heartbeats and failures.
    Control,
    /// Values to sum.
    Values,
}

/// The messages of one model.
#[derive(Debug)]
pub(super) struct Session {
    world: Arc<World>,
    tags: u16,
    // Set once the transport is there. Until then nobody fails.
    monitor: OnceLock<Monitor>,
}

/// What is known of the ranks that this one hears from.
#[derive(Debug)]
struct Monitor {
    failures: Arc<Failures>,
    reports: Reports,
    patience: Duration,
    // The ranks that send heartbeats to this one, and when they were last heard.
    heard: Mutex<Vec<(usize, Instant)>>,
}

impl Session {
    pub(super) fn new(world: Arc<World>) -> Self {
        let tags = world.next_tags();
        Session { world, tags, monitor: OnceLock::new() }
    }

    /// Notice from now on when one of `peers` fails, or is silent for longer than `patience`.
    pub(super) fn monitor(&self, failures: &Arc<Failures>, reports: &Reports, patience: Duration, peers: &[usize]) {
        let now = Instant::now();
        let heard = Mutex::new(peers.iter().map(|peer| (*peer, now)).collect());
        let monitor = Monitor { failures: failures.clone(), reports: reports.clone(), patience, heard };
        // A session has one transport.
        let _ = self.monitor.set(monitor);
    }

    fn tag(&self, channel: Channel) -> u16 {
        self.tags + channel as u16
    }

    /// Begin to send bytes.
    pub(super) fn send(&self, to: usize, channel: Channel, bytes: Arc<Vec<u8>>) -> Result<library::Message> {
        self.blame(to, self.world.call(|library| library.send(to, self.tag(channel), bytes)))
    }

    /// Begin to receive at most as many bytes as `room` has.
    pub(super) fn receive(&self, from: usize, channel: Channel, room: Vec<u8>) -> Result<library::Message> {
        self.blame(from, self.world.call(|library| library.receive(from, self.tag(channel), room)))
    }

    /// Wait until the messages, each of which goes to or comes from a rank, are complete. Returns the bytes received.
    pub(super) fn complete(
        &self,
        messages: &mut [(usize, library::Message)],
        until: Option<Instant>,
    ) -> Result<Vec<Vec<u8>>> {
        let mut received: Vec<Option<Vec<u8>>> = messages.iter().map(|_| None).collect();
        self.wait(Pause::for_the_rest(), until, || {
            for ((peer, message), received) in messages.iter_mut().zip(&mut received) {
                if received.is_none() {
                    *received = self.blame(*peer, self.world.call(|library| library.test(message)))?;
                }
            }
            Ok(received.iter().all(Option::is_some).then_some(()))
        })?;
        Ok(received.into_iter().flatten().collect())
    }

    /// Send a message, and wait until it can be forgotten.
    pub(super) fn send_message(&self, to: usize, message: &Message, until: Option<Instant>) -> Result<()> {
        let sent = self.send(to, Channel::Ordered, Arc::new(message.as_bytes().to_vec()))?;
        self.complete(&mut [(to, sent)], until)?;
        if message.ends() {
            self.world.set_orderly();
        }
        Ok(())
    }

    /// Wait for the next message of a rank.
    pub(super) fn next_message(&self, from: usize, until: Option<Instant>) -> Result<Frame> {
        let len = self.wait(Pause::for_the_next(), until, || {
            self.blame(from, self.world.call(|library| library.probe(from, self.tag(Channel::Ordered))))
        })?;
        let frame = self.read(from, Channel::Ordered, len, until)?;
        if let Some(monitor) = self.monitor.get() {
            monitor.hear(from);
        }
        if frame.kind == Kind::Shutdown {
            self.world.set_orderly();
            if let Some(monitor) = self.monitor.get() {
                monitor.failures.close();
            }
        }
        Ok(frame)
    }

    fn read(&self, from: usize, channel: Channel, len: usize, until: Option<Instant>) -> Result<Frame> {
        if len > MAX_PAYLOAD + HEADER {
            return Err(self.failed(from, format!("it sent a message of {len} bytes")));
        }
        let message = self.receive(from, channel, vec![0; len])?;
        let bytes = self.complete(&mut [(from, message)], until)?.pop().unwrap_or_default();
        frame::read(&mut bytes.as_slice(), MAX_PAYLOAD)
            .map_err(|error| self.failed(from, format!("it sent an invalid message: {error}")))
    }

    /// Try until there is a result, a rank fails, or the time is up, which is [`Error::Cancelled`].
    fn wait<T>(
        &self,
        mut pause: Pause,
        until: Option<Instant>,
        mut attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            if let Some(result) = attempt()? {
                return Ok(result);
            }
            if !pause.wait() {
                continue;
            }
            if until.is_some_and(|until| Instant::now() > until) {
                return Err(Error::Cancelled);
            }
            self.look_for_failures();
            if let Some(failure) = self.monitor.get().and_then(|monitor| monitor.failures.first()) {
                return Err(failure.error());
            }
        }
    }

    /// Take the heartbeats and failures that have arrived, and notice who is silent.
    pub(super) fn look_for_failures(&self) {
        let Some(monitor) = self.monitor.get() else { return };
        // Another thread is looking.
        let Ok(mut heard) = monitor.heard.try_lock() else { return };
        for (peer, last) in heard.iter_mut() {
            match self.control(*peer) {
                Ok(None) => {}
                Ok(Some(None)) => *last = Instant::now(),
                Ok(Some(Some(failure))) => monitor.note(*peer, failure),
                Err(reason) => monitor.note(*peer, Failure { rank: *peer, reason }),
            }
            if last.elapsed() > monitor.patience {
                let reason =
                    format!("it has sent no heartbeat or message for {} seconds", monitor.patience.as_secs_f32());
                monitor.note(*peer, Failure { rank: *peer, reason });
            }
        }
    }

    /// What has arrived of a rank: nothing, heartbeats, or a failure.
    fn control(&self, from: usize) -> std::result::Result<Option<Option<Failure>>, Reason> {
        let tag = self.tag(Channel::Control);
        let mut found = None;
        while let Some(len) = self.world.call(|library| library.probe(from, tag))? {
            if len > MAX_PAYLOAD + HEADER {
                return Err(format!("it sent a message of {len} bytes"));
            }
            let mut message = self.world.call(|library| library.receive(from, tag, vec![0; len]))?;
            let mut pause = Pause::for_the_rest();
            // It has begun to arrive.
            let bytes = loop {
                match self.world.call(|library| library.test(&mut message))? {
                    Some(bytes) => break bytes,
                    None => pause.wait(),
                };
            };
            let frame = frame::read(&mut bytes.as_slice(), MAX_PAYLOAD).map_err(|error| error.to_string())?;
            if frame.kind == Kind::Failed {
                return Ok(Some(Some(Failure::from_bytes(from, &frame.payload))));
            }
            found = Some(None);
        }
        Ok(found)
    }

    /// The outcome of a call that concerns a rank.
    fn blame<T>(&self, rank: usize, outcome: std::result::Result<T, Reason>) -> Result<T> {
        outcome.map_err(|reason| self.failed(rank, reason))
    }

    /// Record that a rank has failed. The error is the first failure, which may be another one.
    pub(super) fn failed(&self, rank: usize, reason: String) -> Error {
        let failure = Failure { rank, reason };
        let Some(monitor) = self.monitor.get() else { return failure.error() };
        monitor.note(rank, failure.clone());
        monitor.failures.first().unwrap_or(failure).error()
    }

    /// Send a message on the control channel and forget it: the request, if it is not complete at once.
    pub(super) fn send_control(&self, to: usize, message: &Message) -> Option<library::Message> {
        let mut sent = self.send(to, Channel::Control, Arc::new(message.as_bytes().to_vec())).ok()?;
        self.is_complete(&mut sent).then_some(()).map_or(Some(sent), |()| None)
    }

    /// Whether a message is complete, or never will be.
    pub(super) fn is_complete(&self, message: &mut library::Message) -> bool {
        self.world.call(|library| library.test(message)).map_or(true, |bytes| bytes.is_some())
    }
}

impl Monitor {
    fn hear(&self, rank: usize) {
        if let Some((_, last)) = lock(&self.heard).iter_mut().find(|(peer, _)| *peer == rank) {
            *last = Instant::now();
        }
    }

    fn note(&self, by: usize, failure: Failure) {
        let reported = Reported { by, failure };
        if self.failures.note(&reported) {
            self.reports.report(reported);
            self.failures.call_hook();
        }
    }
}
