//! What the operations of [`CpuBackend`] share: checked operands, recorded products, the plan of the attention.

use std::sync::Arc;

use qwen_core::backend::{HeadLayout, KvSpec, PAD_SLOT, StepInputs, StepKey};
use qwen_core::{Encoding, Error, Precision, Result};

use super::{CpuBackend, CpuBuffer, CpuIndices, CpuKv, CpuWeight};
use crate::kernels::Op;
use crate::kernels::epilogue::Epilogue;
use crate::kernels::linear::{Linear, Split};
use crate::kernels::panel::{Pack, Panel, Tiles};
use crate::kernels::plan::{Plan, Shape};
use crate::kv::Store;
use crate::memory::{Cells, Plain};

/// What a plan was made from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlanKey {
    writes: u64,
    inputs: [*const u32; 3],
    lens: [usize; 4],
    heads: HeadLayout,
    kv: Arc<KvSpec>,
}

// SAFETY: the pointers of `PlanKey` are compared, never followed.
unsafe impl Send for PlanKey {}

/// The error of an operation whose operands do not fit it.
pub(super) fn misfit(op: &str, reason: String) -> Error {
    Error::Device { device: "cpu".into(), op: op.into(), reason }
}

impl CpuBackend {
    /// Run what is recorded.
    pub(super) fn flush(&mut self) -> Result<()> {
        // SAFETY: operands belong to this backend, as `cells` checks for each operation, and whoever touches them does
        // so through `&mut self`; operations depend on earlier ones alone.
        unsafe { self.executor.run(self.isa, &mut self.ops, self.step.as_ref()) }
    }

    /// The end of an operation: outside of steps it runs now.
    pub(super) fn recorded(&mut self) -> Result<()> {
        if self.step.is_some() { Ok(()) } else { self.flush() }
    }

    /// A handle to an operand of `op` with at least `need` elements.
    pub(super) fn cells<T: Plain>(
        &self,
        op: &str,
        name: &str,
        cells: &Cells<T>,
        need: Option<usize>,
    ) -> Result<Cells<T>> {
        let Some(need) = need else {
            return Err(misfit(op, format!("the size of `{name}` exceeds the address space")));
        };
        if cells.owner() != self.id {
            return Err(misfit(op, format!("`{name}` belongs to another backend")));
        }
        if cells.len() < need {
            return Err(misfit(op, format!("`{name}` has {} elements, {need} are needed", cells.len())));
        }
        Ok(cells.clone())
    }

    /// Make `cells` hold `len` elements.
    pub(super) fn grow<T: Plain>(cells: &mut Cells<T>, len: usize) -> Result<Cells<T>> {
        if cells.len() < len {
            *cells = Cells::zeroed(len, cells.owner())?;
        }
        Ok(cells.clone())
    }

    /// Record a product of `rows` rows of `x` with `w`; `together` units of rows stay in one piece.
    pub(super) fn product(
        &mut self,
        op: &str,
        x: &CpuBuffer,
        w: &CpuWeight,
        rows: usize,
        together: usize,
        epilogue: Epilogue,
    ) -> Result<()> {
        let layout = w.0.layout;
        let x = self.cells(op, "x", &x.0, rows.checked_mul(layout.cols))?;
        if rows == 0 || layout.rows == 0 {
            return self.recorded();
        }
        let bf16 = self.precision == Precision::Fast && self.isa.has_bf16_dot() && layout.encoding == Encoding::Bf16;
        let cols = layout.padded_cols();
        let cells = Self::grow(&mut self.panel, Panel::words(rows, cols, bf16))?;
        let panel = Panel { cells, tiles: Tiles::new(rows, self.isa.tile_tokens()), cols, bf16 };
        let split = Split::new(&w.0, &panel, together, self.executor.threads());
        self.ops.push(Op::Pack(Pack { x, cols: layout.cols, panel: panel.clone() }));
        self.ops.push(Op::Linear(Linear { w: w.0.clone(), panel, epilogue, split }));
        self.recorded()
    }

    /// Check that `kv` serves `layer` and `heads`.
    pub(super) fn store(&self, op: &str, kv: &CpuKv, layer: usize, heads: &HeadLayout) -> Result<Store> {
        let spec = &kv.0.spec;
        self.cells(op, "kv", &kv.0.cells, Some(0))?;
        if layer >= spec.num_layers()
            || heads.num_key_value_heads != spec.num_key_value_heads
            || heads.head_dim != spec.head_dim
            || heads.num_key_value_heads == 0
            || !heads.num_attention_heads.is_multiple_of(heads.num_key_value_heads)
        {
            return Err(misfit(op, format!("layer {layer} and {heads:?} do not fit a store of {spec:?}")));
        }
        Ok(kv.0.clone())
    }

    /// The slots of `rows` tokens, each within `kv` or padding, and no two the same: pieces write them at once.
    pub(super) fn slots(&mut self, op: &str, slots: &CpuIndices, kv: &Store, rows: usize) -> Result<Cells<u32>> {
        let slots = self.cells(op, "slot_mapping", &slots.0, Some(rows))?;
        let capacity = kv.spec.num_blocks * kv.spec.block_size;
        // SAFETY: nothing runs, and indices are written through `&mut self` alone.
        let used = unsafe { slots.slice(0, rows) }.iter().filter(|&&slot| slot != PAD_SLOT).map(|&slot| slot as usize);
        self.taken.resize(self.taken.len().max(capacity.div_ceil(64)), 0);
        let mut bad = None;
        for slot in used.clone().take_while(|&slot| slot < capacity) {
            let (word, bit) = (&mut self.taken[slot / 64], 1u64 << (slot % 64));
            if *word & bit != 0 {
                bad = Some(format!("slot {slot} twice"));
            }
            *word |= bit;
        }
        if let Some(slot) = used.clone().find(|&slot| slot >= capacity) {
            bad = Some(format!("slot {slot} of {capacity}"));
        }
        used.filter(|&slot| slot < capacity).for_each(|slot| self.taken[slot / 64] = 0);
        match bad {
            Some(reason) => Err(misfit(op, reason)),
            None => Ok(slots),
        }
    }

    /// The plan of a step's attention: made once for all its layers.
    pub(super) fn plan(
        &mut self,
        inputs: &StepInputs<Self>,
        heads: HeadLayout,
        kv: &Arc<KvSpec>,
        key: StepKey,
    ) -> Result<Arc<Plan>> {
        let op = "paged_attention";
        let cu = self.cells(op, "cu_seqlens_q", &inputs.cu_seqlens_q.0, key.num_seqs.checked_add(1))?;
        let context = self.cells(op, "context_lens", &inputs.context_lens.0, Some(key.num_seqs))?;
        let table = key.num_seqs.checked_mul(inputs.max_blocks_per_seq);
        let tables = self.cells(op, "block_tables", &inputs.block_tables.0, table)?;
        let made_from = PlanKey {
            writes: self.writes,
            inputs: [cu.ptr(), context.ptr(), tables.ptr()].map(<*mut u32>::cast_const),
            lens: [key.num_seqs, key.num_tokens, inputs.max_blocks_per_seq, self.executor.threads()],
            heads,
            kv: kv.clone(),
        };
        if self.plan_of.as_ref() != Some(&made_from) {
            if Arc::get_mut(&mut self.plan).is_none() {
                self.plan = Arc::default();
            }
            self.plan_of = None;
            if let Some(plan) = Arc::get_mut(&mut self.plan) {
                // SAFETY: nothing runs, and indices are written through `&mut self` alone.
                let shape = unsafe {
                    Shape {
                        cu_seqlens_q: cu.slice(0, key.num_seqs + 1),
                        context_lens: context.slice(0, key.num_seqs),
                        block_tables: tables.slice(0, key.num_seqs * inputs.max_blocks_per_seq),
                        max_blocks_per_seq: inputs.max_blocks_per_seq,
                        num_tokens: key.num_tokens,
                    }
                };
                plan.build(&shape, &heads, kv, self.executor.threads())?;
            }
            self.plan_of = Some(made_from);
        }
        Ok(self.plan.clone())
    }
}
