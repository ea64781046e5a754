//! What a [`super::Transport`] needs of a connection to another rank, whatever carries it.

use std::fmt::Debug;
use std::time::Instant;

use super::failure::Failure;
use super::frame::{Frame, Message};
use crate::error::Result;

/// The connection to one other rank.
///
/// One thread sends and receives; the transport's heartbeat thread calls [`Link::beat`] and [`Link::tell_failure`].
pub(super) trait Link: Debug + Send + Sync {
    /// The rank at the other end.
    fn rank(&self) -> usize;

    /// Send a message. Returns once the message can be forgotten, which may be before it arrives.
    ///
    /// # Errors
    /// [`crate::Error::RankFailed`] with the first failure of any rank.
    fn send(&self, message: &Message) -> Result<()>;

    /// Wait for the next message.
    ///
    /// # Errors
    /// [`crate::Error::RankFailed`] with the first failure of any rank.
    fn receive(&self) -> Result<Frame>;

    /// Called regularly: send a heartbeat when one is due. It waits for nobody.
    fn beat(&self);

    /// Tell the peer which rank failed, and why. It is the last message.
    fn tell_failure(&self, failure: &Failure);

    /// Send nothing more to this peer.
    fn end_sending(&self);

    /// Close the connection, by the deadline.
    fn close(&self, deadline: Instant);
}
