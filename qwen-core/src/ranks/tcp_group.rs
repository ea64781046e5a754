//! The sum over ranks on the connections of a [`Link`]: for processors, and where a device has no interconnect.

use std::sync::Arc;

use super::frame::Kind;
use super::link::{Link, damaged};
use crate::collective::Collective;
use crate::error::{Error, Result};

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

/// Values of a piece of a sum. Ranks exchange one piece at a time: a rank holds no more than that beside its values, and
/// two ranks never both wait for the other one to read.
pub(super) const PIECE: usize = 1 << 18;

impl Collective for TcpGroup {
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        values.chunks_mut(PIECE).try_for_each(|piece| self.sum(piece))
    }
}

impl TcpGroup {
    fn sum(&self, piece: &mut [f32]) -> Result<()> {
        if self.link.rank() > 0 {
            self.link.send(Kind::Reduce, &to_bytes(piece))?;
            return take(piece, 0, &self.link.receive(0, Kind::Reduce)?, |value, sum| *value = sum);
        }
        // From zero, as the sum of threads: it makes a zero of a negative zero.
        piece.iter_mut().for_each(|value| *value += 0.0);
        for rank in 1..self.link.world_size() {
            take(piece, rank, &self.link.receive(rank, Kind::Reduce)?, |sum, value| *sum += value)?;
        }
        self.link.send(Kind::Reduce, &to_bytes(piece))
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Join the values in `bytes` to those of `piece`, one by one.
fn take(piece: &mut [f32], rank: usize, bytes: &[u8], join: impl Fn(&mut f32, f32)) -> Result<(), Error> {
    let (found, rest) = bytes.as_chunks::<4>();
    if found.len() != piece.len() || !rest.is_empty() {
        let reason = format!("{} bytes of values where {} values are due", bytes.len(), piece.len());
        return Err(damaged(rank, &reason));
    }
    piece.iter_mut().zip(found).for_each(|(value, bytes)| join(value, f32::from_le_bytes(*bytes)));
    Ok(())
}
