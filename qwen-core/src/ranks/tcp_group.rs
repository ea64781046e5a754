//! Sums over the connections of a [`Transport`]: for CPUs, and for devices without an interconnect of their own.

use std::sync::Arc;

use super::frame::Kind;
use super::transport::Transport;
use super::values::{PIECE, combine};
use crate::backend::collective::Collective;
use crate::error::Result;

/// A [`Collective`] over the ranks of a [`Transport`]. They send their values to rank 0, which adds them in rank order
/// and sends the sum to all. The bits are those of [`crate::backend::collective::ThreadGroup`].
#[derive(Debug)]
pub struct TcpGroup {
    transport: Arc<Transport>,
}

impl TcpGroup {
    /// The group of all ranks of `transport`.
    pub fn new(transport: Arc<Transport>) -> Self {
        TcpGroup { transport }
    }
}

/// The sums over the ranks of `transport`: by MPI where that connects them, otherwise a [`TcpGroup`].
pub fn collective(transport: &Arc<Transport>) -> Arc<dyn Collective> {
    transport.collective().unwrap_or_else(|| Arc::new(TcpGroup::new(transport.clone())))
}

impl Collective for TcpGroup {
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        // A piece is summed before the next one is sent, so that two ranks never wait for each other to read.
        values.chunks_mut(PIECE).try_for_each(|piece| self.sum(piece))
    }
}

impl TcpGroup {
    fn sum(&self, piece: &mut [f32]) -> Result<()> {
        if self.transport.rank() > 0 {
            self.transport.send_values(Kind::Reduce, piece)?;
            return combine(piece, 0, &self.transport.receive(0, Kind::Reduce)?, |value, sum| *value = sum);
        }
        // Start from zero as `ThreadGroup` does, which turns a negative zero into zero.
        piece.iter_mut().for_each(|value| *value += 0.0);
        for rank in 1..self.transport.world_size() {
            combine(piece, rank, &self.transport.receive(rank, Kind::Reduce)?, |sum, value| *sum += value)?;
        }
        self.transport.send_values(Kind::Reduce, piece)
    }
}
