//! How ranks find each other: rank 0 listens, the others come, and all prove that they were started alike.
//!
//! Who connects says a few fixed bytes first, and rank 0 answers with others: so neither side takes a port scanner, a
//! health check, another program's port or its own echo for a rank. Who connects has a few seconds for its first words,
//! however it deals them out, and no longer than the ranks wait for each other.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::frame::{self, Frame, Kind};
use super::link::Link;
use super::wire::{Damaged, Reader, Writer};
use super::{MAX_RANKS, Ranks};
use crate::error::{Error, Result};

/// The first bytes to rank 0.
const GREETING: [u8; 8] = *b"qwenrank";

/// The first bytes from rank 0.
const ANSWER: [u8; 8] = *b"qwenlead";

/// The last word of a rank that has found rank 0.
const STILL_HERE: u8 = 1;

/// Of what the ranks say to each other. All ranks have to be of one version.
const PROTOCOL_VERSION: u64 = 1;

/// The most bytes that a stranger may send.
const MAX_HELLO: usize = 64 << 10;

/// How long one who has connected may take for the first words.
const FIRST_WORDS: Duration = Duration::from_secs(5);

/// Between two looks for who has come, or two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);

impl Ranks {
    /// Meet the other ranks. `fingerprint` lists by name what must be the same on all of them.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] when the address cannot be used or some ranks do not come in time,
    /// [`Error::RankMismatch`] on every rank when one was started with something else, and [`Error::RankFailed`] when
    /// one goes again.
    pub fn meet(&self, fingerprint: &[(&str, String)]) -> Result<Link> {
        let deadline = Instant::now() + self.meet_within;
        // A rank that is more patient than another one would give signs of life too seldom for it.
        let fingerprint = [fingerprint, &[("`lost_after`", format!("{:?}", self.lost_after))]].concat();
        let streams = match (self.world_size, self.rank) {
            (1, _) => Vec::new(),
            (_, 0) => self.gather(&fingerprint, deadline)?,
            _ => vec![(0, self.join(&fingerprint, deadline)?)],
        };
        Link::new(self.rank, self.world_size, streams, self.lost_after).map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Rendezvous { rank: self.rank, address: self.address(), reason: reason.into() }
    }

    /// The addresses behind the name of rank 0's machine.
    fn resolved(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        match addresses.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            false => Ok(addresses),
        }
    }

    // ---- rank 0 ----

    fn gather(&self, fingerprint: &[(&str, String)], deadline: Instant) -> Result<Vec<(usize, TcpStream)>> {
        let listener = self.listen(deadline)?;
        let mut came: Vec<(usize, TcpStream)> = Vec::new();
        while came.len() + 1 < self.world_size {
            if Instant::now() > deadline {
                let missing = (1..self.world_size).filter(|rank| came.iter().all(|(there, _)| there != rank));
                let missing = missing.map(|rank| rank.to_string()).collect::<Vec<_>>().join(", ");
                let waited = self.meet_within.as_secs_f32();
                return Err(self.failed(format!(
                    "of {} ranks these did not come within {waited} seconds: {missing}; were they started, and with \
                     this address?",
                    self.world_size
                )));
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                // Who came has gone again.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) =>
                {
                    continue;
                }
                Err(error) => return Err(self.failed(format!("cannot accept connections: {error}"))),
            };
            // Whoever does not speak like a rank is none.
            let Ok(hello) = first_words(&stream, deadline.min(Instant::now() + FIRST_WORDS)) else { continue };
            let checked =
                hello.check(self.world_size, fingerprint, |rank| came.iter().any(|(there, _)| *there == rank));
            came.push((hello.rank, stream));
            if let Err(mismatch) = checked {
                for (_, stream) in &came {
                    let _ = frame::write(&mut Hurried::for_one_word(stream), Kind::Mismatch, &mismatch.to_bytes());
                }
                return Err(mismatch.error());
            }
        }
        came.sort_by_key(|(rank, _)| *rank);
        for (rank, stream) in &came {
            let gone =
                |error: io::Error| Error::RankFailed { rank: *rank, reason: format!("it came and went: {error}") };
            frame::write(&mut Hurried::for_one_word(stream), Kind::Welcome, &[]).map_err(gone)?;
        }
        Ok(came)
    }

    fn listen(&self, deadline: Instant) -> Result<TcpListener> {
        let addresses = match self.listen_on {
            Some(address) => Ok(vec![SocketAddr::new(address, self.port)]),
            // Services give a name its address when its machine has started, which may be a little later.
            None => loop {
                match self.resolved() {
                    Err(_) if Instant::now() + PAUSE < deadline => std::thread::sleep(PAUSE),
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
                    "this is no address of rank 0's machine: correct MASTER_ADDR, or name the one to listen on"
                }
                _ => "rank 0 must be able to listen where the others look for it",
            };
            self.failed(format!("cannot listen: {error}; {advice}"))
        })
    }

    // ---- the other ranks ----

    fn join(&self, fingerprint: &[(&str, String)], deadline: Instant) -> Result<TcpStream> {
        let hello = Hello::to_bytes(self.rank, self.world_size, fingerprint);
        let stream = self.connect(&hello, deadline)?;
        // Rank 0 answers when all are there. It may have begun to wait a little later, and knows who is missing.
        let until = deadline.max(Instant::now() + FIRST_WORDS);
        let welcome = frame::read(&mut Hurried { stream: &stream, until }, MAX_HELLO);
        match welcome {
            Ok(Frame { kind: Kind::Welcome, .. }) => Ok(stream),
            Ok(Frame { kind: Kind::Mismatch, payload }) => Err(Mismatch::from_bytes(&payload)
                .map_or_else(|reason| self.failed(format!("rank 0 refused: {reason}")), |mismatch| mismatch.error())),
            Ok(frame) => Err(self.failed(format!("rank 0 answered with {:?}", frame.kind))),
            Err(error) => Err(self.no_welcome(&error)),
        }
    }

    /// Rank 0 was there, and did not say that all are.
    fn no_welcome(&self, error: &io::Error) -> Error {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            let (waited, ranks) = (self.meet_within.as_secs_f32(), self.world_size);
            return self.failed(format!(
                "rank 0 is there, but not all of {ranks} ranks came within {waited} seconds: were they started, and \
                 with this address?"
            ));
        }
        let reason = format!("rank 0 went before all ranks had come: {error}; its own error says why");
        Error::RankFailed { rank: 0, reason }
    }

    /// A connection to rank 0, which has understood `hello`. Until the deadline rank 0 may still be on its way.
    fn connect(&self, hello: &[u8], deadline: Instant) -> Result<TcpStream> {
        loop {
            let error = match self.resolved().and_then(|addresses| connect_to(&addresses, deadline)) {
                Ok(stream) => match greet(&stream, hello) {
                    Ok(true) => return Ok(stream),
                    Ok(false) => {
                        let advice = "set MASTER_PORT to a free port on all ranks";
                        return Err(self.failed(format!("another program answers there: {advice}")));
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if Instant::now() + PAUSE > deadline {
                let waited = self.meet_within.as_secs_f32();
                let reason =
                    format!("cannot reach rank 0 within {waited} seconds: {error}; does it run at this address?");
                return Err(self.failed(reason));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn connect_to(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(address, left.clamp(PAUSE, FIRST_WORDS)).and_then(not_itself) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Where nobody listens yet, the system may give a connection the very port that it goes to.
fn not_itself(stream: TcpStream) -> io::Result<TcpStream> {
    match stream.local_addr()? == stream.peer_addr()? {
        true => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there")),
        false => Ok(stream),
    }
}

/// Say who comes. False when it is not rank 0 that answers.
fn greet(stream: &TcpStream, hello: &[u8]) -> io::Result<bool> {
    // Rank 0 hears one after the other, and each may take its time.
    let mut stream = Hurried { stream, until: Instant::now() + FIRST_WORDS * 6 };
    stream.write_all(&GREETING)?;
    frame::write(&mut stream, Kind::Hello, hello)?;
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer)?;
    if answer != ANSWER {
        return Ok(false);
    }
    stream.write_all(&[STILL_HERE])?;
    Ok(true)
}

/// Hear who has come, and answer.
fn first_words(stream: &TcpStream, until: Instant) -> io::Result<Hello> {
    stream.set_nonblocking(false)?;
    let mut stream = Hurried { stream, until };
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    let stranger = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if greeting != GREETING {
        return Err(stranger("no rank".into()));
    }
    let frame = frame::read(&mut stream, MAX_HELLO)?;
    let hello = Hello::from_bytes(&frame.payload).map_err(stranger)?;
    stream.write_all(&ANSWER)?;
    // One who waited too long has hung up, and comes again on another connection.
    let mut still_here = [0];
    stream.read_exact(&mut still_here)?;
    if still_here == [STILL_HERE] { Ok(hello) } else { Err(stranger("no rank".into())) }
}

/// A connection on which all has to be said by a moment: the timeouts of a socket begin anew with each byte.
struct Hurried<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Hurried<'a> {
    fn for_one_word(stream: &'a TcpStream) -> Self {
        Hurried { stream, until: Instant::now() + FIRST_WORDS }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Hurried<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Hurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Who comes, and with what.
#[derive(Debug, PartialEq, Eq)]
struct Hello {
    version: u64,
    rank: usize,
    world_size: usize,
    fingerprint: Vec<(String, String)>,
}

impl Hello {
    fn to_bytes(rank: usize, world_size: usize, fingerprint: &[(&str, String)]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(PROTOCOL_VERSION);
        writer.number(rank as u64);
        writer.number(world_size as u64);
        writer.number(fingerprint.len() as u64);
        for (name, value) in fingerprint {
            writer.text(name);
            writer.text(value);
        }
        writer.0
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut reader = Reader(bytes);
        let version = reader.number()?;
        let rank = reader.at_most(MAX_RANKS, "the rank")?;
        let world_size = reader.at_most(MAX_RANKS, "the number of ranks")?;
        let len = reader.at_most(bytes.len(), "the length of the fingerprint")?;
        let fingerprint = (0..len).map(|_| Ok((reader.text()?, reader.text()?))).collect::<Result<_, Damaged>>()?;
        reader.end()?;
        Ok(Hello { version, rank, world_size, fingerprint })
    }

    /// Compare with what rank 0 has.
    fn check(
        &self,
        world_size: usize,
        fingerprint: &[(&str, String)],
        came: impl Fn(usize) -> bool,
    ) -> Result<(), Mismatch> {
        let differs = |what: &str, expected: String, found: String| {
            Err(Mismatch { rank: self.rank, what: what.into(), expected, found })
        };
        if self.version != PROTOCOL_VERSION {
            return differs("the protocol version", PROTOCOL_VERSION.to_string(), self.version.to_string());
        }
        if self.world_size != world_size {
            return differs("the number of ranks", world_size.to_string(), self.world_size.to_string());
        }
        if self.rank == 0 || self.rank >= world_size || came(self.rank) {
            let others = format!("one of 1 to {}, each once", world_size.saturating_sub(1));
            let again = if came(self.rank) { " again" } else { "" };
            return differs("the number of a rank", others, format!("{}{again}", self.rank));
        }
        for (index, (name, expected)) in fingerprint.iter().enumerate() {
            let found = self.fingerprint.get(index).filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
            if found != Some(expected) {
                return differs(name, expected.clone(), found.unwrap_or("not said").into());
            }
        }
        if self.fingerprint.len() > fingerprint.len() {
            return differs("the list of what must agree", fingerprint.len().to_string(), "longer".into());
        }
        Ok(())
    }
}

/// What two ranks disagree on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mismatch {
    rank: usize,
    what: String,
    expected: String,
    found: String,
}

impl Mismatch {
    fn error(&self) -> Error {
        let Mismatch { rank, what, expected, found } = self.clone();
        Error::RankMismatch { rank, what, expected, found }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(self.rank as u64);
        [&self.what, &self.expected, &self.found].into_iter().for_each(|text| writer.text(text));
        writer.0
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut reader = Reader(bytes);
        let rank = reader.at_most(MAX_RANKS, "the rank")?;
        let mismatch = Mismatch { rank, what: reader.text()?, expected: reader.text()?, found: reader.text()? };
        reader.end()?;
        Ok(mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_rank_may_have_is_told_from_one_that_came_before() {
        let found = |rank: usize, came: bool| {
            let hello = Hello { version: PROTOCOL_VERSION, rank, world_size: 3, fingerprint: Vec::new() };
            hello.check(3, &[], |_| came).map_err(|mismatch| mismatch.found)
        };
        assert_eq!(found(2, false), Ok(()));
        assert_eq!(found(2, true), Err("2 again".into()));
        assert_eq!(found(7, false), Err("7".into()));
        assert_eq!(found(0, false), Err("0".into()));
    }

    #[test]
    fn a_rank_that_waited_too_long_says_so_and_one_that_was_left_says_that() {
        let ranks = Ranks::new(1, 3).unwrap().meet_within(Duration::from_millis(500));
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut] {
            let error = ranks.no_welcome(&kind.into());
            assert!(matches!(error, Error::Rendezvous { rank: 1, .. }), "{error:?}");
            assert!(error.to_string().contains("not all of 3 ranks came within 0.5 seconds"), "{error}");
        }
        let error = ranks.no_welcome(&io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(error, Error::RankFailed { rank: 0, .. }), "{error:?}");
    }

    /// The system hands out ports in turn, and comes to the one that is connected to, unless another program has it.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_connection_to_itself_is_nobody() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        // Connections get ports of this parity.
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
