//! One connection of a transport: writing to it, reading from it, and how it ends.
//!
//! A dedicated thread reads everything that arrives, so that no rank ever waits for another one to read, and notices at
//! once when the other end is gone. It first wakes whoever waits for this peer, and only then calls `report`.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::deadline::Paced;
use super::failure::{Failure, Failures, Reported, lock};
use super::frame::{self, Frame, Kind, MAX_PAYLOAD, Message};
use super::link::Link;
use crate::error::Result;

/// Messages received ahead of their use. With tensor parallelism ranks run in lockstep, with at most a few messages in
/// flight. With pipeline parallelism activations come in as many pieces as needed; when these fill the queue, the
/// sender waits.
const QUEUE: usize = 4;

/// How long sending the reason of a failure may take, and how long to wait for the peer's.
pub(super) const GOODBYE: Duration = Duration::from_secs(2);

/// How long a heartbeat waits for room in the socket's buffer.
const HEARTBEAT_WRITE_TIMEOUT: Duration = Duration::from_millis(10);

/// The other end of a TCP connection.
#[derive(Debug)]
pub(super) struct Peer {
    rank: usize,
    outlet: Outlet,
    frames: Mutex<Receiver<Frame>>,
    end: Arc<OnceLock<Failure>>,
    // `None` once the connection is closed.
    reader: Mutex<Option<JoinHandle<()>>>,
    failures: Arc<Failures>,
}

impl Peer {
    /// The other end of `stream`, which is rank `rank`. A failure is recorded in `failures`; `report` is called with
    /// the first one, after waking whoever waits for this peer.
    pub(super) fn new(
        rank: usize,
        stream: TcpStream,
        heartbeat_timeout: Duration,
        failures: &Arc<Failures>,
        report: impl FnOnce(Reported) + Send + 'static,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(heartbeat_timeout))?;
        stream.set_write_timeout(Some(heartbeat_timeout))?;
        let reads = stream.try_clone()?;
        let (sender, frames) = mpsc::sync_channel(QUEUE);
        let end = Arc::new(OnceLock::new());
        let reader = {
            let (end, failures) = (end.clone(), failures.clone());
            spawn("qwen-rank-reader", move || {
                let Some(failure) = read_all(rank, &reads, &sender, heartbeat_timeout) else { return };
                let reported = Reported { by: rank, failure: failure.clone() };
                let is_first = failures.note(&reported);
                let _ = end.set(failure);
                // Wakes whoever waits for a message.
                drop(sender);
                if is_first {
                    report(reported);
                    failures.call_hook();
                }
            })?
        };
        let outlet = Outlet { stream: Arc::new(Mutex::new(stream)), timeout: heartbeat_timeout };
        let (frames, failures) = (Mutex::new(frames), failures.clone());
        Ok(Peer { rank, outlet, frames, end, reader: Mutex::new(Some(reader)), failures })
    }

    /// Why this peer sends nothing more. The first failure of any rank is the cause, later ones are its consequences;
    /// `reason` is for an end that the reader does not consider a failure.
    fn failure(&self, reason: &str) -> Failure {
        let own = || Failure { rank: self.rank, reason: reason.into() };
        self.failures.first().or_else(|| self.end.get().cloned()).unwrap_or_else(own)
    }
}

impl Link for Peer {
    fn rank(&self) -> usize {
        self.rank
    }

    fn send(&self, message: &Message) -> Result<()> {
        if self.end.get().is_some() {
            return Err(self.failure("").error());
        }
        self.outlet.write(message).map_err(|error| {
            // The peer may have sent its reason before it closed the connection.
            drain(&lock(&self.frames), Instant::now() + GOODBYE);
            self.failure(&how_writing_ended(&error, self.outlet.timeout)).error()
        })
    }

    fn receive(&self) -> Result<Frame> {
        // Frames received before the disconnect are still delivered.
        lock(&self.frames).recv().map_err(|_| self.failure("it has shut down").error())
    }

    fn beat(&self) {
        self.outlet.beat();
    }

    fn tell_failure(&self, failure: &Failure) {
        self.outlet.tell_failure(failure);
    }

    fn end_sending(&self) {
        let _ = lock(&self.outlet.stream).shutdown(Shutdown::Write);
    }

    // Everything sent has arrived once the peer has closed its side, so wait for that, until the deadline.
    fn close(&self, deadline: Instant) {
        let mut frames = lock(&self.frames);
        drain(&frames, deadline);
        let _ = lock(&self.outlet.stream).shutdown(Shutdown::Both);
        // Wakes the reader if it waits for room in the queue.
        *frames = mpsc::sync_channel(0).1;
        if let Some(reader) = lock(&self.reader).take() {
            let _ = reader.join();
        }
    }
}

/// The sending side of a connection, used by the rank and by the thread that sends heartbeats.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    stream: Arc<Mutex<TcpStream>>,
    /// How long the peer may accept nothing.
    timeout: Duration,
}

impl Outlet {
    fn write(&self, message: &Message) -> io::Result<()> {
        let stream = lock(&self.stream);
        Paced::new(&stream, self.timeout).write_all(message.as_bytes()).inspect_err(|_| end_half_written(&stream))
    }

    /// Send a heartbeat, unless the connection has no room for it: the data that fills it serves the same purpose, and
    /// other peers are waiting for their heartbeats.
    pub(super) fn beat(&self) {
        // While another thread writes, its message serves as a heartbeat.
        let Ok(mut stream) = self.stream.try_lock() else { return };
        let message = Message::bare(Kind::Heartbeat);
        let written =
            stream.set_write_timeout(Some(HEARTBEAT_WRITE_TIMEOUT)).and_then(|()| stream.write(message.as_bytes()));
        let intact = match written {
            Ok(len) => len == message.as_bytes().len(),
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
            }
        };
        if !intact || stream.set_write_timeout(Some(self.timeout)).is_err() {
            end_half_written(&stream);
        }
    }

    /// Tell the peer which rank failed, and why. It is the last message.
    pub(super) fn tell_failure(&self, failure: &Failure) {
        let mut stream = lock(&self.stream);
        let written = stream
            .set_write_timeout(Some(self.timeout.min(GOODBYE)))
            .and_then(|()| frame::write(&mut *stream, Kind::Failed, &failure.to_bytes()));
        // A peer that has disconnected does not need to be told.
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

/// Half a message may have been sent, and the peer would take what follows for the other half: send nothing more. Data
/// from the peer can still be read.
fn end_half_written(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
}

/// Read messages until the connection ends. Returns the reason, unless it was an orderly shutdown.
fn read_all(
    rank: usize,
    stream: &TcpStream,
    frames: &SyncSender<Frame>,
    heartbeat_timeout: Duration,
) -> Option<Failure> {
    loop {
        let frame = match frame::read(&mut Paced::new(stream, heartbeat_timeout), MAX_PAYLOAD) {
            Ok(frame) => frame,
            Err(error) => return Some(Failure { rank, reason: how_reading_ended(&error, heartbeat_timeout) }),
        };
        match frame.kind {
            Kind::Heartbeat => continue,
            Kind::Failed => return Some(Failure::from_bytes(rank, &frame.payload)),
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

fn how_reading_ended(error: &io::Error, heartbeat_timeout: Duration) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => "its process has ended".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has sent no heartbeat or complete message for {} seconds", heartbeat_timeout.as_secs_f32())
        }
        _ => format!("its connection broke: {error}"),
    }
}

fn how_writing_ended(error: &io::Error, timeout: Duration) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has accepted no data for {} seconds", timeout.as_secs_f32())
        }
        _ => format!("its connection broke: {error}"),
    }
}

/// Discard what still arrives until the reader has ended, at most until the deadline.
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// An outlet into a connection, and its other end.
    fn connection(timeout: Duration) -> (Outlet, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (Outlet { stream: Arc::new(Mutex::new(stream)), timeout }, other)
    }

    #[test]
    fn a_full_connection_delays_no_heartbeat() {
        let (outlet, mut other) = connection(Duration::from_secs(100));
        let mut sent = 0;
        let mut stream = outlet.stream();
        stream.set_write_timeout(Some(HEARTBEAT_WRITE_TIMEOUT)).unwrap();
        while let Ok(len) = stream.write(&[0; 1 << 16]) {
            sent += len as u64;
        }
        let started = Instant::now();
        outlet.beat();
        assert!(started.elapsed() < Duration::from_secs(50));
        // No part of the heartbeat is sent, and the connection can still be used.
        assert_eq!((&mut other).take(sent).read_to_end(&mut Vec::new()).unwrap() as u64, sent);
        outlet.beat();
        assert_eq!(frame::read(&mut other, 10).unwrap().kind, Kind::Heartbeat);
        assert_eq!(stream.write_timeout().unwrap(), Some(outlet.timeout));
    }

    #[test]
    fn nothing_follows_half_a_message() {
        let timeout = Duration::from_millis(50);
        let (outlet, mut other) = connection(timeout);
        outlet.stream().set_write_timeout(Some(timeout)).unwrap();
        let error = outlet.write(&Message::new(Kind::Broadcast, &vec![0; MAX_PAYLOAD]).unwrap()).unwrap_err();
        assert_eq!(how_writing_ended(&error, timeout), "it has accepted no data for 0.05 seconds");
        let reader = std::thread::spawn(move || frame::read(&mut other, MAX_PAYLOAD).unwrap_err());
        outlet.tell_failure(&Failure { rank: 0, reason: "for the test".into() });
        outlet.beat();
        assert_eq!(reader.join().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_peer_that_keeps_sending_is_not_waited_for() {
        let (sender, frames) = mpsc::sync_channel(QUEUE);
        let send = || sender.try_send(Frame { kind: Kind::Broadcast, payload: Vec::new() });
        while send().is_ok() {}
        drain(&frames, Instant::now());
        assert!(send().is_err(), "nothing is received after the deadline");
        drop(sender);
        drain(&frames, Instant::now() + GOODBYE);
        assert!(frames.try_recv().is_err(), "everything is received before it");
    }
}
