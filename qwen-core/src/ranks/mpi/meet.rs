//! How ranks that MPI has connected begin a model together: all of them check that they were started alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::config::Ranks;
use super::super::frame::{Frame, Kind, Message};
use super::super::handshake::{Hello, MAX_HELLO, Mismatch};
use super::super::link::Link;
use super::super::secret::Nonce;
use super::super::transport::Transport;
use super::group::MpiGroup;
use super::link::MpiLink;
use super::session::Session;
use super::world::World;
use crate::error::{Error, Result};

/// The longest time between two looks at what other ranks say while this one has nothing to wait for.
const LOOK: Duration = Duration::from_millis(100);

/// The transport of `ranks`, which MPI has connected, once all are there and agree.
pub(in crate::ranks) fn meet(
    ranks: &Ranks,
    world: &Arc<World>,
    fingerprint: &[(&str, String)],
    until: Instant,
) -> Result<Transport> {
    let session = Arc::new(Session::new(world.clone()));
    match ranks.rank {
        0 => welcome_all(ranks, &session, fingerprint, until)?,
        _ => join(ranks, &session, fingerprint, until)?,
    }
    let peers: Vec<usize> = if ranks.rank == 0 { (1..ranks.world_size).collect() } else { vec![0] };
    let group = MpiGroup::new(session.clone(), ranks.rank, ranks.world_size);
    let interval = ranks.heartbeat_timeout / 4;
    let connect = |failures: &_, reports: &_| {
        session.monitor(failures, reports, ranks.heartbeat_timeout, &peers);
        let link = |peer: &usize| Arc::new(MpiLink::new(*peer, session.clone(), interval)) as Arc<dyn Link>;
        Ok(peers.iter().map(link).collect())
    };
    let transport = Transport::over(ranks.rank, ranks.world_size, interval.min(LOOK), Some(Arc::new(group)), connect);
    transport.map_err(|error| failed(ranks, error.to_string()))
}

fn failed(ranks: &Ranks, reason: String) -> Error {
    Error::Rendezvous { rank: ranks.rank, address: ranks.address(), reason }
}

/// The error if the time was up.
fn late(ranks: &Ranks, error: Error, missing: &str) -> Error {
    match error {
        Error::Cancelled => {
            let waited = ranks.rendezvous_timeout.as_secs_f32();
            failed(ranks, format!("within {waited} seconds {missing}: the own output of that rank may say why"))
        }
        error => error,
    }
}

fn message(kind: Kind, payload: &[u8]) -> Result<Message> {
    Message::new(kind, payload).map_err(|error| Error::argument("fingerprint", error.to_string()))
}

/// As rank 0: hear all ranks, and tell all of them whether they agree.
fn welcome_all(ranks: &Ranks, session: &Session, fingerprint: &[(&str, String)], until: Instant) -> Result<()> {
    let mut differs: Option<Mismatch> = None;
    for rank in 1..ranks.world_size {
        let missing = format!("rank {rank} of {} did not begin to load a model", ranks.world_size);
        let frame = session.next_message(rank, Some(until)).map_err(|error| late(ranks, error, &missing))?;
        let hello = match frame {
            Frame { kind: Kind::Hello, payload } if payload.len() <= MAX_HELLO => Hello::from_bytes(&payload),
            Frame { kind, .. } => Err(format!("{kind:?} instead of Hello")),
        };
        let hello = hello.map_err(|reason| session.failed(rank, format!("it sent an invalid message: {reason}")))?;
        let checked = hello.check_version().and_then(|()| hello.check(ranks.world_size, fingerprint, false));
        differs = differs.or(checked.err());
    }
    let answer = match &differs {
        None => message(Kind::Welcome, &[])?,
        Some(mismatch) => message(Kind::Mismatch, &mismatch.to_bytes())?,
    };
    for rank in 1..ranks.world_size {
        let missing = format!("rank {rank} did not take its answer");
        session.send_message(rank, &answer, Some(until)).map_err(|error| late(ranks, error, &missing))?;
    }
    differs.map_or(Ok(()), |mismatch| Err(mismatch.error()))
}

/// As another rank: introduce this one, and wait until all are there.
fn join(ranks: &Ranks, session: &Session, fingerprint: &[(&str, String)], until: Instant) -> Result<()> {
    let hello = message(Kind::Hello, &Hello::to_bytes(ranks, &Nonce::default(), fingerprint))?;
    let missing = "rank 0 did not begin to load the model, or other ranks did not";
    session.send_message(0, &hello, Some(until)).map_err(|error| late(ranks, error, missing))?;
    let frame = session.next_message(0, Some(until)).map_err(|error| late(ranks, error, missing))?;
    let invalid = |reason: String| session.failed(0, format!("it sent an invalid message: {reason}"));
    match frame.kind {
        Kind::Welcome => Ok(()),
        Kind::Mismatch => Err(Mismatch::from_bytes(&frame.payload).map_err(invalid)?.error()),
        kind => Err(invalid(format!("{kind:?} instead of Welcome"))),
    }
}
