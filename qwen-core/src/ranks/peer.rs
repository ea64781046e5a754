//! One connection of a link: what is written to it, what comes from it, and how it ends.
//!
//! A thread of its own reads all that comes, so that no rank ever waits for another one to read, and notes at once when
//! the other end is gone. Whoever waits for the other end is woken first, and only then those who asked to be told.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frame::{self, Frame, Kind, MAX_PAYLOAD, Message};
use super::wire::{Reader, Writer};
use crate::error::{Error, Result};

/// Messages that wait for their reader. Ranks that share heads keep step, and have a few on their way at most. Between
/// layers activations come in as many pieces as they need: once these have filled the queue, the connection makes their
/// sender wait.
const QUEUE: usize = 4;

/// How long last words may take, and how long those of the other end are waited for.
pub(super) const GOODBYE: Duration = Duration::from_secs(2);

/// How long a sign of life looks for room in a connection.
const GLANCE: Duration = Duration::from_millis(10);

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) rank: usize,
    pub(super) outlet: Outlet,
    frames: Mutex<Receiver<Frame>>,
    end: Arc<OnceLock<Failure>>,
    // Taken when the connection ends.
    reader: Option<JoinHandle<()>>,
    losses: Arc<Losses>,
}

impl Peer {
    /// The other end of `stream`, which is rank `rank`. A loss is noted in `losses`, and then handed to `tell`, once
    /// the connection's own end is known to whoever waits for it.
    pub(super) fn new(
        rank: usize,
        stream: TcpStream,
        lost_after: Duration,
        losses: &Arc<Losses>,
        tell: impl FnOnce(Lost) + Send + 'static,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(lost_after))?;
        stream.set_write_timeout(Some(lost_after))?;
        let reads = stream.try_clone()?;
        let (sender, frames) = mpsc::sync_channel(QUEUE);
        let end = Arc::new(OnceLock::new());
        let reader = {
            let (end, losses) = (end.clone(), losses.clone());
            spawn("qwen-rank-reader", move || {
                let Some(failure) = read_all(rank, reads, &sender, lost_after) else { return };
                let lost = Lost { told_by: rank, failure: failure.clone() };
                let is_first = losses.note(&lost);
                let _ = end.set(failure);
                drop(sender);
                if is_first {
                    tell(lost);
                    losses.call_hook();
                }
            })?
        };
        let outlet = Outlet { stream: Arc::new(Mutex::new(stream)), patience: lost_after };
        Ok(Peer { rank, outlet, frames: Mutex::new(frames), end, reader: Some(reader), losses: losses.clone() })
    }

    pub(super) fn send(&self, message: &Message) -> Result<()> {
        if self.end.get().is_some() {
            return Err(self.failure("").error());
        }
        self.outlet.write(message).map_err(|error| {
            // The other end may have said why it closed.
            drain(&lock(&self.frames), Instant::now() + GOODBYE);
            self.failure(&how_writing_ended(&error, self.outlet.patience)).error()
        })
    }

    pub(super) fn receive(&self) -> Result<Frame> {
        // What came before the end is still to be had.
        lock(&self.frames).recv().map_err(|_| self.failure("it has ended its part").error())
    }

    /// Why nothing more comes from this rank. The first loss of all is the cause, what follows its consequence;
    /// `reason` is for an end that its reader did not take for a loss.
    fn failure(&self, reason: &str) -> Failure {
        let own = || Failure { rank: self.rank, reason: reason.into() };
        self.losses.first().or_else(|| self.end.get().cloned()).unwrap_or_else(own)
    }

    /// Nothing more is sent to this rank.
    pub(super) fn end_sending(&self) {
        let _ = lock(&self.outlet.stream).shutdown(Shutdown::Write);
    }

    /// Close. What was sent has arrived for certain once the other end has closed its side: that is waited for.
    pub(super) fn close(&mut self, deadline: Instant) {
        let frames = self.frames.get_mut().unwrap_or_else(PoisonError::into_inner);
        drain(frames, deadline);
        let _ = lock(&self.outlet.stream).shutdown(Shutdown::Both);
        // The reader may wait for room in the queue.
        *frames = mpsc::sync_channel(0).1;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The side of a connection that is written to, by the rank itself and by the thread that gives signs of life.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    stream: Arc<Mutex<TcpStream>>,
    /// How long the other end may take nothing.
    patience: Duration,
}

impl Outlet {
    fn write(&self, message: &Message) -> io::Result<()> {
        let mut stream = lock(&self.stream);
        stream.write_all(message.as_bytes()).inspect_err(|_| end_half_written(&stream))
    }

    /// Give a sign of life. It is left out where it finds no room: what fills the connection is one already, and others
    /// wait for theirs.
    pub(super) fn beat(&self) {
        // A connection in use is a sign of life itself.
        let Ok(mut stream) = self.stream.try_lock() else { return };
        let message = Message::bare(Kind::Heartbeat);
        let written = stream.set_write_timeout(Some(GLANCE)).and_then(|()| stream.write(message.as_bytes()));
        let intact = match written {
            Ok(len) => len == message.as_bytes().len(),
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
            }
        };
        if !intact || stream.set_write_timeout(Some(self.patience)).is_err() {
            end_half_written(&stream);
        }
    }

    /// Say which rank failed, and how. Nothing more is said then.
    pub(super) fn last_words(&self, failure: &Failure) {
        let mut writer = Writer::default();
        writer.number(failure.rank as u64);
        writer.text(&failure.reason);
        let mut stream = lock(&self.stream);
        let written = stream
            .set_write_timeout(Some(self.patience.min(GOODBYE)))
            .and_then(|()| frame::write(&mut *stream, Kind::Failed, &writer.0));
        // Who is gone already needs no news.
        if written.is_err() {
            end_half_written(&stream);
        }
    }

    /// A second handle of the connection.
    #[cfg(test)]
    pub(super) fn stream(&self) -> TcpStream {
        lock(&self.stream).try_clone().expect("a second handle")
    }
}

/// Half a message may be out, and what follows would be taken for its rest: so nothing does. What the other end has
/// said can still be read.
fn end_half_written(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
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

/// A failure, and the rank on whose connection it showed.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) told_by: usize,
    pub(super) failure: Failure,
}

/// What the connections of a link note together.
#[derive(Debug, Default)]
pub(super) struct Losses(Mutex<State>);

#[derive(Default)]
struct State {
    // All are going: who goes is not lost.
    closing: bool,
    first: Option<Lost>,
    hook: Option<Hook>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("closing", &self.closing).field("first", &self.first).finish_non_exhaustive()
    }
}

impl Losses {
    /// Note a loss, and say whether it is the first one.
    fn note(&self, lost: &Lost) -> bool {
        let mut state = lock(&self.0);
        let is_first = !state.closing && state.first.is_none();
        if is_first {
            state.first = Some(lost.clone());
        }
        is_first
    }

    /// Call what waits for the first loss.
    fn call_hook(&self) {
        // Whatever it does, the lock is free.
        let hook = lock(&self.0).hook.take();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// The first failure, if a rank is lost.
    pub(super) fn first(&self) -> Option<Failure> {
        lock(&self.0).first.as_ref().map(|lost| lost.failure.clone())
    }

    /// Call `hook` at the first loss; here, if that was before.
    pub(super) fn on_first(&self, hook: Hook) {
        let mut state = lock(&self.0);
        if state.first.is_none() {
            state.hook = Some(hook);
            return;
        }
        drop(state);
        hook();
    }

    /// All are going from now on.
    pub(super) fn close(&self) {
        lock(&self.0).closing = true;
    }
}

/// Read messages until the connection ends. What is returned is why, unless it ended as it should.
fn read_all(rank: usize, mut from: TcpStream, frames: &SyncSender<Frame>, lost_after: Duration) -> Option<Failure> {
    loop {
        let frame = match frame::read(&mut from, MAX_PAYLOAD) {
            Ok(frame) => frame,
            Err(error) => return Some(Failure { rank, reason: how_reading_ended(&error, lost_after) }),
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

fn how_reading_ended(error: &io::Error, lost_after: Duration) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => "its process has ended".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has given no sign of life for {} seconds", lost_after.as_secs_f32())
        }
        _ => format!("its connection broke: {error}"),
    }
}

fn how_writing_ended(error: &io::Error, patience: Duration) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has taken nothing for {} seconds", patience.as_secs_f32())
        }
        _ => format!("its connection broke: {error}"),
    }
}

/// Take what still comes until the reader has ended, or until the deadline, however much comes.
fn drain(frames: &Receiver<Frame>, deadline: Instant) {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || frames.recv_timeout(left).is_err() {
            return;
        }
    }
}

pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(body)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is locked here can be left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// An outlet into a connection, and its other end.
    fn connection(patience: Duration) -> (Outlet, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (Outlet { stream: Arc::new(Mutex::new(stream)), patience }, other)
    }

    #[test]
    fn a_full_connection_delays_no_sign_of_life() {
        let (outlet, mut other) = connection(Duration::from_secs(100));
        let mut sent = 0;
        let mut stream = outlet.stream();
        stream.set_write_timeout(Some(GLANCE)).unwrap();
        while let Ok(len) = stream.write(&[0; 1 << 16]) {
            sent += len as u64;
        }
        let started = Instant::now();
        outlet.beat();
        assert!(started.elapsed() < Duration::from_secs(50));
        // It is left out as a whole, and the connection goes on.
        assert_eq!((&mut other).take(sent).read_to_end(&mut Vec::new()).unwrap() as u64, sent);
        outlet.beat();
        assert_eq!(frame::read(&mut other, 10).unwrap().kind, Kind::Heartbeat);
        assert_eq!(stream.write_timeout().unwrap(), Some(outlet.patience));
    }

    #[test]
    fn nothing_follows_half_a_message() {
        let patience = Duration::from_millis(50);
        let (outlet, mut other) = connection(patience);
        outlet.stream().set_write_timeout(Some(patience)).unwrap();
        let error = outlet.write(&Message::new(Kind::Broadcast, &vec![0; MAX_PAYLOAD]).unwrap()).unwrap_err();
        assert_eq!(how_writing_ended(&error, patience), "it has taken nothing for 0.05 seconds");
        let reader = std::thread::spawn(move || frame::read(&mut other, MAX_PAYLOAD).unwrap_err());
        outlet.last_words(&Failure { rank: 0, reason: "for the test".into() });
        outlet.beat();
        assert_eq!(reader.join().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn who_keeps_sending_is_not_waited_for() {
        let (sender, frames) = mpsc::sync_channel(QUEUE);
        let send = || sender.try_send(Frame { kind: Kind::Broadcast, payload: Vec::new() });
        while send().is_ok() {}
        drain(&frames, Instant::now());
        assert!(send().is_err(), "nothing is taken after the deadline");
        drop(sender);
        drain(&frames, Instant::now() + GOODBYE);
        assert!(frames.try_recv().is_err(), "all is taken before it");
    }
}
