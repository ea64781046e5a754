//! How ranks find each other: rank 0 listens, the others connect, and all check that they were started with the same
//! options.
//!
//! Rank 0 handles several connections at once, each on its own thread and each limited to a few seconds and kilobytes
//! (`arrivals.rs`). A connection that is not a rank is closed, and the rendezvous continues; it also continues if one
//! claims to be a rank but was started differently, since anybody can claim that. Only a mismatching rank that has
//! proved the shared secret ends the rendezvous for all.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::arrivals::Arrivals;
#[cfg(all(feature = "mpi", unix))]
use super::config::Mpi;
use super::config::Ranks;
use super::deadline::Deadline;
use super::frame::{self, Kind};
use super::handshake::{self, HANDSHAKE_TIMEOUT, Hello, Mismatch, Refusal};
#[cfg(all(feature = "mpi", unix))]
use super::mpi;
use super::transport::Transport;
use crate::error::{Error, Result};

/// How long a rank waits for rank 0 to take part in its handshake: rank 0 may have many others to handle first.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two attempts to accept, connect or look up a name.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A rank that rank 0 has admitted, and its connection.
type Admitted = (usize, TcpStream);

impl Ranks {
    /// Connect with the other ranks. `fingerprint` lists by name what must be the same on all of them.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] when the address cannot be used, or when some ranks do not connect in time or know another
    /// secret; [`Error::RankMismatch`] on a rank that was started differently, and on all ranks if they share a secret;
    /// [`Error::RankFailed`] when a rank disconnects; [`Error::InvalidArgument`] when the fingerprint takes more than
    /// 16 KiB.
    pub fn rendezvous(&self, fingerprint: &[(&str, String)]) -> Result<Transport> {
        let deadline = Instant::now() + self.rendezvous_timeout;
        // All ranks must agree on the timeout: heartbeats are sent at a fraction of it.
        let fingerprint = [fingerprint, &[("`heartbeat_timeout`", format!("{:?}", self.heartbeat_timeout))]].concat();
        Hello::check_length(self, &fingerprint)?;
        #[cfg(all(feature = "mpi", unix))]
        if let Some(Mpi(world)) = &self.mpi {
            return mpi::meet(self, world, &fingerprint, deadline);
        }
        let streams = match (self.world_size, self.rank) {
            (1, _) => Vec::new(),
            (_, 0) => self.gather(&fingerprint, deadline)?,
            _ => vec![(0, self.join(&fingerprint, deadline)?)],
        };
        Transport::new(self.rank, self.world_size, streams, self.heartbeat_timeout)
            .map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Rendezvous { rank: self.rank, address: self.address(), reason: reason.into() }
    }

    /// The addresses of rank 0's host name.
    fn resolved(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        match addresses.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            false => Ok(addresses),
        }
    }

    // ---- rank 0 ----

    fn gather(&self, fingerprint: &[(&str, String)], deadline: Instant) -> Result<Vec<Admitted>> {
        let listener = self.listen(deadline)?;
        let mut arrivals = Arrivals::new(self.secret.clone(), deadline);
        let mut admitted: Vec<Admitted> = Vec::new();
        // For each rank number, the first mismatch that was rejected.
        let mut refused: BTreeMap<usize, Mismatch> = BTreeMap::new();
        loop {
            if admitted.len() + 1 == self.world_size {
                admitted.retain(|(_, stream)| is_waiting(stream));
                if admitted.len() + 1 == self.world_size {
                    break;
                }
            }
            if Instant::now() > deadline {
                admitted.retain(|(_, stream)| is_waiting(stream));
                return Err(self.missing(&admitted, &refused, arrivals.accept_error()));
            }
            arrivals.accept(&listener);
            let Some((stream, heard)) = arrivals.next(RETRY_INTERVAL) else { continue };
            let checked = heard.and_then(|hello| {
                // Its place is free again if the previous rank with this number has disconnected.
                admitted.retain(|(rank, stream)| *rank != hello.rank || is_waiting(stream));
                let is_taken = admitted.iter().any(|(rank, _)| *rank == hello.rank);
                hello.check(self.world_size, fingerprint, is_taken).map(|()| hello.rank).map_err(|mismatch| {
                    let _ = mismatch.tell(&mut soon(&stream));
                    // It has proved the secret, if there is one: an unrelated process cannot end the rendezvous this
                    // way.
                    (mismatch, self.secret.is_some())
                })
            });
            match checked {
                Ok(rank) => admitted.push((rank, stream)),
                Err((mismatch, true)) => {
                    for (_, stream) in &admitted {
                        let _ = mismatch.tell(&mut soon(stream));
                    }
                    return Err(mismatch.error());
                }
                Err((mismatch, false)) if mismatch.rank < self.world_size => {
                    refused.entry(mismatch.rank).or_insert(mismatch);
                }
                Err(_) => {}
            }
        }
        admitted.sort_by_key(|(rank, _)| *rank);
        for (rank, stream) in &admitted {
            frame::write(&mut soon(stream), Kind::Welcome, &[]).map_err(|error| Error::RankFailed {
                rank: *rank,
                reason: format!("it disconnected during the rendezvous: {error}"),
            })?;
        }
        Ok(admitted)
    }

    /// The error if ranks are missing at the deadline, with possible explanations.
    fn missing(&self, admitted: &[Admitted], refused: &BTreeMap<usize, Mismatch>, accept: Option<io::Error>) -> Error {
        let missing: Vec<usize> =
            (1..self.world_size).filter(|rank| admitted.iter().all(|(there, _)| there != rank)).collect();
        let numbers = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut reason = format!(
            "of {} ranks these did not connect within {} seconds: {numbers}; were they started, and with this address?",
            self.world_size,
            self.rendezvous_timeout.as_secs_f32()
        );
        // Only a few of them: each has its reason in the error of its own process.
        for mismatch in missing.iter().filter_map(|rank| refused.get(rank)).take(3) {
            reason.push_str(&format!("; one was rejected: {}", mismatch.error()));
        }
        if let Some(error) = accept {
            reason.push_str(&format!("; connections could not be accepted: {error}"));
        }
        self.failed(reason)
    }

    fn listen(&self, deadline: Instant) -> Result<TcpListener> {
        let addresses = match self.listen_on {
            Some(address) => Ok(vec![SocketAddr::new(address, self.port)]),
            // A service's name gets its address once the machine behind it has started.
            None => loop {
                match self.resolved() {
                    Err(_) if Instant::now() + RETRY_INTERVAL < deadline => std::thread::sleep(RETRY_INTERVAL),
                    done => break done,
                }
            },
        };
        let bound = addresses.and_then(|addresses| TcpListener::bind(addresses.as_slice()));
        let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        listener.map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => "another program has this port: set MASTER_PORT to a free one on all ranks",
                io::ErrorKind::AddrNotAvailable => {
                    "this is not an address of rank 0's machine: correct MASTER_ADDR, or set the address to listen on"
                }
                _ => "rank 0 must be able to listen at the address that the others connect to",
            };
            self.failed(format!("cannot listen: {error}; {advice}"))
        })
    }

    // ---- the other ranks ----

    fn join(&self, fingerprint: &[(&str, String)], deadline: Instant) -> Result<TcpStream> {
        let stream = self.connect(fingerprint, deadline)?;
        // Rank 0 welcomes all at once. It may have started to wait a little later, and knows which ranks are missing.
        let until = deadline.max(Instant::now() + HANDSHAKE_TIMEOUT);
        match handshake::wait_for_welcome(Deadline { stream: &stream, until }) {
            Ok(()) => Ok(stream),
            Err(Refusal::Differs(mismatch)) => Err(mismatch.error()),
            Err(Refusal::Broken(error)) => Err(self.no_welcome(&error)),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// The error when rank 0 admitted this rank but did not welcome it.
    fn no_welcome(&self, error: &io::Error) -> Error {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            let (waited, ranks) = (self.rendezvous_timeout.as_secs_f32(), self.world_size);
            return self.failed(format!(
                "rank 0 is connected, but not all of {ranks} ranks are within {waited} seconds: were they started, and \
                 with this address?"
            ));
        }
        let reason = format!("it disconnected before all ranks had connected: {error}; its own error says why");
        Error::RankFailed { rank: 0, reason }
    }

    /// The error for a refusal that another attempt would not avoid.
    fn refused(&self, refusal: &Refusal) -> Error {
        match refusal {
            Refusal::Differs(mismatch) => mismatch.error(),
            Refusal::Unproven => self.failed(
                "what listens there does not know the shared secret: give all ranks the same QWEN_RANKS_SECRET, and \
                 check that the address is that of rank 0",
            ),
            Refusal::NotRankZero => {
                self.failed("another program answers there: set MASTER_PORT to a free port on all ranks")
            }
            Refusal::Broken(error) => self.failed(error.to_string()),
        }
    }

    /// A connection to rank 0, which has admitted this rank. Rank 0 may start at any time before the deadline.
    fn connect(&self, fingerprint: &[(&str, String)], deadline: Instant) -> Result<TcpStream> {
        loop {
            let attempt = self.resolved().and_then(|addresses| connect_to(&addresses, deadline));
            let error = match attempt {
                Err(error) => error,
                Ok(stream) => {
                    let now = Instant::now();
                    let until = (now + INTRODUCTION_TIMEOUT).min(deadline.max(now + HANDSHAKE_TIMEOUT));
                    match handshake::introduce(Deadline { stream: &stream, until }, self, fingerprint) {
                        Ok(()) => return Ok(stream),
                        Err(Refusal::Broken(error)) => error,
                        Err(refusal) => return Err(self.refused(&refusal)),
                    }
                }
            };
            if Instant::now() + RETRY_INTERVAL > deadline {
                let waited = self.rendezvous_timeout.as_secs_f32();
                let reason =
                    format!("cannot reach rank 0 within {waited} seconds: {error}; does it run at this address?");
                return Err(self.failed(reason));
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }
}

/// A connection for one short message.
fn soon(stream: &TcpStream) -> Deadline<'_> {
    Deadline { stream, until: Instant::now() + HANDSHAKE_TIMEOUT }
}

/// Whether an admitted rank is still there: it neither closed the connection nor sent anything, which it must not.
fn is_waiting(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let is_silent = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_ok() && is_silent
}

fn connect_to(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(address, left.clamp(RETRY_INTERVAL, HANDSHAKE_TIMEOUT)).and_then(not_itself) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// While nobody listens, the system may assign a connection the very port that it connects to.
fn not_itself(stream: TcpStream) -> io::Result<TcpStream> {
    match stream.local_addr()? == stream.peer_addr()? {
        true => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there")),
        false => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_and_a_lost_connection_before_the_welcome_are_told_apart() {
        let ranks = Ranks::new(1, 3).unwrap().rendezvous_timeout(Duration::from_millis(500));
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut] {
            let error = ranks.no_welcome(&kind.into());
            assert!(matches!(error, Error::Rendezvous { rank: 1, .. }), "{error:?}");
            assert!(error.to_string().contains("not all of 3 ranks are within 0.5 seconds"), "{error}");
        }
        let error = ranks.no_welcome(&io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(error, Error::RankFailed { rank: 0, .. }), "{error:?}");
    }

    /// The system assigns ports in sequence, so it reaches the one being connected to, unless another program has it.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_connection_to_itself_is_refused() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        // Outgoing connections get ports of this parity.
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = (first..first + 20_000).step_by(2).skip(std::process::id() as usize % 5000).find(free).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let deadline = Instant::now() + Duration::from_secs(60);
        for _ in 0..30_000 {
            let refused = connect_to(&[address], deadline).unwrap_err();
            if refused.to_string() == "nobody listens there" {
                break;
            }
        }
    }
}
