//! Activations as messages: f32 values in pieces, so that a rank holds at most one piece in addition to its own values.

use super::frame::Kind;
use super::transport::{Transport, damaged};
use crate::error::Result;

/// Values in a piece.
pub(super) const PIECE: usize = 1 << 18;

/// Combine each value of `piece` with that of `bytes`, which rank `rank` sent.
pub(super) fn combine(piece: &mut [f32], rank: usize, bytes: &[u8], with: impl Fn(&mut f32, f32)) -> Result<()> {
    let (found, rest) = bytes.as_chunks::<4>();
    if found.len() != piece.len() || !rest.is_empty() {
        let reason = format!("{} bytes instead of {} values", bytes.len(), piece.len());
        return Err(damaged(rank, &reason));
    }
    piece.iter_mut().zip(found).for_each(|(value, bytes)| with(value, f32::from_le_bytes(*bytes)));
    Ok(())
}

/// Send activations to rank `rank`.
pub(super) fn send_hidden(transport: &Transport, rank: usize, hidden: &[f32]) -> Result<()> {
    hidden.chunks(PIECE).try_for_each(|piece| transport.send_values_to(rank, Kind::Hidden, piece))
}

/// Fill `hidden` with activations of rank `rank`.
pub(super) fn receive_hidden(transport: &Transport, rank: usize, hidden: &mut [f32]) -> Result<()> {
    let mut pieces = hidden.chunks_mut(PIECE);
    pieces.try_for_each(|piece| combine(piece, rank, &transport.receive(rank, Kind::Hidden)?, |to, value| *to = value))
}
