//! [`CpuBackend`]: checks each operation's operands and records it; `recorder.rs` stores and runs it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qwen_core::backend::Limits;
use qwen_core::backend::{
    Add, AddRows, Argmax, DeviceInfo, Embed, GateUpSilu, GatherRows, Interrupt, KvSpec, Linear, LinearAdd, ModelShape,
    PagedAttention, QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepKey, StoreKv, WeightView, composed,
};
use qwen_core::{Backend, Error, Footprint, Result, memory};

use crate::error::device_error;
use crate::exec::Executor;
use crate::footprint::CpuFootprint;
use crate::kernels::argmax::{ArgmaxRows, ArgmaxRuns};
use crate::kernels::attention::merge::Merge;
use crate::kernels::attention::schedule::Shape;
use crate::kernels::attention::{Attention, geometry};
use crate::kernels::epilogue::{Epilogue, Heads};
use crate::kernels::{Op, add, add_rows, embed, gather_rows, rms_norm, rope, silu_and_mul, store_kv};
use crate::kv::{self, Store};
use crate::matrix::{Matrix, Order, UNIT};
use crate::memory::Array;
use crate::options::CpuOptions;
use crate::recorder::{Recorder, grow, head_sizes};
use crate::simd::Isa;

/// Qwen2.5 on the CPU.
#[derive(Debug)]
pub struct CpuBackend {
    recorder: Recorder,
}

/// Activations of a [`CpuBackend`].
#[derive(Debug)]
pub struct CpuBuffer(Array<f32>);

/// Step inputs of a [`CpuBackend`].
#[derive(Debug)]
pub struct CpuIndices(Array<u32>);

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
    /// [`Error::Device`] when threads or memory cannot be obtained.
    pub fn new(options: CpuOptions) -> Result<CpuBackend> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let isa = options.resolve_isa()?;
        let threads = options.resolve_threads()?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let executor = Executor::new(threads, options.pool)?;
        Ok(CpuBackend { recorder: Recorder::new(id, isa, options.precision, executor)? })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.recorder.isa
    }

    /// Threads that compute, including the calling one.
    pub fn threads(&self) -> usize {
        self.recorder.executor.threads()
    }
}

impl CpuBackend {
    /// Run what is recorded before whole blocks of a store are moved as `len` bytes.
    fn check_blocks(&mut self, op: &str, store: &Store, blocks: &[u32], len: usize) -> Result<()> {
        self.recorder.flush()?;
        self.recorder.operand(op, ("kv", &store.array, Some(0)))?;
        store.spec.check_blocks(blocks, len).map_err(|reason| device_error(op, reason))
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Indices = CpuIndices;
    type Weight = CpuWeight;
    type Kv = CpuKv;

    fn info(&self) -> DeviceInfo {
        let threads = self.recorder.executor.threads();
        let s = if threads == 1 { "" } else { "s" };
        DeviceInfo {
            name: format!("cpu ({}, {threads} thread{s})", self.isa()),
            precision: self.recorder.precision,
            memory_available: memory::available_memory().map(|memory| memory.available),
        }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(CpuFootprint)
    }

    fn prepare(&mut self, limits: &Limits, shape: &ModelShape) -> Result<()> {
        self.recorder.reserve(limits, shape)
    }

    fn alloc(&mut self, len: usize) -> Result<CpuBuffer> {
        Ok(CpuBuffer(Array::zeroed(len, self.recorder.id)?))
    }

    fn alloc_indices(&mut self, len: usize) -> Result<CpuIndices> {
        Ok(CpuIndices(Array::zeroed(len, self.recorder.id)?))
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<CpuWeight> {
        let matrix = Matrix::pack(view, |count, f| self.recorder.executor.for_each(count, f))?;
        Ok(CpuWeight(Arc::new(matrix)))
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<CpuKv> {
        Ok(CpuKv(Store::new(spec, self.recorder.id)?))
    }

    fn write(&mut self, dst: &mut CpuBuffer, src: &[f32]) -> Result<()> {
        self.recorder.flush()?;
        let dst = self.recorder.operand("write", ("dst", &dst.0, Some(src.len())))?;
        // SAFETY: nothing runs, and `&mut self` is the only way to the contents.
        unsafe { dst.slice_mut(0, src.len()) }.copy_from_slice(src);
        Ok(())
    }

    fn write_indices(&mut self, dst: &mut CpuIndices, src: &[u32]) -> Result<()> {
        self.recorder.flush()?;
        self.recorder.reader.note_write();
        let dst = self.recorder.operand("write_indices", ("dst", &dst.0, Some(src.len())))?;
        // SAFETY: as in `write`.
        unsafe { dst.slice_mut(0, src.len()) }.copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &CpuBuffer, dst: &mut [f32]) -> Result<()> {
        self.recorder.flush()?;
        let src = self.recorder.operand("read", ("src", &src.0, Some(dst.len())))?;
        // SAFETY: as in `write`.
        dst.copy_from_slice(unsafe { src.slice(0, dst.len()) });
        Ok(())
    }

    fn read_indices(&mut self, src: &CpuIndices, dst: &mut [u32]) -> Result<()> {
        self.recorder.flush()?;
        let src = self.recorder.operand("read_indices", ("src", &src.0, Some(dst.len())))?;
        // SAFETY: as in `write`.
        dst.copy_from_slice(unsafe { src.slice(0, dst.len()) });
        Ok(())
    }

    fn copy_blocks(&mut self, kv: &mut CpuKv, pairs: &[(u32, u32)]) -> Result<()> {
        self.recorder.flush()?;
        self.recorder.operand("copy_blocks", ("kv", &kv.0.array, Some(0)))?;
        let blocks = kv.0.spec.num_blocks;
        if let Some(pair) = pairs.iter().find(|pair| pair.0.max(pair.1) as usize >= blocks) {
            return Err(device_error("copy_blocks", format!("{pair:?} of {blocks} blocks")));
        }
        // SAFETY: as in `write`.
        unsafe { kv.0.copy_blocks(pairs) };
        Ok(())
    }

    fn read_blocks(&mut self, kv: &CpuKv, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        self.check_blocks("read_blocks", &kv.0, blocks, out.len())?;
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(kv.0.spec.block_bytes())) {
            // SAFETY: as in `write`.
            unsafe { kv.0.read_block(*block as usize, out) };
        }
        Ok(())
    }

    fn write_blocks(&mut self, kv: &mut CpuKv, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        self.check_blocks("write_blocks", &kv.0, blocks, bytes.len())?;
        for (block, bytes) in blocks.iter().zip(bytes.chunks_exact(kv.0.spec.block_bytes())) {
            // SAFETY: as in `write`.
            unsafe { kv.0.write_block(*block as usize, bytes) };
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.recorder.flush()
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows } = op;
        let ids = self.recorder.operand("embed", ("ids", &ids.0, Some(rows)))?;
        let out = self.recorder.operand("embed", ("out", &out.0, rows.checked_mul(table.0.layout.cols)))?;
        self.recorder.record(Op::Embed(embed::Embed { ids, table: table.0.clone(), out, rows }))
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        let Linear { x, w, bias, out, rows } = op;
        let (op, width) = ("linear", w.0.layout.rows);
        let bias = bias.map(|bias| self.recorder.operand(op, ("bias", &bias.0, Some(width)))).transpose()?;
        let out = self.recorder.operand(op, ("out", &out.0, rows.checked_mul(width)))?;
        self.recorder.product(op, &x.0, &w.0, rows, 1, Epilogue::Write { bias, out })
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let RmsNorm { x, weight, eps, out, hidden_size, rows } = op;
        let (op, len) = ("rms_norm", rows.checked_mul(hidden_size));
        let x = self.recorder.operand(op, ("x", &x.0, len))?;
        let weight = self.recorder.operand(op, ("weight", &weight.0, Some(hidden_size)))?;
        let out = self.recorder.operand(op, ("out", &out.0, len))?;
        self.recorder.record(Op::RmsNorm(rms_norm::RmsNorm { x, weight, eps, out, width: hidden_size, rows }))
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        let Rope { qkv, cos_sin, heads, rows } = op;
        let row = head_sizes(&heads).1;
        let qkv = self.recorder.operand("rope", ("qkv", &qkv.0, row.and_then(|row| rows.checked_mul(row))))?;
        let cos_sin = self.recorder.operand("rope", ("cos_sin", &cos_sin.0, rows.checked_mul(heads.head_dim)))?;
        self.recorder.record(Op::Rope(rope::Rope { qkv, cos_sin, heads, rows }))
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        let StoreKv { qkv, slot_mapping, kv, layer, heads, rows } = op;
        let op = "store_kv";
        let kv = self.recorder.store(op, &kv.0, layer, &heads)?;
        let row = head_sizes(&heads).1;
        let qkv = self.recorder.operand(op, ("qkv", &qkv.0, row.and_then(|row| rows.checked_mul(row))))?;
        let slots = self.recorder.slots(op, &slot_mapping.0, &kv, rows)?;
        self.recorder.record(Op::StoreKv(store_kv::StoreKv { qkv, slots, kv, layer, heads, rows }))
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        let PagedAttention { qkv, kv, layer, heads, inputs, out, key } = op;
        let op = "paged_attention";
        let kv = self.recorder.store(op, &kv.0, layer, &heads)?;
        let (q_size, qkv_size) = head_sizes(&heads);
        let rows = |width: Option<usize>| width.and_then(|width| key.num_tokens.checked_mul(width));
        let qkv = self.recorder.operand(op, ("qkv", &qkv.0, rows(qkv_size)))?;
        let out = self.recorder.operand(op, ("out", &out.0, rows(q_size)))?;
        let (tables, seqs) = (inputs.max_blocks_per_seq, key.num_seqs);
        let cu = self.recorder.operand(op, ("cu_seqlens_q", &inputs.cu_seqlens_q.0, seqs.checked_add(1)))?;
        let context = self.recorder.operand(op, ("context_lens", &inputs.context_lens.0, Some(seqs)))?;
        let block_tables =
            self.recorder.operand(op, ("block_tables", &inputs.block_tables.0, seqs.checked_mul(tables)))?;
        let padded = kv::padded_dim(&kv.spec);
        if !geometry::fits(heads.num_attention_heads / heads.num_key_value_heads, padded) {
            return Err(device_error(op, format!("{heads:?} are too wide for a thread's scratch")));
        }
        self.recorder.settle_indices()?;
        // SAFETY: nothing runs, no recorded operation writes indices, and all else that does takes `&mut self`.
        let shape = unsafe {
            Shape {
                cu_seqlens_q: cu.slice(0, seqs + 1),
                context_lens: context.slice(0, seqs),
                block_tables: block_tables.slice(0, seqs * tables),
                max_blocks_per_seq: tables,
                num_tokens: key.num_tokens,
            }
        };
        let threads = self.recorder.executor.threads();
        let schedule = self.recorder.reader.schedule(&shape, heads, &kv.spec, threads)?;
        let partials = grow(&mut self.recorder.partials, schedule.partials * geometry::partial_len(padded))?;
        let merge = Merge { schedule: schedule.clone(), heads, partials: partials.clone(), out: out.clone() };
        let merges = !schedule.joins.is_empty();
        let attention = Op::Attention(Attention { qkv, kv, layer, heads, block_tables, schedule, partials, out });
        match merges {
            true => self.recorder.record_both(attention, Op::Merge(merge)),
            false => self.recorder.record(attention),
        }
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        let SiluAndMul { gate_up, out, intermediate_size, rows } = op;
        let (op, len) = ("silu_and_mul", rows.checked_mul(intermediate_size));
        let gate_up = self.recorder.operand(op, ("gate_up", &gate_up.0, len.and_then(|len| len.checked_mul(2))))?;
        let out = self.recorder.operand(op, ("out", &out.0, len))?;
        let width = intermediate_size;
        self.recorder.record(Op::SiluAndMul(silu_and_mul::SiluAndMul { gate_up, out, width, rows }))
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        let Add { x, y, len } = op;
        let x = self.recorder.operand("add", ("x", &x.0, Some(len)))?;
        let y = self.recorder.operand("add", ("y", &y.0, Some(len)))?;
        self.recorder.record(Op::Add(add::Add { x, y, len }))
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { x, indices, out, width, rows } = op;
        let op = "gather_rows";
        let x = self.recorder.operand(op, ("x", &x.0, Some(0)))?;
        let indices = self.recorder.operand(op, ("indices", &indices.0, Some(rows)))?;
        let out = self.recorder.operand(op, ("out", &out.0, rows.checked_mul(width)))?;
        self.recorder.record(Op::GatherRows(gather_rows::GatherRows { x, indices, out, width, rows }))
    }

    fn add_rows(&mut self, op: AddRows<'_, Self>) -> Result<()> {
        let AddRows { x, indices, scale, out, out_rows, width, rows } = op;
        let op = "add_rows";
        let x = self.recorder.operand(op, ("x", &x.0, rows.checked_mul(width)))?;
        let indices = self.recorder.operand(op, ("indices", &indices.0, Some(rows)))?;
        let out = self.recorder.operand(op, ("out", &out.0, out_rows.checked_mul(width)))?;
        self.recorder.record(Op::AddRows(add_rows::AddRows { x, indices, scale, out, out_rows, width, rows }))
    }

    fn argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        let Argmax { x, out, width, valid, rows } = op;
        let x = self.recorder.operand("argmax", ("x", &x.0, rows.checked_mul(width)))?;
        let out = self.recorder.operand("argmax", ("out", &out.0, Some(rows)))?;
        let valid = valid.min(width);
        let runs = ArgmaxRuns::runs(valid);
        let best = grow(&mut self.recorder.best, 2 * rows * runs)?;
        self.recorder.will_write_indices();
        let in_runs = Op::ArgmaxRuns(ArgmaxRuns { x, best: best.clone(), width, valid, rows });
        self.recorder.record_both(in_runs, Op::ArgmaxRows(ArgmaxRows { best, out, runs, rows }))
    }

    fn qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        let layout = &op.w.0.layout;
        if !Heads::suits(&op.heads) || !layout.is_stacked() || Some(layout.rows) != head_sizes(&op.heads).1 {
            return composed::qkv_rope_store(self, op);
        }
        let QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows } = op;
        let x = composed::normed(self, norm, x, rows)?;
        let op = "qkv_rope_store";
        let kv = self.recorder.store(op, &kv.0, layer, &heads)?;
        let bias = self.recorder.operand(op, ("bias", &bias.0, Some(layout.rows)))?;
        let cos_sin = self.recorder.operand(op, ("cos_sin", &inputs.cos_sin.0, rows.checked_mul(heads.head_dim)))?;
        let qkv = self.recorder.operand(op, ("qkv", &qkv.0, rows.checked_mul(layout.rows)))?;
        let slots = self.recorder.slots(op, &inputs.slot_mapping.0, &kv, rows)?;
        let epilogue = Epilogue::Heads(Heads { bias, cos_sin, slots, heads, qkv, kv, layer });
        self.recorder.product(op, &x.0, &w.0, rows, heads.head_dim / UNIT, epilogue)
    }

    fn gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        let layout = &op.w.0.layout;
        if layout.order != Order::GateUp || Some(layout.rows) != op.intermediate_size.checked_mul(2) {
            return composed::gate_up_silu(self, op);
        }
        let GateUpSilu { norm, x, w, out, intermediate_size, rows, .. } = op;
        let x = composed::normed(self, norm, x, rows)?;
        let op = "gate_up_silu";
        let out = self.recorder.operand(op, ("out", &out.0, rows.checked_mul(intermediate_size)))?;
        self.recorder.product(op, &x.0, &w.0, rows, 1, Epilogue::SiluMul { out })
    }

    fn linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        if op.group.is_some() {
            return composed::linear_add(self, op);
        }
        let LinearAdd { x, w, residual, hidden_size, rows, .. } = op;
        let (op, width) = ("linear_add", w.0.layout.rows);
        if width != hidden_size {
            return Err(device_error(op, format!("{width} rows of weights for a residual of {hidden_size}")));
        }
        let residual = self.recorder.operand(op, ("residual", &residual.0, rows.checked_mul(width)))?;
        self.recorder.product(op, &x.0, &w.0, rows, 1, Epilogue::Add { residual })
    }

    fn step(
        &mut self,
        _key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.recorder.begin(interrupt)?;
        match catch_unwind(AssertUnwindSafe(|| body(self))) {
            Ok(result) => self.recorder.end(result),
            Err(panic) => {
                // After catching the panic the backend is not in a step.
                let _ = self.recorder.end(Err(Error::Cancelled));
                resume_unwind(panic)
            }
        }
    }
}
