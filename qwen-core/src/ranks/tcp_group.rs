//! The sum over ranks on the connections of a [`Link`]: for processors, and where a device has no interconnect.

use std::sync::Arc;

use super::frame::Kind;
use super::link::Link;
use super::values::{PIECE, take_in};
use crate::collective::Collective;
use crate::error::Result;

/// A [`Collective`] over the ranks of a [`Link`]: they send their values to rank 0, which adds them in the order of the
/// ranks and sends the sum to all. The bits are those of [`crate::collective::ThreadGroup`].
#[derive(Debug)]
pub struct TcpGroup {
    link: Arc<Link>,
}

impl TcpGroup {
    /// The group of all ranks of `link`.
    pub fn new(link: Arc<Link>) -> Self {
        TcpGroup { link }
    }
}

impl Collective for TcpGroup {
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        // One piece at a time to its sum: two ranks never both wait for the other one to read.
        values.chunks_mut(PIECE).try_for_each(|piece| self.sum(piece))
    }
}

impl TcpGroup {
    fn sum(&self, piece: &mut [f32]) -> Result<()> {
        if self.link.rank() > 0 {
            self.link.send_values(Kind::Reduce, piece)?;
            return take_in(piece, 0, &self.link.receive(0, Kind::Reduce)?, |value, sum| *value = sum);
        }
        // From zero, as the sum of threads: it makes a zero of a negative zero.
        piece.iter_mut().for_each(|value| *value += 0.0);
        for rank in 1..self.link.world_size() {
            take_in(piece, rank, &self.link.receive(rank, Kind::Reduce)?, |sum, value| *sum += value)?;
        }
        self.link.send_values(Kind::Reduce, piece)
    }
}
