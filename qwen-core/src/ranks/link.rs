//! The connections of one rank, after all have met: a star with rank 0 in its middle.
//!
//! A thread for each connection reads it (`peer.rs`). One more thread gives signs of life, and on rank 0 passes on
//! which rank was lost. Any error on any connection ends the whole link: ranks that are out of step cannot find
//! together again, and a launcher starts all of them anew.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frame::{Frame, Kind, Message};
use super::peer::{Failure, GOODBYE, Losses, Lost, Outlet, Peer, spawn};
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
    losses: Arc<Losses>,
    // Taken when the link ends.
    pulse: Option<(Sender<News>, JoinHandle<()>)>,
}

/// What the thread that gives signs of life hears.
enum News {
    /// The first loss.
    Lost(Lost),
    /// From now on, a loss ends the other ranks.
    SpreadLosses,
    /// The link ends.
    End,
}

impl Link {
    /// The link of rank `rank` over connections to other ranks.
    pub(super) fn new(
        rank: usize,
        world_size: usize,
        streams: Vec<(usize, TcpStream)>,
        lost_after: Duration,
    ) -> io::Result<Self> {
        let losses = Arc::new(Losses::default());
        let (tell, news) = mpsc::channel();
        let connect = |(peer, stream)| {
            let pulse = tell.clone();
            // Once that thread has ended, the link does.
            Peer::new(peer, stream, lost_after, &losses, move |lost| drop(pulse.send(News::Lost(lost))))
        };
        let peers = streams.into_iter().map(connect).collect::<io::Result<Vec<_>>>()?;
        let outlets: Vec<_> = peers.iter().map(|peer| (peer.rank, peer.outlet.clone())).collect();
        let pulse = spawn("qwen-rank-pulse", move || beat(&outlets, &news, lost_after / 4))?;
        Ok(Link { rank, world_size, peers, losses, pulse: Some((tell, pulse)) })
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

    /// Call `hook` once, from another thread, as soon as a rank is lost: for collectives that wait elsewhere than on
    /// this link and have to be woken. Not called when a link ends as it should; called here if a rank is lost already.
    pub fn on_loss(&self, hook: impl FnOnce() + Send + 'static) {
        self.losses.on_first(Box::new(hook));
    }

    /// Tell the other ranks that this one cannot go on because of `error`; they end with it.
    pub fn fail(&self, error: &Error) {
        let failure = self.cause(error);
        for peer in self.peers.iter().filter(|peer| peer.rank != failure.rank) {
            peer.outlet.last_words(&failure);
        }
    }

    /// The failure behind `error`, which came up here. Where a rank is lost, that is the cause of what devices report.
    pub(super) fn cause(&self, error: &Error) -> Failure {
        match error {
            Error::RankFailed { rank, reason } => Failure { rank: *rank, reason: reason.clone() },
            error => self.losses.first().unwrap_or_else(|| Failure { rank: self.rank, reason: error.to_string() }),
        }
    }

    /// End the other ranks because of `error`, and give it back, or the failure behind it.
    pub(super) fn end_with(&self, error: Error) -> Error {
        self.fail(&error);
        let failure = self.cause(&error);
        // Of its own failure a rank's own error says most.
        if failure.rank == self.rank { error } else { failure.error() }
    }

    /// From now on, end the other ranks as soon as one is lost, whether or not this rank sends or receives. Ranks that
    /// go in their own time, one before the other, are not lost: so it begins where they no longer do.
    pub(super) fn spread_losses(&self) {
        self.tell_pulse(News::SpreadLosses);
    }

    fn tell_pulse(&self, news: News) {
        if let Some((pulse, _)) = &self.pulse {
            // It hears until the link ends.
            let _ = pulse.send(news);
        }
    }

    fn end_pulse(&mut self) {
        self.tell_pulse(News::End);
        if let Some((_, pulse)) = self.pulse.take() {
            let _ = pulse.join();
        }
    }

    /// Tell the other ranks that all is done.
    pub(super) fn shut_down(&self) {
        self.losses.close();
        for peer in &self.peers {
            // A rank that is gone needs no end.
            let _ = peer.send(&Message::bare(Kind::Shutdown));
        }
    }

    /// Send bytes to all ranks that this one is connected with.
    pub(super) fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        let message = fitting(Message::new(kind, payload))?;
        self.peers.iter().try_for_each(|peer| peer.send(&message))
    }

    /// Send values to all ranks that this one is connected with.
    pub(super) fn send_values(&self, kind: Kind, values: &[f32]) -> Result<()> {
        let message = fitting(Message::of_values(kind, values))?;
        self.peers.iter().try_for_each(|peer| peer.send(&message))
    }

    /// Send bytes to rank `rank` alone.
    pub(super) fn send_to(&self, rank: usize, kind: Kind, payload: &[u8]) -> Result<()> {
        self.peer(rank)?.send(&fitting(Message::new(kind, payload))?)
    }

    /// Send values to rank `rank` alone.
    pub(super) fn send_values_to(&self, rank: usize, kind: Kind, values: &[f32]) -> Result<()> {
        self.peer(rank)?.send(&fitting(Message::of_values(kind, values))?)
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

    fn peer(&self, rank: usize) -> Result<&Peer> {
        let peer = self.peers.iter().find(|peer| peer.rank == rank);
        peer.ok_or_else(|| Error::argument("rank", format!("{rank} is not connected with {}", self.rank)))
    }
}

/// Give signs of life every `interval` until the link ends, and pass on the first loss once that is wanted.
fn beat(outlets: &[(usize, Outlet)], news: &Receiver<News>, interval: Duration) {
    let (mut spreads, mut first) = (false, None);
    loop {
        match news.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => outlets.iter().for_each(|(_, outlet)| outlet.beat()),
            Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(News::Lost(lost)) => first = Some(lost),
            Ok(News::SpreadLosses) => spreads = true,
        }
        if let Some(Lost { told_by, failure }) = first.take_if(|_| spreads) {
            let others = outlets.iter().filter(|(rank, _)| *rank != told_by && *rank != failure.rank);
            others.for_each(|(_, outlet)| outlet.last_words(&failure));
        }
    }
}

/// The message, unless it is longer than any may be.
fn fitting(message: io::Result<Message>) -> Result<Message> {
    message.map_err(|error| Error::argument("batch", error.to_string()))
}

/// The error about a message that makes no sense.
pub(super) fn damaged(rank: usize, reason: &str) -> Error {
    Error::RankFailed { rank, reason: format!("it sent a message that makes no sense: {reason}") }
}

#[cfg(test)]
impl Link {
    /// The bare connections, which say nothing of their own.
    pub(super) fn into_silence(mut self) -> Vec<TcpStream> {
        self.end_pulse();
        let streams = self.peers.iter().map(|peer| peer.outlet.stream()).collect();
        self.peers.clear();
        streams
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.losses.close();
        self.end_pulse();
        self.peers.iter().for_each(Peer::end_sending);
        let deadline = Instant::now() + GOODBYE;
        self.peers.iter_mut().for_each(|peer| peer.close(deadline));
    }
}
