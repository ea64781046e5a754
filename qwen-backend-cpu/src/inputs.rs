//! Reads a step's inputs on the host while operations are recorded: to check slots and to schedule attention.
//!
//! The caller ensures that no pending recorded operation writes the indices given here.

use std::sync::Arc;

use qwen_core::backend::{HeadLayout, KvSpec, PAD_SLOT};
use qwen_core::{Error, Result};

use crate::error::device_error;
use crate::kernels::attention::schedule::{Schedule, Shape};

/// Reads the inputs of steps. Keeps its memory from step to step.
#[derive(Debug, Default)]
pub(crate) struct InputReader {
    /// A bit for each slot that an operation writes; all clear between operations.
    taken: Vec<u64>,
    schedule: Arc<Schedule>,
    made_from: Option<ScheduleKey>,
    /// Counts writes to indices, any of which may invalidate a schedule.
    writes: u64,
}

/// The inputs of a schedule: arrays by address and length, and how often indices had been written.
#[derive(Debug, PartialEq, Eq)]
struct ScheduleKey {
    writes: u64,
    arrays: [(usize, usize); 3],
    max_blocks_per_seq: usize,
    num_tokens: usize,
    threads: usize,
    heads: HeadLayout,
    kv: Arc<KvSpec>,
}

impl InputReader {
    /// Record that indices are written.
    pub(crate) fn note_write(&mut self) {
        self.writes += 1;
    }

    /// Check that each of `slots` is within the store or padding, and that no two are the same: threads write them
    /// concurrently.
    ///
    /// # Errors
    /// [`Error::Device`] with the slot.
    pub(crate) fn check_slots(&mut self, op: &str, slots: &[u32], kv: &KvSpec) -> Result<()> {
        let capacity = kv.num_blocks.saturating_mul(kv.block_size);
        let words = capacity.div_ceil(64);
        if let Err(e) = self.taken.try_reserve(words.saturating_sub(self.taken.len())) {
            return Err(device_error(op, format!("a bit for each of {capacity} slots: {e}")));
        }
        self.taken.resize(self.taken.len().max(words), 0);
        let used = slots.iter().filter(|&&slot| slot != PAD_SLOT).map(|&slot| slot as usize);
        let mut bad = used.clone().find(|&slot| slot >= capacity).map(|slot| format!("slot {slot} of {capacity}"));
        for slot in used.clone().take_while(|&slot| slot < capacity) {
            let (word, bit) = (&mut self.taken[slot / 64], 1u64 << (slot % 64));
            if *word & bit != 0 && bad.is_none() {
                bad = Some(format!("slot {slot} twice"));
            }
            *word |= bit;
        }
        used.filter(|&slot| slot < capacity).for_each(|slot| self.taken[slot / 64] = 0);
        bad.map_or(Ok(()), |reason| Err(device_error(op, reason)))
    }

    /// The schedule of a step's attention: built once for all its layers.
    ///
    /// # Errors
    /// As [`Schedule::build`].
    pub(crate) fn schedule(
        &mut self,
        shape: &Shape<'_>,
        heads: HeadLayout,
        kv: &Arc<KvSpec>,
        threads: usize,
    ) -> Result<Arc<Schedule>, Error> {
        let made_from = ScheduleKey {
            writes: self.writes,
            arrays: [shape.cu_seqlens_q, shape.context_lens, shape.block_tables]
                .map(|array| (array.as_ptr().addr(), array.len())),
            max_blocks_per_seq: shape.max_blocks_per_seq,
            num_tokens: shape.num_tokens,
            threads,
            heads,
            kv: kv.clone(),
        };
        if self.made_from.as_ref() != Some(&made_from) {
            self.made_from = None;
            if Arc::get_mut(&mut self.schedule).is_none() {
                self.schedule = Arc::default();
            }
            if let Some(schedule) = Arc::get_mut(&mut self.schedule) {
                schedule.build(shape, &heads, kv, threads)?;
            }
            self.made_from = Some(made_from);
        }
        Ok(self.schedule.clone())
    }
}

#[cfg(test)]
mod tests {
    use qwen_core::Encoding;

    use super::*;

    fn spec() -> KvSpec {
        KvSpec {
            key_encodings: vec![Encoding::F32],
            value_encoding: Encoding::F32,
            num_blocks: 4,
            block_size: 16,
            num_key_value_heads: 1,
            head_dim: 16,
        }
    }

    #[test]
    fn slots_outside_and_slots_twice_are_refused_and_leave_nothing_behind() {
        let mut reader = InputReader::default();
        let mut check = |slots: &[u32]| reader.check_slots("store_kv", slots, &spec());
        assert!(check(&[0, 63, PAD_SLOT, PAD_SLOT, 5]).is_ok());
        assert!(check(&[3, 64]).unwrap_err().to_string().contains("slot 64 of 64"));
        assert!(check(&[3, 7, 3]).unwrap_err().to_string().contains("slot 3 twice"));
        assert!(check(&[7, 3, 0, 63]).is_ok());
    }

    #[test]
    fn sequences_that_overlap_or_lack_blocks_are_refused() {
        let heads = HeadLayout { num_attention_heads: 1, num_key_value_heads: 1, head_dim: 16 };
        let kv = Arc::new(spec());
        let mut reader = InputReader::default();
        let mut schedule = |cu_seqlens_q: &[u32], context_lens: &[u32], block_tables: &[u32]| {
            reader.note_write();
            let shape = Shape { cu_seqlens_q, context_lens, block_tables, max_blocks_per_seq: 2, num_tokens: 8 };
            reader.schedule(&shape, heads, &kv, 2).map(|schedule| schedule.tasks.len())
        };
        assert_eq!(schedule(&[0, 5, 8], &[5, 32], &[0, 0, 1, 2]).unwrap(), 2);
        // Token 3 and 4 of both.
        assert!(schedule(&[0, 5, 3, 8], &[5, 0, 5], &[0; 6]).unwrap_err().to_string().contains("begin at 5"));
        assert!(schedule(&[0, 9], &[9], &[0; 2]).unwrap_err().to_string().contains("the step has 8"));
        assert!(schedule(&[0, 5], &[4], &[0; 2]).unwrap_err().to_string().contains("5 tokens in a context of 4"));
        assert!(schedule(&[0, 1], &[33], &[0; 2]).unwrap_err().to_string().contains("3 blocks"));
        assert!(schedule(&[0, 1], &[17], &[0, 4]).unwrap_err().to_string().contains("block 4 of 4"));
        assert!(schedule(&[0, 1], &[u32::MAX], &[0, 0]).is_err());
    }
}
