//! What the two ends of a connection exchange before either accepts the other as a rank.
//!
//! ```text
//! a rank                                                  rank 0
//!   magic bytes, hello: version, rank, random bytes  --->
//!                                                    <---  magic bytes, its own random bytes
//!   proof of the shared secret, or nothing           --->
//!                                                    <---  its proof, or nothing
//!                                                    <---  welcome, once all ranks are connected
//! ```
//!
//! Instead of its answers rank 0 may send what differs ([`Mismatch`]). The magic bytes differ by direction, so that
//! neither end mistakes a port scanner, a health check, another program or its own echo for a rank. A rank proves the
//! secret first: anyone can connect to rank 0, and must not learn anything that depends on the secret. All messages are
//! bounded in bytes here, and in time by the caller's [`Deadline`].

use std::io::{self, Read, Write};
use std::time::Duration;

use super::config::{MAX_RANKS, Ranks};
use super::deadline::Deadline;
use super::frame::{self, Frame, Kind};
use super::secret::{self, Nonce, PROOF_BYTES, Prover, Secret};
use super::wire::{Damaged, Reader, Writer, printable};
use crate::error::{Error, Result};

/// The first bytes to rank 0.
const GREETING: [u8; 8] = *b"qwenrank";

/// The first bytes from rank 0.
const ANSWER: [u8; 8] = *b"qwenlead";

/// The protocol version. All ranks need the same one.
const PROTOCOL_VERSION: u64 = 2;

/// How long a handshake may take on rank 0's side, and sending a message that ends one.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of a message before its sender has proved anything.
pub(super) const MAX_HELLO: usize = 16 << 10;

/// The most characters to show of a text that another process sent.
const MAX_SHOWN: usize = 200;

/// What a rank says about itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    version: u64,
    pub(super) rank: usize,
    world_size: usize,
    has_secret: bool,
    nonce: Nonce,
    fingerprint: Vec<(String, String)>,
}

/// Why rank 0 has not admitted this rank.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The connection failed. Rank 0 may not be ready yet, or may have been busy with others.
    Broken(io::Error),
    /// The listener is not rank 0.
    NotRankZero,
    /// Rank 0 does not know the shared secret.
    Unproven,
    /// Rank 0 was started differently.
    Differs(Mismatch),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Broken(error)
    }
}

/// As a rank other than 0: introduce this rank and wait until rank 0 has admitted it.
pub(super) fn introduce(
    mut to: Deadline<'_>,
    ranks: &Ranks,
    fingerprint: &[(&str, String)],
) -> std::result::Result<(), Refusal> {
    let hello = Hello::to_bytes(ranks, &secret::nonce().map_err(io::Error::other)?, fingerprint);
    to.write_all(&GREETING)?;
    frame::write(&mut to, Kind::Hello, &hello)?;
    let mut answer = [0; ANSWER.len()];
    to.read_exact(&mut answer)?;
    if answer != ANSWER {
        return Err(Refusal::NotRankZero);
    }
    let challenge = answer_of_leader(&mut to, Kind::Challenge)?;
    let nonce: Nonce = challenge.try_into().map_err(|_| not_a_rank("a challenge of another length"))?;
    let proof = ranks.secret.as_ref().map(|secret| secret.prove(Prover::Worker, &nonce, &hello));
    frame::write(&mut to, Kind::Proof, proof.as_ref().map_or(&[], |proof| proof))?;
    let proof = answer_of_leader(&mut to, Kind::Proof)?;
    match &ranks.secret {
        Some(secret) if !secret.verify(&proof, Prover::Leader, &nonce, &hello) => Err(Refusal::Unproven),
        _ => Ok(()),
    }
}

/// The payload of rank 0's next message, which must be of this kind.
fn answer_of_leader(from: &mut Deadline<'_>, kind: Kind) -> std::result::Result<Vec<u8>, Refusal> {
    let frame = frame::read(from, MAX_HELLO)?;
    match frame.kind {
        found if found == kind => Ok(frame.payload),
        Kind::Mismatch => Err(Mismatch::from_bytes(&frame.payload)
            .map_or_else(|reason| Refusal::Broken(not_a_rank(&reason)), Refusal::Differs)),
        found => Err(not_a_rank(&format!("{found:?} instead of {kind:?}")).into()),
    }
}

/// As a rank other than 0 that is admitted: wait until all ranks are.
pub(super) fn wait_for_welcome(mut from: Deadline<'_>) -> std::result::Result<(), Refusal> {
    answer_of_leader(&mut from, Kind::Welcome).map(drop)
}

/// As rank 0: receive an introduction. An error means that the other end is not a rank, or has disconnected; a
/// [`Mismatch`], that it is a rank of another version, or has not proved the secret, and was told so.
pub(super) fn hear(
    mut from: Deadline<'_>,
    secret: Option<&Secret>,
) -> io::Result<std::result::Result<Hello, Mismatch>> {
    let mut greeting = [0; GREETING.len()];
    from.read_exact(&mut greeting)?;
    if greeting != GREETING {
        return Err(not_a_rank("another greeting"));
    }
    let bytes = expect(&mut from, Kind::Hello, MAX_HELLO)?;
    let hello = Hello::from_bytes(&bytes).map_err(|reason| not_a_rank(&reason))?;
    from.write_all(&ANSWER)?;
    let refuse = |mut to: Deadline<'_>, mismatch: Mismatch| {
        mismatch.tell(&mut to)?;
        Ok(Err(mismatch))
    };
    if let Err(mismatch) = hello.check_version() {
        return refuse(from, mismatch);
    }
    if hello.has_secret != secret.is_some() {
        let said = |is_set: bool| if is_set { "set" } else { "not set" };
        return refuse(from, hello.differs("the shared secret", said(secret.is_some()), said(hello.has_secret)));
    }
    let nonce = secret::nonce().map_err(io::Error::other)?;
    frame::write(&mut from, Kind::Challenge, &nonce)?;
    // A rank that waited too long for the challenge has closed the connection, and tries again on another one.
    let proof = expect(&mut from, Kind::Proof, PROOF_BYTES)?;
    let Some(secret) = secret else {
        frame::write(&mut from, Kind::Proof, &[])?;
        return Ok(Ok(hello));
    };
    if !secret.verify(&proof, Prover::Worker, &nonce, &bytes) {
        return refuse(from, hello.differs("the shared secret", "another", "one value"));
    }
    frame::write(&mut from, Kind::Proof, &secret.prove(Prover::Leader, &nonce, &bytes))?;
    Ok(Ok(hello))
}

/// The payload of the next message, which must be of this kind and at most `max` bytes long.
fn expect(from: &mut Deadline<'_>, kind: Kind, max: usize) -> io::Result<Vec<u8>> {
    match frame::read(from, max)? {
        Frame { kind: found, payload } if found == kind => Ok(payload),
        Frame { kind: found, .. } => Err(not_a_rank(&format!("{found:?} instead of {kind:?}"))),
    }
}

fn not_a_rank(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the other end is not a rank: {reason}"))
}

impl Hello {
    pub(super) fn to_bytes(ranks: &Ranks, nonce: &Nonce, fingerprint: &[(&str, String)]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(PROTOCOL_VERSION);
        writer.number(ranks.rank as u64);
        writer.number(ranks.world_size as u64);
        writer.number(u64::from(ranks.secret.is_some()));
        writer.0.extend_from_slice(nonce);
        writer.number(fingerprint.len() as u64);
        for (name, value) in fingerprint {
            writer.text(name);
            writer.text(value);
        }
        writer.0
    }

    /// Whether a hello with this fingerprint is short enough for rank 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when it is too long.
    pub(super) fn check_length(ranks: &Ranks, fingerprint: &[(&str, String)]) -> Result<()> {
        match Self::to_bytes(ranks, &Nonce::default(), fingerprint).len() {
            len if len > MAX_HELLO => {
                let reason =
                    format!("takes {len} bytes with its names, at most {MAX_HELLO}: give digests of long values");
                Err(Error::argument("fingerprint", reason))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, Damaged> {
        let mut reader = Reader(bytes);
        let version = reader.number()?;
        let rank = reader.at_most(MAX_RANKS, "the rank")?;
        let world_size = reader.at_most(MAX_RANKS, "the number of ranks")?;
        if version != PROTOCOL_VERSION {
            // The rest of another version's message is unknown.
            let (has_secret, nonce, fingerprint) = (false, Nonce::default(), Vec::new());
            return Ok(Hello { version, rank, world_size, has_secret, nonce, fingerprint });
        }
        let has_secret = reader.at_most(1, "whether there is a secret")? == 1;
        let nonce = reader.array()?;
        let len = reader.at_most(bytes.len(), "the length of the fingerprint")?;
        let fingerprint =
            (0..len).map(|_| Ok((reader.text()?, reader.text()?))).collect::<std::result::Result<_, Damaged>>()?;
        reader.end()?;
        Ok(Hello { version, rank, world_size, has_secret, nonce, fingerprint })
    }

    fn differs(&self, what: &str, expected: &str, found: &str) -> Mismatch {
        let [what, expected, found] = [what, expected, found].map(|text| printable(text, MAX_SHOWN));
        Mismatch { rank: self.rank, what, expected, found }
    }

    pub(super) fn check_version(&self) -> std::result::Result<(), Mismatch> {
        match self.version {
            PROTOCOL_VERSION => Ok(()),
            found => Err(self.differs("the protocol version", &PROTOCOL_VERSION.to_string(), &found.to_string())),
        }
    }

    /// Compare with rank 0's own values. `is_taken`: whether another connection has this rank's number.
    pub(super) fn check(
        &self,
        world_size: usize,
        fingerprint: &[(&str, String)],
        is_taken: bool,
    ) -> std::result::Result<(), Mismatch> {
        if self.world_size != world_size {
            return Err(self.differs("the number of ranks", &world_size.to_string(), &self.world_size.to_string()));
        }
        if self.rank == 0 || self.rank >= world_size || is_taken {
            let numbers = format!("one of 1 to {}, each once", world_size.saturating_sub(1));
            let again = if is_taken { " again" } else { "" };
            return Err(self.differs("the number of a rank", &numbers, &format!("{}{again}", self.rank)));
        }
        for (index, (name, expected)) in fingerprint.iter().enumerate() {
            let found = self.fingerprint.get(index).filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
            if found != Some(expected) {
                return Err(self.differs(name, expected, found.unwrap_or("not given")));
            }
        }
        match self.fingerprint.len() > fingerprint.len() {
            true => Err(self.differs("the list of what must agree", &fingerprint.len().to_string(), "longer")),
            false => Ok(()),
        }
    }
}

/// What a rank and rank 0 disagree on. Its texts can be shown: they are short and have no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub(super) rank: usize,
    what: String,
    expected: String,
    found: String,
}

impl Mismatch {
    pub(super) fn error(&self) -> Error {
        let Mismatch { rank, what, expected, found } = self.clone();
        Error::RankMismatch { rank, what, expected, found }
    }

    /// Send it to that rank, or to another one that cannot start because of it.
    pub(super) fn tell(&self, to: &mut impl Write) -> io::Result<()> {
        frame::write(to, Kind::Mismatch, &self.to_bytes())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(self.rank as u64);
        [&self.what, &self.expected, &self.found].into_iter().for_each(|text| writer.text(text));
        writer.0
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, Damaged> {
        let mut reader = Reader(bytes);
        let rank = reader.at_most(MAX_RANKS, "the rank")?;
        let mut text = || reader.text().map(|text| printable(&text, MAX_SHOWN));
        let mismatch = Mismatch { rank, what: text()?, expected: text()?, found: text()? };
        reader.end()?;
        Ok(mismatch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(rank: usize) -> Hello {
        let bytes = Hello::to_bytes(&Ranks::new(rank.min(2), 3).unwrap(), &[7; 32], &[("model", "demo".into())]);
        Hello { rank, ..Hello::from_bytes(&bytes).unwrap() }
    }

    #[test]
    fn a_number_out_of_range_and_one_that_is_taken_are_told_apart() {
        let found = |rank: usize, is_taken: bool| {
            let checked = hello(rank).check(3, &[("model", "demo".into())], is_taken);
            checked.map_err(|mismatch| mismatch.found)
        };
        assert_eq!(found(2, false), Ok(()));
        assert_eq!(found(2, true), Err("2 again".into()));
        assert_eq!(found(7, false), Err("7".into()));
        assert_eq!(found(0, false), Err("0".into()));
    }

    #[test]
    fn what_differs_is_named() {
        let found = |fingerprint: &[(&str, String)]| hello(1).check(3, fingerprint, false).unwrap_err().error();
        let text = |fingerprint: &[(&str, String)]| found(fingerprint).to_string();
        assert!(text(&[("model", "other".into())]).starts_with("model is demo on rank 1 and other on rank 0"));
        assert!(text(&[("size", "1".into())]).starts_with("size is not given on rank 1 and 1 on rank 0"));
        assert!(text(&[]).starts_with("the list of what must agree is longer on rank 1 and 0 on rank 0"));
    }

    #[test]
    fn a_hello_of_another_version_is_read_as_far_as_it_is_known() {
        let mut bytes = Hello::to_bytes(&Ranks::new(1, 2).unwrap(), &[0; 32], &[]);
        bytes[0] = PROTOCOL_VERSION as u8 + 1;
        bytes.truncate(3);
        bytes.extend_from_slice(b"whatever a later version says");
        let mismatch = Hello::from_bytes(&bytes).unwrap().check_version().unwrap_err();
        let text = mismatch.error().to_string();
        assert!(text.starts_with("the protocol version is 3 on rank 1 and 2 on rank 0"), "{text}");
    }

    #[test]
    fn texts_of_others_are_shown_short_and_without_control_characters() {
        let mut writer = Writer::default();
        writer.number(1);
        for text in ["\x1b[2Jwhat", &"x".repeat(5000), "a\nb\u{202e}c"] {
            writer.text(text);
        }
        let mismatch = Mismatch::from_bytes(&writer.0).unwrap();
        assert_eq!(mismatch.what, "\u{fffd}[2Jwhat");
        assert_eq!(mismatch.expected.chars().count(), MAX_SHOWN + 1);
        assert_eq!(mismatch.found, "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn a_fingerprint_that_is_too_long_is_refused_where_it_is_given() {
        let ranks = Ranks::new(1, 2).unwrap();
        let check = |len: usize| Hello::check_length(&ranks, &[("model", "x".repeat(len))]);
        assert!(check(MAX_HELLO - 200).is_ok());
        assert!(check(MAX_HELLO).unwrap_err().to_string().contains("at most 16384"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Hello::from_bytes(&bytes);
            let _ = Mismatch::from_bytes(&bytes);
        }
    }
}
