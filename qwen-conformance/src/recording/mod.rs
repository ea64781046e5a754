//! A backend that records each step and replays it, to check that steps can be replayed.
//!
//! The rule for steps is that only the key determines which operations are issued, and that everything else is data in
//! buffers. A device that captures a step as a graph depends on it. [`Recording`] checks it without a device: the first
//! step of a key is recorded, and for later ones the body is never called. If anything else influenced the recorded
//! operations, the replay computes something different, and the conformance suite fails.

mod ops;

use std::collections::HashMap;

use ops::Recorded;
use qwen_core::Encoding;
use qwen_core::backend::reference::{KvStore, Matrix, Reference};
use qwen_core::backend::{self, Backend, DeviceInfo, Footprint, Interrupt, KvSpec, StepKey, WeightView};
use qwen_core::error::{Error, Result};

/// The reference behind handles, with a list of operations for each [`StepKey`].
#[derive(Debug, Default)]
pub struct Recording {
    device: Device,
    plans: HashMap<StepKey, Vec<Recorded>>,
    /// The step that is being recorded, and whether it can be replayed.
    current: Option<(Vec<Recorded>, bool)>,
    replays: usize,
}

/// The objects behind the handles.
#[derive(Debug, Default)]
struct Device {
    reference: Reference,
    buffers: Vec<Vec<f32>>,
    indices: Vec<Vec<u32>>,
    weights: Vec<Matrix>,
    stores: Vec<KvStore>,
}

/// A buffer of a [`Recording`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferId(usize);

/// A buffer of indices of a [`Recording`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndicesId(usize);

/// A matrix of a [`Recording`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightId(usize);

/// A K/V store of a [`Recording`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvId(usize);

impl Recording {
    /// Nothing recorded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Steps that were answered from a recording.
    pub fn replays(&self) -> usize {
        self.replays
    }

    /// Run an operation, and record it if a step is being recorded.
    fn issue(&mut self, op: Recorded) -> Result<()> {
        self.device.run(&op)?;
        if let Some((plan, _)) = &mut self.current {
            plan.push(op);
        }
        Ok(())
    }

    /// A step that does something that cannot be recorded cannot be replayed.
    fn cannot_replay(&mut self) {
        if let Some((_, replayable)) = &mut self.current {
            *replayable = false;
        }
    }

    /// Refuse what a device could not do while it captures a step.
    fn outside_of_a_step(&self, op: &str) -> Result<()> {
        match self.current {
            None => Ok(()),
            Some(_) => Err(Error::Device {
                device: "recording".into(),
                op: op.into(),
                reason: "the host must not touch buffers within a step".into(),
            }),
        }
    }
}

impl Backend for Recording {
    type Buffer = BufferId;
    type Indices = IndicesId;
    type Weight = WeightId;
    type Kv = KvId;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "recording".into(), ..self.device.reference.info() }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        self.device.reference.footprint()
    }

    fn alloc(&mut self, len: usize) -> Result<BufferId> {
        self.outside_of_a_step("alloc")?;
        let buffer = self.device.reference.alloc(len)?;
        self.device.buffers.push(buffer);
        Ok(BufferId(self.device.buffers.len() - 1))
    }

    fn alloc_indices(&mut self, len: usize) -> Result<IndicesId> {
        self.outside_of_a_step("alloc_indices")?;
        let indices = self.device.reference.alloc_indices(len)?;
        self.device.indices.push(indices);
        Ok(IndicesId(self.device.indices.len() - 1))
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<WeightId> {
        self.outside_of_a_step("load")?;
        let matrix = self.device.reference.load(view)?;
        self.device.weights.push(matrix);
        Ok(WeightId(self.device.weights.len() - 1))
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<KvId> {
        self.outside_of_a_step("kv")?;
        let store = self.device.reference.kv(spec)?;
        self.device.stores.push(store);
        Ok(KvId(self.device.stores.len() - 1))
    }

    fn write(&mut self, dst: &mut BufferId, src: &[f32]) -> Result<()> {
        self.outside_of_a_step("write")?;
        self.device.reference.write(&mut self.device.buffers[dst.0], src)
    }

    fn write_indices(&mut self, dst: &mut IndicesId, src: &[u32]) -> Result<()> {
        self.outside_of_a_step("write_indices")?;
        self.device.reference.write_indices(&mut self.device.indices[dst.0], src)
    }

    fn read(&mut self, src: &BufferId, dst: &mut [f32]) -> Result<()> {
        self.outside_of_a_step("read")?;
        self.device.reference.read(&self.device.buffers[src.0], dst)
    }

    fn read_indices(&mut self, src: &IndicesId, dst: &mut [u32]) -> Result<()> {
        self.outside_of_a_step("read_indices")?;
        self.device.reference.read_indices(&self.device.indices[src.0], dst)
    }

    fn copy_blocks(&mut self, kv: &mut KvId, pairs: &[(u32, u32)]) -> Result<()> {
        self.outside_of_a_step("copy_blocks")?;
        self.device.reference.copy_blocks(&mut self.device.stores[kv.0], pairs)
    }

    fn stored_encoding(&self, encoding: Encoding) -> Encoding {
        self.device.reference.stored_encoding(encoding)
    }

    fn read_blocks(&mut self, kv: &KvId, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        self.outside_of_a_step("read_blocks")?;
        self.device.reference.read_blocks(&self.device.stores[kv.0], blocks, out)
    }

    fn write_blocks(&mut self, kv: &mut KvId, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        self.outside_of_a_step("write_blocks")?;
        self.device.reference.write_blocks(&mut self.device.stores[kv.0], blocks, bytes)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.outside_of_a_step("synchronize")
    }

    fn embed(&mut self, op: backend::Embed<'_, Self>) -> Result<()> {
        let backend::Embed { ids, table, out, rows } = op;
        self.issue(Recorded::Embed { ids: *ids, table: *table, out: *out, rows })
    }

    fn linear(&mut self, op: backend::Linear<'_, Self>) -> Result<()> {
        let backend::Linear { x, w, bias, out, rows } = op;
        self.issue(Recorded::Linear { x: *x, w: *w, bias: bias.copied(), out: *out, rows })
    }

    fn rms_norm(&mut self, op: backend::RmsNorm<'_, Self>) -> Result<()> {
        let backend::RmsNorm { x, weight, eps, out, hidden_size, rows } = op;
        self.issue(Recorded::RmsNorm { x: *x, weight: *weight, eps, out: *out, hidden_size, rows })
    }

    fn rope(&mut self, op: backend::Rope<'_, Self>) -> Result<()> {
        let backend::Rope { qkv, cos_sin, heads, rows } = op;
        self.issue(Recorded::Rope { qkv: *qkv, cos_sin: *cos_sin, heads, rows })
    }

    fn store_kv(&mut self, op: backend::StoreKv<'_, Self>) -> Result<()> {
        let backend::StoreKv { qkv, slot_mapping, kv, layer, heads, rows } = op;
        self.issue(Recorded::StoreKv { qkv: *qkv, slot_mapping: *slot_mapping, kv: *kv, layer, heads, rows })
    }

    fn paged_attention(&mut self, op: backend::PagedAttention<'_, Self>) -> Result<()> {
        let backend::PagedAttention { qkv, kv, layer, heads, inputs, out, key } = op;
        self.issue(Recorded::PagedAttention {
            qkv: *qkv,
            kv: *kv,
            layer,
            heads,
            cu_seqlens_q: inputs.cu_seqlens_q,
            context_lens: inputs.context_lens,
            block_tables: inputs.block_tables,
            max_blocks_per_seq: inputs.max_blocks_per_seq,
            out: *out,
            key,
        })
    }

    fn silu_and_mul(&mut self, op: backend::SiluAndMul<'_, Self>) -> Result<()> {
        let backend::SiluAndMul { gate_up, out, intermediate_size, rows } = op;
        self.issue(Recorded::SiluAndMul { gate_up: *gate_up, out: *out, intermediate_size, rows })
    }

    fn add(&mut self, op: backend::Add<'_, Self>) -> Result<()> {
        let backend::Add { x, y, len } = op;
        self.issue(Recorded::Add { x: *x, y: *y, len })
    }

    fn gather_rows(&mut self, op: backend::GatherRows<'_, Self>) -> Result<()> {
        let backend::GatherRows { x, indices, out, width, rows } = op;
        self.issue(Recorded::GatherRows { x: *x, indices: *indices, out: *out, width, rows })
    }

    fn add_rows(&mut self, op: backend::AddRows<'_, Self>) -> Result<()> {
        let backend::AddRows { x, indices, scale, out, out_rows, width, rows } = op;
        self.issue(Recorded::AddRows { x: *x, indices: *indices, scale, out: *out, out_rows, width, rows })
    }

    fn argmax(&mut self, op: backend::Argmax<'_, Self>) -> Result<()> {
        let backend::Argmax { x, out, width, valid, rows } = op;
        self.issue(Recorded::Argmax { x: *x, out: *out, width, valid, rows })
    }

    fn all_reduce(&mut self, op: backend::AllReduce<'_, Self>) -> Result<()> {
        let backend::AllReduce { x, len, group } = op;
        // The group belongs to the host and may be gone at the time of a replay.
        self.cannot_replay();
        group.all_reduce(&mut self.device.buffers[x.0][..len])
    }

    fn step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        if let Some(plan) = self.plans.get(&key) {
            self.replays += 1;
            return plan.iter().try_for_each(|op| match interrupt.is_raised() {
                true => Err(Error::Cancelled),
                false => self.device.run(op),
            });
        }
        // Which rows have which adapter differs between steps of one key.
        self.current = Some((Vec::new(), !key.adapters));
        let outcome = body(self);
        // The operations that a body issued before it failed are not the whole step.
        if let (Ok(()), Some((plan, true))) = (&outcome, self.current.take()) {
            self.plans.insert(key, plan);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_a_known_key_is_not_called_again() -> Result<()> {
        let mut b = Recording::new();
        let (mut x, mut y) = (b.alloc(2)?, b.alloc(2)?);
        let key =
            StepKey { num_tokens: 1, num_seqs: 1, num_logits: 1, max_seqlen_q: 1, hidden: false, adapters: false };
        let mut calls = 0;
        for value in [1.0, 10.0, 100.0] {
            b.write(&mut y, &[value, -value])?;
            b.step(key, &Interrupt::default(), &mut |b| {
                calls += 1;
                b.add(backend::Add { x: &mut x, y: &y, len: 2 })
            })?;
        }
        let mut sum = [0.0; 2];
        b.read(&x, &mut sum)?;
        assert_eq!((calls, b.replays(), sum), (1, 2, [111.0, -111.0]));
        Ok(())
    }

    #[test]
    fn the_host_must_not_read_within_a_step() -> Result<()> {
        let mut b = Recording::new();
        let x = b.alloc(1)?;
        let key =
            StepKey { num_tokens: 1, num_seqs: 1, num_logits: 1, max_seqlen_q: 1, hidden: false, adapters: false };
        let outcome = b.step(key, &Interrupt::default(), &mut |b| b.read(&x, &mut [0.0]));
        assert!(matches!(outcome, Err(Error::Device { .. })), "{outcome:?}");
        Ok(())
    }
}
