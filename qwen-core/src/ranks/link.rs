//! The connections of one rank, after all have met: a star with rank 0 in its middle.
//!
//! A thread for each connection reads all that comes, so that no rank ever waits for another one to read, and notes at
//! once when the other end is gone. One more thread gives signs of life. Any error on any connection ends the whole
//! link: ranks that are out of step cannot find together again, and a launcher starts all of them anew.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frame::{self, Frame, Kind, MAX_PAYLOAD};
use super::wire::{Reader, Writer};
use crate::error::{Error, Result};

/// The ranks that this process is connected with: all others on rank 0, rank 0 on the others.
///
/// All ranks make the same calls in the same order; each waits for those ranks whose data it needs. The link belongs to
/// one thread at a time.
///
/// ```
/// use qwen_core::ranks::Ranks;
/// # fn main() -> qwen_core::Result<()> {
/// let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
/// let meet = move |rank| Ranks::new(rank, 2)?.at("127.0.0.1", port).meet(&[("model", "demo".into())]);
/// let other = std::thread::spawn(move || -> qwen_core::Result<Vec<u8>> {
///     let link = meet(1)?;
///     let mut bytes = Vec::new();
///     link.broadcast(&mut bytes)?;
///     Ok(bytes)
/// });
/// let link = meet(0)?;
/// link.broadcast(&mut b"for all ranks".to_vec())?;
/// assert_eq!(other.join().unwrap()?, b"for all ranks");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Link {
    rank: usize,
    world_size: usize,
    peers: Vec<Peer>,
    shared: Arc<Shared>,
    // Taken when the link ends.
    pulse: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The other end of a connection.
#[derive(Debug)]
struct Peer {
    rank: usize,
    writer: Arc<Mutex<TcpStream>>,
    frames: Mutex<Receiver<Frame>>,
    end: Arc<OnceLock<Failure>>,
    reader: Option<JoinHandle<()>>,
}

/// Which rank failed, and how.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) rank: usize,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn error(&self) -> Error {
        Error::RankFailed { rank: self.rank, reason: self.reason.clone() }
    }
}

/// What the threads of the connections look at.
#[derive(Debug, Default)]
struct Shared {
    closing: AtomicBool,
    loss: Mutex<Loss>,
}

/// Whether a rank was lost, and who wants to know.
#[derive(Default)]
struct Loss {
    happened: bool,
    hook: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loss").field("happened", &self.happened).finish_non_exhaustive()
    }
}

impl Shared {
    /// A rank is gone: unless all are going, somebody may want to know.
    fn lose(&self) {
        if self.closing.load(Ordering::SeqCst) {
            return;
        }
        let hook = {
            let mut loss = lock(&self.loss);
            loss.happened = true;
            loss.hook.take()
        };
        if let Some(hook) = hook {
            hook();
        }
    }
}

/// Messages that wait for their reader. All ranks keep step, so there are never more than two.
const QUEUE: usize = 4;

/// How long the end of a link waits for the other ends to close.
const GOODBYE: Duration = Duration::from_secs(2);

impl Link {
    /// The link of rank `rank` over connections to other ranks.
    pub(super) fn new(
        rank: usize,
        world_size: usize,
        streams: Vec<(usize, TcpStream)>,
        lost_after: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut peers = Vec::with_capacity(streams.len());
        for (peer, stream) in streams {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(lost_after))?;
            stream.set_write_timeout(Some(lost_after))?;
            let reads = stream.try_clone()?;
            let (sender, frames) = mpsc::sync_channel(QUEUE);
            let end = Arc::new(OnceLock::new());
            let (ended, shared) = (end.clone(), shared.clone());
            let reader = spawn("qwen-rank-reader", move || {
                if let Some(failure) = read_all(peer, reads, &sender, lost_after) {
                    // The first words are the cause, what follows its consequence.
                    let _ = ended.set(failure);
                    shared.lose();
                }
            })?;
            let writer = Arc::new(Mutex::new(stream));
            peers.push(Peer { rank: peer, writer, frames: Mutex::new(frames), end, reader: Some(reader) });
        }
        let (stop, stopped) = mpsc::channel();
        let writers: Vec<_> = peers.iter().map(|peer| peer.writer.clone()).collect();
        let pulse = spawn("qwen-rank-pulse", move || {
            while stopped.recv_timeout(lost_after / 4) == Err(RecvTimeoutError::Timeout) {
                for writer in &writers {
                    // A writer in use is a sign of life itself.
                    let Ok(mut stream) = writer.try_lock() else { continue };
                    if frame::write(&mut *stream, Kind::Heartbeat, &[]).is_err() {
                        // Half a message may be out: nothing more can follow it.
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                }
            }
        })?;
        Ok(Link { rank, world_size, peers, shared, pulse: Some((stop, pulse)) })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Give all ranks the bytes that rank 0 has: an address, an identifier, a message.
    ///
    /// # Errors
    /// [`Error::RankFailed`] when a rank is lost, or sends what is not due.
    pub fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match self.rank {
            0 => self.send(Kind::Broadcast, bytes),
            _ => {
                *bytes = self.receive(0, Kind::Broadcast)?;
                Ok(())
            }
        }
    }

    /// The least of the numbers that the ranks have. No rank goes on before all have come here.
    ///
    /// # Errors
    /// [`Error::RankFailed`] when a rank is lost, or sends what is not due.
    pub fn least(&self, number: u64) -> Result<u64> {
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
        let mut least = number;
        for rank in 1..self.world_size {
            least = least.min(read(rank, &self.receive(rank, Kind::Number)?)?);
        }
        self.send(Kind::Number, &bytes(least))?;
        Ok(least)
    }

    /// Call `hook` once, from another thread, as soon as a rank is lost: for collectives that wait elsewhere than on this
    /// link and have to be woken. Not called when a link ends as it should; called here if a rank is lost already.
    pub fn on_loss(&self, hook: impl FnOnce() + Send + 'static) {
        let mut loss = lock(&self.shared.loss);
        if !loss.happened {
            loss.hook = Some(Box::new(hook));
            return;
        }
        drop(loss);
        hook();
    }

    /// Tell the other ranks that this one cannot go on because of `error`; they end with it.
    pub fn fail(&self, error: &Error) {
        let mut writer = Writer::default();
        let (rank, reason) = match error {
            Error::RankFailed { rank, reason } => (*rank, reason.clone()),
            error => (self.rank, error.to_string()),
        };
        writer.number(rank as u64);
        writer.text(&reason);
        // Who is gone already needs no news.
        for peer in self.peers.iter().filter(|peer| peer.rank != rank) {
            let _ = peer.write(Kind::Failed, &writer.0);
        }
    }

    /// Tell the other ranks that all is done.
    pub(super) fn shut_down(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // A rank that is gone needs no end.
        let _ = self.send(Kind::Shutdown, &[]);
    }

    /// Send to all ranks that this one is connected with.
    pub(super) fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.peers.iter().try_for_each(|peer| peer.send(kind, payload))
    }

    /// The next message of rank `rank`, which must be of this kind.
    pub(super) fn receive(&self, rank: usize, kind: Kind) -> Result<Vec<u8>> {
        let frame = self.receive_any(rank)?;
        match frame.kind == kind {
            true => Ok(frame.payload),
            false => Err(damaged(rank, &format!("{:?} where {kind:?} is due", frame.kind))),
        }
    }

    /// The next message of rank `rank`.
    pub(super) fn receive_any(&self, rank: usize) -> Result<Frame> {
        self.peer(rank)?.receive()
    }

    /// Send to rank `rank` alone.
    pub(super) fn send_to(&self, rank: usize, kind: Kind, payload: &[u8]) -> Result<()> {
        self.peer(rank)?.send(kind, payload)
    }

    fn peer(&self, rank: usize) -> Result<&Peer> {
        let peer = self.peers.iter().find(|peer| peer.rank == rank);
        peer.ok_or_else(|| Error::argument("rank", format!("{rank} is not connected with {}", self.rank)))
    }
}

/// The error about a message that makes no sense.
pub(super) fn damaged(rank: usize, reason: &str) -> Error {
    Error::RankFailed { rank, reason: format!("it sent a message that makes no sense: {reason}") }
}

#[cfg(test)]
impl Link {
    /// The bare connections, which say nothing of their own.
    pub(super) fn into_silence(mut self) -> Vec<TcpStream> {
        let pulse = self.pulse.take();
        drop(pulse.map(|(stop, thread)| (drop(stop), thread.join())));
        let streams = self.peers.iter().map(|peer| lock(&peer.writer).try_clone().expect("a second handle"));
        let streams = streams.collect();
        self.peers.clear();
        streams
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        if let Some((stop, pulse)) = self.pulse.take() {
            drop(stop);
            let _ = pulse.join();
        }
        for peer in &self.peers {
            let _ = lock(&peer.writer).shutdown(Shutdown::Write);
        }
        // What was sent arrives for certain once the other end has closed its side in turn.
        let deadline = Instant::now() + GOODBYE;
        for peer in &mut self.peers {
            let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
            let frames = peer.frames.get_mut().unwrap_or_else(PoisonError::into_inner);
            while frames.recv_timeout(left(deadline)).is_ok() {}
            let _ = lock(&peer.writer).shutdown(Shutdown::Both);
            // The reader may wait for room in the queue.
            *frames = mpsc::sync_channel(0).1;
            if let Some(reader) = peer.reader.take() {
                let _ = reader.join();
            }
        }
    }
}

impl Peer {
    fn write(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        frame::write(&mut *lock(&self.writer), kind, payload)
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        if let Some(failure) = self.end.get() {
            return Err(failure.error());
        }
        self.write(kind, payload).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidInput {
                return Error::argument("batch", error.to_string());
            }
            // The other end may have said why it closed.
            let deadline = Instant::now() + GOODBYE;
            while self.end.get().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            match self.end.get() {
                Some(failure) => failure.error(),
                None => Failure { rank: self.rank, reason: format!("its connection broke: {error}") }.error(),
            }
        })
    }

    fn receive(&self) -> Result<Frame> {
        // What came before the end is still to be had.
        lock(&self.frames).recv().map_err(|_| match self.end.get() {
            Some(failure) => failure.error(),
            None => Failure { rank: self.rank, reason: "it has ended its part".into() }.error(),
        })
    }
}

/// Read messages until the connection ends. What is returned is why, unless it ended as it should.
fn read_all(rank: usize, mut from: TcpStream, frames: &SyncSender<Frame>, lost_after: Duration) -> Option<Failure> {
    loop {
        let frame = match frame::read(&mut from, MAX_PAYLOAD) {
            Ok(frame) => frame,
            Err(error) => return Some(Failure { rank, reason: how_it_ended(&error, lost_after) }),
        };
        match frame.kind {
            Kind::Heartbeat => continue,
            Kind::Failed => {
                let mut reader = Reader(&frame.payload);
                let read = reader.number().and_then(|rank| Ok((rank, reader.text()?)));
                let (rank, reason) = read.map_or((rank, "for a reason that it garbled".into()), |(rank, reason)| {
                    (usize::try_from(rank).unwrap_or(usize::MAX), reason)
                });
                return Some(Failure { rank, reason });
            }
            Kind::Shutdown => {
                let _ = frames.send(frame);
                return None;
            }
            _ => {}
        }
        if frames.send(frame).is_err() {
            return None;
        }
    }
}

fn how_it_ended(error: &io::Error, lost_after: Duration) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => "its process has ended".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has given no sign of life for {} seconds", lost_after.as_secs_f32())
        }
        _ => format!("its connection broke: {error}"),
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(body)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is locked here can be left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
