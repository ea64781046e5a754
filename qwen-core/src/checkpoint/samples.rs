//! A few bytes of each tensor: enough to tell checkpoints apart without reading them.

use super::{Checkpoint, Stored, TensorInfo};
use crate::backend::ReadBytes;
use crate::error::Result;

/// Bytes of each of the three samples of a tensor.
const SAMPLE: u64 = 64;

impl Checkpoint {
    /// Call `note` with each tensor, in the order of their names, and with 64 bytes each from its beginning, its middle
    /// and its end, fewer of a small one. Training changes practically all tensors everywhere, so these tell which
    /// checkpoint it is; a file that was tampered with elsewhere is not found out.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when a file cannot be read.
    pub fn samples(&self, note: &mut dyn FnMut(&TensorInfo, &[u8])) -> Result<()> {
        let mut tensors: Vec<&Stored> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        for stored in tensors {
            let (bytes, mut sample) = (stored.info.bytes(), [0; 3 * SAMPLE as usize]);
            let len = bytes.min(SAMPLE) as usize;
            let (samples, _) = sample.split_at_mut(3 * len);
            let places = [0, (bytes - len as u64) / 2, bytes - len as u64];
            for (at, out) in places.into_iter().zip(samples.chunks_exact_mut(len.max(1))) {
                stored.read_at(at, out)?;
            }
            note(&stored.info, samples);
        }
        Ok(())
    }
}
