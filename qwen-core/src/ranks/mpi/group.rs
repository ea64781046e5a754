//! Sums over MPI, added in rank order.
//!
//! `MPI_Allreduce` adds in an order that the library chooses by length, number of ranks and version. Here each rank sends
//! its values and adds what it receives itself, so that the bits are those of [`super::super::TcpGroup`] and of
//! [`crate::backend::collective::ThreadGroup`]. Few values go to everybody, and everybody adds all of them. Of many
//! values, each rank adds one part for all, and the sums of the parts are sent on.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::super::failure::lock;
use super::super::values::PIECE;
use super::session::{Channel, Session};
use crate::backend::collective::Collective;
use crate::error::Result;

/// The most bytes that a rank sends to add all values itself. With more, sending each value twice, but not to everybody,
/// is faster.
const DIRECT: usize = 64 << 10;

/// Values that are added at a time, in the processor's fastest memory.
const BLOCK: usize = 1024;

/// Bytes that the library reads.
type Bytes = Arc<Vec<u8>>;

/// A [`Collective`] over the processes that MPI started.
#[derive(Debug)]
pub(super) struct MpiGroup {
    session: Arc<Session>,
    rank: usize,
    world_size: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl MpiGroup {
    pub(super) fn new(session: Arc<Session>, rank: usize, world_size: usize) -> Self {
        MpiGroup { session, rank, world_size, buffers: Mutex::default() }
    }
}

impl Collective for MpiGroup {
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        values.chunks_mut(PIECE).try_for_each(|piece| {
            // Between two ranks both ways send the same number of bytes, and one has half of the messages.
            let sent = size_of_val(piece) * (self.world_size - 1);
            if self.world_size <= 2 || sent <= DIRECT { self.sum_all(piece) } else { self.sum_parts(piece) }
        })
    }
}

impl MpiGroup {
    fn sum_all(&self, values: &mut [f32]) -> Result<()> {
        let own = self.bytes_of(values);
        let received = self.exchange(|_| own.clone(), |_| values.len())?;
        self.add(values, &received);
        self.give_back(received, [own]);
        Ok(())
    }

    fn sum_parts(&self, values: &mut [f32]) -> Result<()> {
        let parts: Vec<Range<usize>> = (0..self.world_size)
            .map(|rank| values.len() * rank / self.world_size..values.len() * (rank + 1) / self.world_size)
            .collect();
        let mine = parts[self.rank].clone();
        let sent: Vec<Bytes> = parts.iter().map(|part| self.bytes_of(&values[part.clone()])).collect();
        let received = self.exchange(|to| sent[to].clone(), |_| mine.len())?;
        self.add(&mut values[mine.clone()], &received);
        self.give_back(received, sent);
        let sum = self.bytes_of(&values[mine]);
        let received = self.exchange(|_| sum.clone(), |from| parts[from].len())?;
        for (from, bytes) in &received {
            values[parts[*from].clone()].iter_mut().zip(numbers(bytes)).for_each(|(value, sum)| *value = sum);
        }
        self.give_back(received, [sum]);
        Ok(())
    }

    /// Send something to each other rank, and receive as many values as `len` says from it.
    fn exchange(&self, bytes: impl Fn(usize) -> Bytes, len: impl Fn(usize) -> usize) -> Result<Vec<(usize, Vec<u8>)>> {
        // Each begins with its neighbour, so that not all send to the same rank first.
        let others: Vec<usize> = (1..self.world_size).map(|offset| (self.rank + offset) % self.world_size).collect();
        let mut messages = Vec::with_capacity(2 * others.len());
        for from in &others {
            let room = self.buffer(len(*from) * size_of::<f32>());
            messages.push((*from, self.session.receive(*from, Channel::Values, room)?));
        }
        for to in &others {
            messages.push((*to, self.session.send(*to, Channel::Values, bytes(*to))?));
        }
        let received = self.session.complete(&mut messages, None)?;
        let received: Vec<_> = others.into_iter().zip(received).collect();
        for (from, bytes) in &received {
            let expected = len(*from) * size_of::<f32>();
            if bytes.len() != expected {
                let reason = format!("it sent {} bytes of values instead of {expected}", bytes.len());
                return Err(self.session.failed(*from, reason));
            }
        }
        Ok(received)
    }

    /// Replace this rank's values by the sum, in rank order.
    fn add(&self, values: &mut [f32], received: &[(usize, Vec<u8>)]) {
        let in_order: Vec<Option<&[[u8; 4]]>> = (0..self.world_size)
            .map(|rank| received.iter().find(|(from, _)| *from == rank).map(|(_, bytes)| bytes.as_chunks().0))
            .collect();
        for (index, values) in values.chunks_mut(BLOCK).enumerate() {
            // From zero, as the other groups do, which turns a negative zero into zero.
            let mut sum = [0.0f32; BLOCK];
            for theirs in &in_order {
                match theirs {
                    None => sum.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value),
                    Some(theirs) => {
                        let theirs = theirs[index * BLOCK..].iter();
                        sum.iter_mut().zip(theirs).for_each(|(sum, bytes)| *sum += f32::from_le_bytes(*bytes));
                    }
                }
            }
            values.copy_from_slice(&sum[..values.len()]);
        }
    }

    /// The values as bytes to send.
    fn bytes_of(&self, values: &[f32]) -> Bytes {
        let mut bytes = self.buffer(size_of_val(values));
        let (places, _) = bytes.as_chunks_mut();
        places.iter_mut().zip(values).for_each(|(place, value)| *place = value.to_le_bytes());
        Arc::new(bytes)
    }

    /// A buffer of `len` bytes, with whatever was in it before.
    fn buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = lock(&self.buffers).pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// Keep buffers for the next sum: new memory costs more than adding does.
    fn give_back(&self, received: Vec<(usize, Vec<u8>)>, sent: impl IntoIterator<Item = Bytes>) {
        let mut buffers = lock(&self.buffers);
        buffers.extend(received.into_iter().map(|(_, buffer)| buffer));
        buffers.extend(sent.into_iter().filter_map(Arc::into_inner));
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}
