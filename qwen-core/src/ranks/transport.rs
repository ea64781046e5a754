//! The connections of one rank after the rendezvous: a star with rank 0 in its middle.
//!
//! A connection is a [`Link`]: over TCP (`peer.rs`) or over MPI (`mpi/`). A thread sends heartbeats, and on rank 0 tells
//! the other ranks which one failed. An error on any connection ends the whole transport: ranks that are out of sync cannot
//! recover, and a launcher has to restart all of them.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::failure::{Failure, Failures, Reported};
use super::frame::{Frame, Kind, Message};
use super::link::Link;
use super::peer::{GOODBYE, Peer, spawn};
use super::wire::{Reader, Writer};
use crate::backend::collective::{Collective, ProcessGroup};
use crate::error::{Error, Result};

/// The connections of this rank: to all other ranks on rank 0, to rank 0 on the others. Created by
/// [`Ranks::rendezvous`].
///
/// All ranks make the same calls in the same order; each call waits for the ranks whose data it needs. Only one thread
/// at a time may use the transport.
///
/// ```
/// use qwen_core::ranks::Ranks;
/// # fn main() -> qwen_core::Result<()> {
/// let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
/// let connect = move |rank| Ranks::new(rank, 2)?.at("127.0.0.1", port).rendezvous(&[("model", "demo".into())]);
/// let other = std::thread::spawn(move || -> qwen_core::Result<Vec<u8>> {
///     let transport = connect(1)?;
///     let mut bytes = Vec::new();
///     transport.broadcast(&mut bytes)?;
///     Ok(bytes)
/// });
/// let transport = connect(0)?;
/// transport.broadcast(&mut b"for all ranks".to_vec())?;
/// assert_eq!(other.join().unwrap()?, b"for all ranks");
/// # Ok(())
/// # }
/// ```
///
/// [`Ranks::rendezvous`]: super::Ranks::rendezvous
#[derive(Debug)]
pub struct Transport {
    rank: usize,
    world_size: usize,
    peers: Vec<Arc<dyn Link>>,
    failures: Arc<Failures>,
    // `None` once the transport is closed.
    heartbeat: Option<(Sender<Event>, JoinHandle<()>)>,
    // Sums over the interconnect that the links use, if it has its own way.
    collective: Option<Arc<dyn Collective>>,
}

/// Reports the first failure of a rank to the transport's heartbeat thread.
#[derive(Debug, Clone)]
pub(super) struct Reports(Sender<Event>);

impl Reports {
    pub(super) fn report(&self, reported: Reported) {
        // Once the heartbeat thread has ended, the report is not needed.
        let _ = self.0.send(Event::Failed(reported));
    }
}

/// Messages to the heartbeat thread.
#[derive(Debug)]
enum Event {
    /// The first failure of a rank.
    Failed(Reported),
    /// Tell the other ranks of a failure, from now on.
    ReportFailures,
    /// The transport is closed.
    Close,
}

impl Transport {
    /// The transport of rank `rank` over TCP connections to other ranks.
    pub(super) fn new(
        rank: usize,
        world_size: usize,
        streams: Vec<(usize, TcpStream)>,
        heartbeat_timeout: Duration,
    ) -> io::Result<Self> {
        Self::over(rank, world_size, heartbeat_timeout / 4, None, |failures, reports| {
            let connect = |(peer, stream)| -> io::Result<Arc<dyn Link>> {
                let reports = reports.clone();
                let report = move |reported| reports.report(reported);
                Ok(Arc::new(Peer::new(peer, stream, heartbeat_timeout, failures, report)?))
            };
            streams.into_iter().map(connect).collect()
        })
    }

    /// The transport of rank `rank` over links to other ranks, on each of which `beat` is called every `interval`.
    pub(super) fn over(
        rank: usize,
        world_size: usize,
        interval: Duration,
        collective: Option<Arc<dyn Collective>>,
        connect: impl FnOnce(&Arc<Failures>, &Reports) -> io::Result<Vec<Arc<dyn Link>>>,
    ) -> io::Result<Self> {
        let failures = Arc::new(Failures::default());
        let (sender, events) = mpsc::channel();
        let peers = connect(&failures, &Reports(sender.clone()))?;
        let links = peers.clone();
        let thread = spawn("qwen-rank-heartbeat", move || send_heartbeats(&links, &events, interval))?;
        Ok(Transport { rank, world_size, peers, failures, heartbeat: Some((sender, thread)), collective })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Replace `bytes` on every rank by those of rank 0.
    ///
    /// # Errors
    /// [`Error::RankFailed`] when a rank fails or sends something else.
    pub fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match self.rank {
            0 => self.send(Kind::Broadcast, bytes),
            _ => {
                *bytes = self.receive(0, Kind::Broadcast)?;
                Ok(())
            }
        }
    }

    /// The smallest of the ranks' numbers. It is also a barrier: no rank returns before all have called it.
    ///
    /// # Errors
    /// [`Error::RankFailed`] when a rank fails or sends something else.
    pub fn all_reduce_min(&self, number: u64) -> Result<u64> {
        let read = |rank: usize, bytes: &[u8]| {
            let mut reader = Reader(bytes);
            reader.number().and_then(|found| reader.end().map(|()| found)).map_err(|reason| damaged(rank, &reason))
        };
        let bytes = |number: u64| {
            let mut writer = Writer::default();
            writer.number(number);
            writer.0
        };
        if self.rank > 0 {
            self.send(Kind::Number, &bytes(number))?;
            return read(0, &self.receive(0, Kind::Number)?);
        }
        let mut min = number;
        for rank in 1..self.world_size {
            min = min.min(read(rank, &self.receive(rank, Kind::Number)?)?);
        }
        self.send(Kind::Number, &bytes(min))?;
        Ok(min)
    }

    /// Call `hook` once, from another thread, as soon as a rank fails: to wake a collective that waits on something
    /// other than this transport. It is called immediately if a rank has already failed, and never on an orderly
    /// shutdown. It replaces an earlier hook.
    pub fn on_peer_failure(&self, hook: impl FnOnce() + Send + 'static) {
        self.failures.on_first(Box::new(hook));
    }

    /// Tell the other ranks that this one cannot continue because of `error`. They end with it.
    pub fn fail(&self, error: &Error) {
        let failure = self.cause(error);
        for peer in self.peers.iter().filter(|peer| peer.rank() != failure.rank) {
            peer.tell_failure(&failure);
        }
    }

    /// The cause of `error`, which occurred on this rank. If a rank has failed, that explains a device's error.
    pub(super) fn cause(&self, error: &Error) -> Failure {
        match error {
            Error::RankFailed { rank, reason } => Failure { rank: *rank, reason: reason.clone() },
            error => self.failures.first().unwrap_or_else(|| Failure { rank: self.rank, reason: error.to_string() }),
        }
    }

    /// End the other ranks because of `error`. Returns the error to report here.
    pub(super) fn end_with(&self, error: Error) -> Error {
        self.fail(&error);
        let failure = self.cause(&error);
        // If this rank failed first, report its own error.
        if failure.rank == self.rank { error } else { failure.error() }
    }

    /// Tell the other ranks as soon as one fails, from now on, even if this rank neither sends nor receives. While ranks
    /// load or shut down, one may end before the others without having failed.
    pub(super) fn report_failures(&self) {
        self.tell_heartbeat(Event::ReportFailures);
    }

    fn tell_heartbeat(&self, event: Event) {
        if let Some((sender, _)) = &self.heartbeat {
            // The thread runs until the transport is closed.
            let _ = sender.send(event);
        }
    }

    fn end_heartbeat(&mut self) {
        self.tell_heartbeat(Event::Close);
        if let Some((_, thread)) = self.heartbeat.take() {
            let _ = thread.join();
        }
    }

    /// Tell the other ranks to end.
    pub(super) fn shut_down(&self) {
        self.failures.close();
        for peer in &self.peers {
            // Ignore errors: the peer may already have exited.
            let _ = peer.send(&Message::bare(Kind::Shutdown));
        }
    }

    /// The collective that sums over the interconnect which the links use, if there is one.
    pub(super) fn collective(&self) -> Option<Arc<dyn Collective>> {
        self.collective.clone()
    }

    /// Send bytes to all ranks that this one is connected to.
    pub(super) fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        let message = fitting(Message::new(kind, payload))?;
        self.peers.iter().try_for_each(|peer| peer.send(&message))
    }

    /// Send values to all ranks that this one is connected to.
    pub(super) fn send_values(&self, kind: Kind, values: &[f32]) -> Result<()> {
        let message = fitting(Message::of_values(kind, values))?;
        self.peers.iter().try_for_each(|peer| peer.send(&message))
    }

    /// Send bytes to rank `rank` only.
    pub(super) fn send_to(&self, rank: usize, kind: Kind, payload: &[u8]) -> Result<()> {
        self.peer(rank)?.send(&fitting(Message::new(kind, payload))?)
    }

    /// Send values to rank `rank` only.
    pub(super) fn send_values_to(&self, rank: usize, kind: Kind, values: &[f32]) -> Result<()> {
        self.peer(rank)?.send(&fitting(Message::of_values(kind, values))?)
    }

    /// The next message of rank `rank`, which must be of this kind.
    pub(super) fn receive(&self, rank: usize, kind: Kind) -> Result<Vec<u8>> {
        let frame = self.receive_any(rank)?;
        match frame.kind == kind {
            true => Ok(frame.payload),
            false => Err(damaged(rank, &format!("{:?} instead of {kind:?}", frame.kind))),
        }
    }

    /// The next message of rank `rank`.
    pub(super) fn receive_any(&self, rank: usize) -> Result<Frame> {
        self.peer(rank)?.receive()
    }

    fn peer(&self, rank: usize) -> Result<&dyn Link> {
        let peer = self.peers.iter().find(|peer| peer.rank() == rank).map(AsRef::as_ref);
        peer.ok_or_else(|| Error::argument("rank", format!("{rank} is not connected to rank {}", self.rank)))
    }
}

impl ProcessGroup for Transport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        self.broadcast(bytes)
    }

    fn all_reduce_min(&self, number: u64) -> Result<u64> {
        self.all_reduce_min(number)
    }

    fn on_peer_failure(&self, hook: Box<dyn FnOnce() + Send>) {
        self.on_peer_failure(hook);
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.failures.close();
        self.end_heartbeat();
        self.peers.iter().for_each(|peer| peer.end_sending());
        let deadline = Instant::now() + GOODBYE;
        self.peers.iter().for_each(|peer| peer.close(deadline));
    }
}

/// Send heartbeats every `interval` until the transport is closed, and report the first failure to the other ranks once
/// that is enabled.
fn send_heartbeats(links: &[Arc<dyn Link>], events: &Receiver<Event>, interval: Duration) {
    let (mut reports, mut first) = (false, None);
    loop {
        match events.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => links.iter().for_each(|link| link.beat()),
            Ok(Event::Close) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Event::Failed(reported)) => first = Some(reported),
            Ok(Event::ReportFailures) => reports = true,
        }
        if let Some(Reported { by, failure }) = first.take_if(|_| reports) {
            let others = links.iter().filter(|link| link.rank() != by && link.rank() != failure.rank);
            others.for_each(|link| link.tell_failure(&failure));
        }
    }
}

/// The message, unless it is too long.
fn fitting(message: io::Result<Message>) -> Result<Message> {
    message.map_err(|error| Error::argument("batch", error.to_string()))
}

/// The error about an invalid message.
pub(super) fn damaged(rank: usize, reason: &str) -> Error {
    Error::RankFailed { rank, reason: format!("it sent an invalid message: {reason}") }
}
