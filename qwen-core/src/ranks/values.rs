//! Activations as messages: f32 values in pieces, so that a rank never needs room for more than one beside its own.

use super::frame::Kind;
use super::link::{Link, damaged};
use crate::error::Result;

/// Values of a piece.
pub(super) const PIECE: usize = 1 << 18;

/// Put the values that `bytes` of rank `rank` hold into `piece`, each as `put` says.
pub(super) fn take_in(piece: &mut [f32], rank: usize, bytes: &[u8], put: impl Fn(&mut f32, f32)) -> Result<()> {
    let (found, rest) = bytes.as_chunks::<4>();
    if found.len() != piece.len() || !rest.is_empty() {
        let reason = format!("{} bytes of values where {} values are due", bytes.len(), piece.len());
        return Err(damaged(rank, &reason));
    }
    piece.iter_mut().zip(found).for_each(|(value, bytes)| put(value, f32::from_le_bytes(*bytes)));
    Ok(())
}

/// Hand activations to rank `rank`.
pub(super) fn send_hidden(link: &Link, rank: usize, hidden: &[f32]) -> Result<()> {
    hidden.chunks(PIECE).try_for_each(|piece| link.send_values_to(rank, Kind::Hidden, piece))
}

/// Take as many activations of rank `rank` as `hidden` has room for.
pub(super) fn receive_hidden(link: &Link, rank: usize, hidden: &mut [f32]) -> Result<()> {
    let mut pieces = hidden.chunks_mut(PIECE);
    pieces.try_for_each(|piece| take_in(piece, rank, &link.receive(rank, Kind::Hidden)?, |to, value| *to = value))
}
