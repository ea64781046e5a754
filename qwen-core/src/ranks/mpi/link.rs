//! A [`Link`] over MPI.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::failure::{Failure, lock};
use super::super::frame::{Frame, Kind, Message};
use super::super::link::Link;
use super::library;
use super::pause::Pause;
use super::session::Session;
use crate::error::Result;

/// How long sending the reason of a failure may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The way to one other rank.
#[derive(Debug)]
pub(super) struct MpiLink {
    rank: usize,
    session: Arc<Session>,
    interval: Duration,
    beats: Mutex<Beats>,
}

#[derive(Debug)]
struct Beats {
    due: Instant,
    // The last one, if it has not left yet.
    under_way: Option<library::Message>,
    // A failure was told: nothing follows.
    ended: bool,
}

impl MpiLink {
    /// The way to `rank`, with a heartbeat every `interval`.
    pub(super) fn new(rank: usize, session: Arc<Session>, interval: Duration) -> Self {
        let beats = Mutex::new(Beats { due: Instant::now(), under_way: None, ended: false });
        MpiLink { rank, session, interval, beats }
    }
}

impl Link for MpiLink {
    fn rank(&self) -> usize {
        self.rank
    }

    fn send(&self, message: &Message) -> Result<()> {
        self.session.send_message(self.rank, message, None)
    }

    fn receive(&self) -> Result<Frame> {
        self.session.next_message(self.rank, None)
    }

    fn beat(&self) {
        self.session.look_for_failures();
        let mut beats = lock(&self.beats);
        if beats.ended || Instant::now() < beats.due {
            return;
        }
        if beats.under_way.take_if(|message| self.session.is_complete(message)).is_none() && beats.under_way.is_some() {
            // The peer takes no messages, and needs no more of them.
            return;
        }
        beats.due = Instant::now() + self.interval;
        beats.under_way = self.session.send_control(self.rank, &Message::bare(Kind::Heartbeat));
    }

    fn tell_failure(&self, failure: &Failure) {
        lock(&self.beats).ended = true;
        let Ok(message) = Message::new(Kind::Failed, &failure.to_bytes()) else { return };
        let Some(mut sent) = self.session.send_control(self.rank, &message) else { return };
        let (until, mut pause) = (Instant::now() + GOODBYE, Pause::for_the_rest());
        while !self.session.is_complete(&mut sent) && Instant::now() < until {
            pause.wait();
        }
    }

    // What was sent has left, and MPI delivers it.
    fn end_sending(&self) {
        lock(&self.beats).ended = true;
    }

    fn close(&self, _: Instant) {}
}
