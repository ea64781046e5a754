//! Messages on a connection: a length, a kind, a payload.
//!
//! The stated length allocates nothing: the payload grows as its bytes arrive, up to a limit.

use std::io::{self, Read, Write};

use crate::numerics::human_bytes::HumanBytes;

/// The most bytes of a payload. A step of a million tokens fits; sums are sent in much smaller pieces.
pub(super) const MAX_PAYLOAD: usize = 64 << 20;

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// To rank 0, the first message: which rank this is, and with what options it was started.
    Hello = 1,
    /// From rank 0: random bytes for the proof of the shared secret.
    Challenge,
    /// The proof of the shared secret, first to rank 0, then from it.
    Proof,
    /// From rank 0: all ranks are connected and agree.
    Welcome,
    /// From rank 0: what differs.
    Mismatch,
    /// A heartbeat.
    Heartbeat,
    /// Bytes of rank 0 for all ranks.
    Broadcast,
    /// A rank's number, or from rank 0 the smallest of all.
    Number,
    /// A rank's values, or from rank 0 their sum.
    Reduce,
    /// From rank 0: compute this step.
    Step,
    /// Activations between layers: to the rank of the next layers, and back.
    Hidden,
    /// From rank 0: run the last step again layer by layer.
    Locate,
    /// From rank 0: copy these blocks.
    CopyBlocks,
    /// To rank 0: the last request is done.
    Done,
    /// A rank failed: which one, and why.
    Failed,
    /// From rank 0: end.
    Shutdown,
}

impl Kind {
    const ALL: [Kind; 16] = [
        Kind::Hello,
        Kind::Challenge,
        Kind::Proof,
        Kind::Welcome,
        Kind::Mismatch,
        Kind::Heartbeat,
        Kind::Broadcast,
        Kind::Number,
        Kind::Reduce,
        Kind::Step,
        Kind::Hidden,
        Kind::Locate,
        Kind::CopyBlocks,
        Kind::Done,
        Kind::Failed,
        Kind::Shutdown,
    ];
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) payload: Vec<u8>,
}

/// A message to send: header and payload in one buffer, so that one call sends it, in one packet if it fits.
#[derive(Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A message of bytes. One that is too long is [`io::ErrorKind::InvalidInput`].
    pub(super) fn new(kind: Kind, payload: &[u8]) -> io::Result<Self> {
        let mut message = Self::with_room(kind, payload.len())?;
        message.0.extend_from_slice(payload);
        Ok(message)
    }

    /// A message of f32 values, little-endian. One that is too long is [`io::ErrorKind::InvalidInput`].
    pub(super) fn of_values(kind: Kind, values: &[f32]) -> io::Result<Self> {
        let mut message = Self::with_room(kind, size_of_val(values))?;
        values.iter().for_each(|value| message.0.extend_from_slice(&value.to_le_bytes()));
        Ok(message)
    }

    /// A message without a payload.
    pub(super) fn bare(kind: Kind) -> Self {
        Message(vec![0, 0, 0, 0, kind as u8])
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it tells the other ranks to end.
    #[cfg_attr(not(all(feature = "mpi", unix)), allow(dead_code))]
    pub(super) fn ends(&self) -> bool {
        self.0.get(HEADER - 1) == Some(&(Kind::Shutdown as u8))
    }

    fn with_room(kind: Kind, len: usize) -> io::Result<Self> {
        if len > MAX_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, too_long(len, MAX_PAYLOAD)));
        }
        let mut bytes = Vec::with_capacity(HEADER + len);
        bytes.extend_from_slice(&(len as u32).to_le_bytes());
        bytes.push(kind as u8);
        Ok(Message(bytes))
    }
}

/// Write a message of bytes.
pub(super) fn write(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    to.write_all(Message::new(kind, payload)?.as_bytes())
}

fn too_long(len: usize, max: usize) -> String {
    let [len, max] = HumanBytes::compared(len as u64, max as u64);
    format!("a message of {len}, more than {max}")
}

/// Read a message of at most `max` bytes.
pub(super) fn read(from: &mut impl Read, max: usize) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let [a, b, c, d, kind] = header;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let damaged = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
    let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind);
    let kind = kind.ok_or_else(|| damaged("a message of a kind that this version does not know".to_owned()))?;
    if len > max {
        return Err(damaged(too_long(len, max)));
    }
    let mut payload = Vec::with_capacity(len.min(FIRST_BYTES));
    if from.take(len as u64).read_to_end(&mut payload)? < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Frame { kind, payload })
}

/// The bytes before a payload.
pub(super) const HEADER: usize = 5;

/// Memory to reserve before the first byte of a payload arrives.
const FIRST_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_come_back() {
        let mut bytes = Vec::new();
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            write(&mut bytes, kind, &vec![index as u8; index * 1000]).unwrap();
        }
        let mut from = bytes.as_slice();
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(read(&mut from, MAX_PAYLOAD).unwrap(), Frame { kind, payload: vec![index as u8; index * 1000] });
        }
        assert_eq!(read(&mut from, MAX_PAYLOAD).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn values_are_sent_as_their_bytes() {
        let values = [1.5f32, -0.0, f32::NAN];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let [values, bytes] =
            [Message::of_values(Kind::Reduce, &values), Message::new(Kind::Reduce, &bytes)].map(Result::unwrap);
        assert_eq!(values.as_bytes(), bytes.as_bytes());
        let bare = Message::bare(Kind::Reduce);
        assert_eq!(bare.as_bytes(), Message::new(Kind::Reduce, &[]).unwrap().as_bytes());
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let too_long = [255, 255, 255, 255, Kind::Step as u8, 1, 2];
        assert_eq!(read(&mut too_long.as_slice(), MAX_PAYLOAD).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let short = [0, 0, 0, 3, Kind::Step as u8, 1, 2];
        assert_eq!(read(&mut short.as_slice(), MAX_PAYLOAD).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(write(&mut Vec::new(), Kind::Step, &vec![0; MAX_PAYLOAD + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = read(&mut bytes.as_slice(), 1000) {
                prop_assert!(frame.payload.len() <= bytes.len());
            }
        }
    }
}
