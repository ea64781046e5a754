//! Reading and writing with a deadline. A socket's own timeouts start again with each byte, so a peer that sends one
//! byte at a time could block a thread forever.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A connection on which everything must be done by a deadline.
pub(super) struct Deadline<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) until: Instant,
}

impl Deadline<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Deadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The bytes that a peer must deliver or accept within twice its timeout, once a message has begun.
const PROGRESS: usize = 64 << 10;

/// One message on a connection whose socket timeouts are `patience`: the first byte may take that long, and each
/// [`PROGRESS`] bytes after it no more than twice as long.
pub(super) struct Paced<'a> {
    stream: &'a TcpStream,
    patience: Duration,
    since: Option<Instant>,
    bytes: usize,
}

impl<'a> Paced<'a> {
    pub(super) fn new(stream: &'a TcpStream, patience: Duration) -> Self {
        Paced { stream, patience, since: None, bytes: 0 }
    }

    fn progress(&mut self, len: usize) -> io::Result<usize> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        self.bytes += len;
        if self.bytes >= PROGRESS {
            (self.bytes, self.since) = (0, Some(now));
        } else if now.duration_since(since) > self.patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(len)
    }
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.stream.read(buffer)?;
        self.progress(len)
    }
}

impl Write for Paced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.stream.write(bytes)?;
        self.progress(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
