//! The connections that rank 0 has accepted and whose handshake is not complete: a limited number, each for a limited
//! time.
//!
//! At most [`MAX_PENDING`] connections are handled at a time, each on its own thread, with at most
//! [`handshake::MAX_HELLO`] bytes per message and [`HANDSHAKE_TIMEOUT`] for the whole handshake. When all places are
//! taken, a new connection replaces the oldest one that has had [`GRACE`]: a rank needs only milliseconds, so silent
//! connections delay it by a few seconds at most.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::deadline::Deadline;
use super::handshake::{self, HANDSHAKE_TIMEOUT, Hello, Mismatch};
use super::peer::spawn;
use super::secret::Secret;

/// The most connections handled at once. Each takes a thread, a file descriptor and some kilobytes.
const MAX_PENDING: usize = 64;

/// How long a connection keeps its place when others are waiting.
const GRACE: Duration = Duration::from_secs(1);

/// The result of a handshake: which rank it is, or why it was rejected and whether it had proved the secret.
type Heard = Result<Hello, (Mismatch, bool)>;

/// The result of a thread: the number of its connection, and `None` if it is not a rank.
type Report = (u64, Option<Result<Hello, Mismatch>>);

/// Connections in their handshake.
pub(super) struct Arrivals {
    secret: Option<Secret>,
    deadline: Instant,
    // The oldest first.
    pending: VecDeque<Pending>,
    accepted: u64,
    accept_error: Option<io::Error>,
    report: Sender<Report>,
    reports: Receiver<Report>,
}

struct Pending {
    number: u64,
    since: Instant,
    stream: Arc<TcpStream>,
    thread: JoinHandle<()>,
}

impl Pending {
    /// Close the connection, which ends its thread.
    fn close(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.thread.join();
    }
}

impl Arrivals {
    /// No connections yet. None is handled after `deadline`.
    pub(super) fn new(secret: Option<Secret>, deadline: Instant) -> Self {
        let (report, reports) = mpsc::channel();
        Arrivals { secret, deadline, pending: VecDeque::new(), accepted: 0, accept_error: None, report, reports }
    }

    /// Accept the connections waiting at `listener`, as far as there are places.
    pub(super) fn accept(&mut self, listener: &TcpListener) {
        while self.has_room() {
            match listener.accept().and_then(|(stream, _)| self.hear(stream)) {
                Ok(()) => self.accept_error = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The peer disconnected before it was accepted.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    // Usually a temporary lack of file descriptors or threads. The next call tries again.
                    self.accept_error = Some(error);
                    return;
                }
            }
        }
    }

    /// Why connections could recently not be accepted.
    pub(super) fn accept_error(&mut self) -> Option<io::Error> {
        self.accept_error.take()
    }

    fn has_room(&mut self) -> bool {
        let has_had_its_time = |oldest: &Pending| oldest.since.elapsed() >= GRACE;
        if self.pending.len() == MAX_PENDING && self.pending.front().is_some_and(has_had_its_time) {
            self.pending.pop_front().into_iter().for_each(Pending::close);
        }
        self.pending.len() < MAX_PENDING
    }

    fn hear(&mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        self.accepted += 1;
        let (number, since, stream) = (self.accepted, Instant::now(), Arc::new(stream));
        let until = self.deadline.min(since + HANDSHAKE_TIMEOUT);
        let (secret, report, heard) = (self.secret.clone(), self.report.clone(), stream.clone());
        let thread = spawn("qwen-rank-arrival", move || {
            let outcome = handshake::hear(Deadline { stream: &heard, until }, secret.as_ref());
            drop(heard);
            let _ = report.send((number, outcome.ok()));
        })?;
        self.pending.push_back(Pending { number, since, stream, thread });
        Ok(())
    }

    /// The next connection that has introduced itself as a rank, within `wait`. Other connections are closed.
    pub(super) fn next(&mut self, wait: Duration) -> Option<(TcpStream, Heard)> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let (number, outcome) = self.reports.recv_timeout(left).ok()?;
            // It may have lost its place in the meantime.
            let Some(index) = self.pending.iter().position(|pending| pending.number == number) else { continue };
            let Some(Pending { stream, thread, .. }) = self.pending.remove(index) else { continue };
            let _ = thread.join();
            let (Some(outcome), Some(stream)) = (outcome, Arc::into_inner(stream)) else { continue };
            // Rejected by its own thread, so it has not proved the secret.
            return Some((stream, outcome.map_err(|mismatch| (mismatch, false))));
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.pending.drain(..).for_each(Pending::close);
    }
}
