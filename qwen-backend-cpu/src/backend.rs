//! [`CpuBackend`]: checks the sizes of each operation and records it; `exec.rs` runs what was recorded.
//!
//! Within [`Backend::step`] operations gather in a list that runs when the step's body is over, or earlier when
//! something has to be read. Outside, each runs at once. The list, the packed activations and the plan of the attention
//! keep their memory from step to step.

mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qwen_core::backend::{
    Add, Argmax, DeviceInfo, Embed, GateUpSilu, GatherRows, Interrupt, KvSpec, Linear, LinearAdd, PagedAttention,
    QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepKey, StoreKv, WeightView, composed,
};
use qwen_core::{Backend, Error, Footprint, Precision, Result, memory};

use crate::exec::Executor;
use crate::footprint::CpuFootprint;
use crate::kernels::argmax::{ArgmaxRows, ArgmaxRuns};
use crate::kernels::attention::{self, Attention, Merge};
use crate::kernels::epilogue::{Epilogue, Heads};
use crate::kernels::plan::Plan;
use crate::kernels::{Op, rms_norm, rope, rows, store_kv};
use crate::kv::{self, Store};
use crate::matrix::{Matrix, Order, UNIT};
use crate::memory::Cells;
use crate::options::CpuOptions;
use crate::simd::Isa;

use record::{PlanKey, misfit};

/// Qwen2.5 on the CPU.
#[derive(Debug)]
pub struct CpuBackend {
    /// Tells the arrays of this backend from those of others.
    id: u64,
    isa: Isa,
    precision: Precision,
    executor: Executor,
    ops: Vec<Op>,
    /// The interrupt of the step being recorded.
    step: Option<Interrupt>,
    panel: Cells<u32>,
    records: Cells<f32>,
    best: Cells<u32>,
    /// A bit for each slot that a step writes; all clear in between.
    taken: Vec<u64>,
    plan: Arc<Plan>,
    plan_of: Option<PlanKey>,
    /// Counts writes to indices, which may change what a plan was made from.
    writes: u64,
}

/// Activations of a [`CpuBackend`].
#[derive(Debug)]
pub struct CpuBuffer(Cells<f32>);

/// Step inputs of a [`CpuBackend`].
#[derive(Debug)]
pub struct CpuIndices(Cells<u32>);

/// A packed matrix. Cheap to clone; clones share the memory, also between backends.
#[derive(Debug, Clone)]
pub struct CpuWeight(Arc<Matrix>);

/// The K/V store of a [`CpuBackend`].
#[derive(Debug)]
pub struct CpuKv(Store);

impl CpuBackend {
    /// A backend with these options.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an instruction set that the CPU does not have or a number of threads out of range;
    /// [`Error::Device`] when threads or memory are refused.
    pub fn new(options: CpuOptions) -> Result<CpuBackend> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let isa = options.resolve_isa()?;
        let threads = options.resolve_threads()?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(CpuBackend {
            id,
            isa,
            precision: options.precision,
            executor: Executor::new(threads, options.pool)?,
            ops: Vec::new(),
            step: None,
            panel: Cells::zeroed(0, id)?,
            records: Cells::zeroed(0, id)?,
            best: Cells::zeroed(0, id)?,
            taken: Vec::new(),
            plan: Arc::default(),
            plan_of: None,
            writes: 0,
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that compute, the calling one among them.
    pub fn threads(&self) -> usize {
        self.executor.threads()
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Indices = CpuIndices;
    type Weight = CpuWeight;
    type Kv = CpuKv;

    fn info(&self) -> DeviceInfo {
        let threads = self.executor.threads();
        let s = if threads == 1 { "" } else { "s" };
        DeviceInfo {
            name: format!("cpu ({}, {threads} thread{s})", self.isa),
            precision: self.precision,
            memory_available: memory::available_memory().map(|memory| memory.available),
        }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(CpuFootprint)
    }

    fn alloc(&mut self, len: usize) -> Result<CpuBuffer> {
        Ok(CpuBuffer(Cells::zeroed(len, self.id)?))
    }

    fn alloc_indices(&mut self, len: usize) -> Result<CpuIndices> {
        Ok(CpuIndices(Cells::zeroed(len, self.id)?))
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<CpuWeight> {
        Ok(CpuWeight(Arc::new(Matrix::pack(view, |count, f| self.executor.for_each(count, f))?)))
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<CpuKv> {
        Ok(CpuKv(Store::new(spec, self.id)?))
    }

    fn write(&mut self, dst: &mut CpuBuffer, src: &[f32]) -> Result<()> {
        self.flush()?;
        let dst = self.cells("write", "dst", &dst.0, Some(src.len()))?;
        // SAFETY: nothing runs, and `&mut self` is the only way to the contents.
        unsafe { dst.slice_mut(0, src.len()) }.copy_from_slice(src);
        Ok(())
    }

    fn write_indices(&mut self, dst: &mut CpuIndices, src: &[u32]) -> Result<()> {
        self.flush()?;
        self.writes += 1;
        let dst = self.cells("write_indices", "dst", &dst.0, Some(src.len()))?;
        // SAFETY: as in `write`.
        unsafe { dst.slice_mut(0, src.len()) }.copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &CpuBuffer, dst: &mut [f32]) -> Result<()> {
        self.flush()?;
        let src = self.cells("read", "src", &src.0, Some(dst.len()))?;
        // SAFETY: as in `write`.
        dst.copy_from_slice(unsafe { src.slice(0, dst.len()) });
        Ok(())
    }

    fn read_indices(&mut self, src: &CpuIndices, dst: &mut [u32]) -> Result<()> {
        self.flush()?;
        let src = self.cells("read_indices", "src", &src.0, Some(dst.len()))?;
        // SAFETY: as in `write`.
        dst.copy_from_slice(unsafe { src.slice(0, dst.len()) });
        Ok(())
    }

    fn copy_blocks(&mut self, kv: &mut CpuKv, pairs: &[(u32, u32)]) -> Result<()> {
        self.flush()?;
        self.cells("copy_blocks", "kv", &kv.0.cells, Some(0))?;
        let blocks = kv.0.spec.num_blocks;
        if let Some(pair) = pairs.iter().find(|pair| pair.0.max(pair.1) as usize >= blocks) {
            return Err(misfit("copy_blocks", format!("{pair:?} of {blocks} blocks")));
        }
        // SAFETY: as in `write`.
        unsafe { kv.0.copy_blocks(pairs) };
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.flush()
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows } = op;
        let ids = self.cells("embed", "ids", &ids.0, Some(rows))?;
        let out = self.cells("embed", "out", &out.0, rows.checked_mul(table.0.layout.cols))?;
        self.ops.push(Op::Embed(rows::Embed { ids, table: table.0.clone(), out, rows }));
        self.recorded()
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows } = op;
        let width = w.0.layout.rows;
        let bias = bias.map(|bias| self.cells("linear", "bias", &bias.0, Some(width))).transpose()?;
        let out = self.cells("linear", "out", &out.0, rows.checked_mul(width))?;
        self.product("linear", x, w, rows, 1, Epilogue::Write { bias, out })
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let RmsNorm { x, weight, eps, out, hidden_size, rows } = op;
        let (op, len) = ("rms_norm", rows.checked_mul(hidden_size));
        let x = self.cells(op, "x", &x.0, len)?;
        let weight = self.cells(op, "weight", &weight.0, Some(hidden_size))?;
        let out = self.cells(op, "out", &out.0, len)?;
        self.ops.push(Op::RmsNorm(rms_norm::RmsNorm { x, add: None, weight, eps, out, width: hidden_size, rows }));
        self.recorded()
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        let Rope { qkv, cos_sin, heads, rows } = op;
        let qkv = self.cells("rope", "qkv", &qkv.0, rows.checked_mul(heads.qkv_size()))?;
        let cos_sin = self.cells("rope", "cos_sin", &cos_sin.0, rows.checked_mul(heads.head_dim))?;
        self.ops.push(Op::Rope(rope::Rope { qkv, cos_sin, heads, rows }));
        self.recorded()
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        let StoreKv { qkv, slot_mapping, kv, layer, heads, rows } = op;
        let kv = self.store("store_kv", kv, layer, &heads)?;
        let qkv = self.cells("store_kv", "qkv", &qkv.0, rows.checked_mul(heads.qkv_size()))?;
        let slots = self.slots("store_kv", slot_mapping, &kv, rows)?;
        self.ops.push(Op::StoreKv(store_kv::StoreKv { qkv, slots, kv, layer, heads, rows }));
        self.recorded()
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        let PagedAttention { qkv, kv, layer, heads, inputs, out, key } = op;
        let op = "paged_attention";
        let kv = self.store(op, kv, layer, &heads)?;
        let qkv = self.cells(op, "qkv", &qkv.0, key.num_tokens.checked_mul(heads.qkv_size()))?;
        let out = self.cells(op, "out", &out.0, key.num_tokens.checked_mul(heads.q_size()))?;
        let padded = kv::padded_dim(&kv.spec);
        if !attention::fits(heads.num_attention_heads / heads.num_key_value_heads, padded) {
            return Err(misfit(op, format!("{heads:?} are too wide for a thread's scratch")));
        }
        let plan = self.plan(inputs, heads, &kv.spec, key)?;
        let records = Self::grow(&mut self.records, plan.records * attention::record_len(padded))?;
        let merge = !plan.merges.is_empty();
        let block_tables = inputs.block_tables.0.clone();
        let (plan_, records_, out_) = (plan.clone(), records.clone(), out.clone());
        self.ops.push(Op::Attention(Attention { qkv, kv, layer, heads, block_tables, plan, records, out }));
        if merge {
            self.ops.push(Op::Merge(Merge { plan: plan_, heads, records: records_, out: out_ }));
        }
        self.recorded()
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        let SiluAndMul { gate_up, out, intermediate_size, rows } = op;
        let (op, len) = ("silu_and_mul", rows.checked_mul(intermediate_size));
        let gate_up = self.cells(op, "gate_up", &gate_up.0, len.and_then(|len| len.checked_mul(2)))?;
        let out = self.cells(op, "out", &out.0, len)?;
        self.ops.push(Op::SiluAndMul(rows::SiluAndMul { gate_up, out, width: intermediate_size, rows }));
        self.recorded()
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        let Add { x, y, len } = op;
        let x = self.cells("add", "x", &x.0, Some(len))?;
        let y = self.cells("add", "y", &y.0, Some(len))?;
        self.ops.push(Op::Add(rows::Add { x, y, len }));
        self.recorded()
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { x, indices, out, width, rows } = op;
        let x = self.cells("gather_rows", "x", &x.0, Some(0))?;
        let indices = self.cells("gather_rows", "indices", &indices.0, Some(rows))?;
        let out = self.cells("gather_rows", "out", &out.0, rows.checked_mul(width))?;
        self.ops.push(Op::GatherRows(rows::GatherRows { x, indices, out, width, rows }));
        self.recorded()
    }

    fn argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        let Argmax { x, out, width, valid, rows } = op;
        let x = self.cells("argmax", "x", &x.0, rows.checked_mul(width))?;
        let out = self.cells("argmax", "out", &out.0, Some(rows))?;
        let valid = valid.min(width);
        let runs = ArgmaxRuns::runs(valid);
        let best = Self::grow(&mut self.best, 2 * rows * runs)?;
        self.writes += 1;
        self.ops.push(Op::ArgmaxRuns(ArgmaxRuns { x, best: best.clone(), width, valid, rows }));
        self.ops.push(Op::ArgmaxRows(ArgmaxRows { best, out, runs, rows }));
        self.recorded()
    }

    fn qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        let layout = op.w.0.layout;
        if !Heads::suits(&op.heads) || layout.order != Order::Stacked || layout.rows != op.heads.qkv_size() {
            return composed::qkv_rope_store(self, op);
        }
        let QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows } = op;
        let x = composed::normed(self, norm, x, rows)?;
        let name = "qkv_rope_store";
        let kv = self.store(name, kv, layer, &heads)?;
        let slots = self.slots(name, &inputs.slot_mapping, &kv, rows)?;
        let bias = self.cells(name, "bias", &bias.0, Some(layout.rows))?;
        let cos_sin = self.cells(name, "cos_sin", &inputs.cos_sin.0, rows.checked_mul(heads.head_dim))?;
        let qkv = self.cells(name, "qkv", &qkv.0, rows.checked_mul(layout.rows))?;
        let epilogue = Epilogue::Heads(Heads { bias, cos_sin, slots, heads, qkv, kv, layer });
        self.product(name, x, w, rows, heads.head_dim / UNIT, epilogue)
    }

    fn gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        let layout = op.w.0.layout;
        if layout.order != Order::GateUp || layout.rows != 2 * op.intermediate_size {
            return composed::gate_up_silu(self, op);
        }
        let GateUpSilu { norm, x, w, out, intermediate_size, rows, .. } = op;
        let x = composed::normed(self, norm, x, rows)?;
        let out = self.cells("gate_up_silu", "out", &out.0, rows.checked_mul(intermediate_size))?;
        self.product("gate_up_silu", x, w, rows, 1, Epilogue::SiluMul { out })
    }

    fn linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        if op.group.is_some() {
            return composed::linear_add(self, op);
        }
        let LinearAdd { x, w, residual, hidden_size, rows, .. } = op;
        let width = w.0.layout.rows;
        if width != hidden_size {
            return Err(misfit("linear_add", format!("{width} rows of weights for a residual of {hidden_size}")));
        }
        let residual = self.cells("linear_add", "residual", &residual.0, rows.checked_mul(width))?;
        self.product("linear_add", x, w, rows, 1, Epilogue::Add { residual })
    }

    fn step(
        &mut self,
        _key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.ops.clear();
        self.step = Some(interrupt.clone());
        let result = body(self);
        let result = match result {
            Ok(()) if interrupt.is_raised() => Err(Error::Cancelled),
            Ok(()) => self.flush(),
            Err(e) => Err(e),
        };
        self.step = None;
        self.ops.clear();
        result
    }
}
