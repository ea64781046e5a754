//! Low-rank adapters beside the matrices of a model: `y += scale * B (A x)`, for the rows of the sequences that chose one.
//!
//! A step may have several adapters and rows without any. Rows are grouped by adapter and cut into chunks; for each chunk
//! its rows of `x` are gathered, multiplied with A and with B, and added to their rows of `y`. So everything but the last
//! addition is done by operations that each backend has for plain models, and a row has the same bits whatever else is in
//! the step, since theirs have. A chunk is small, which bounds the buffers.
//!
//! Matrices that the model has stacked (q, k and v; gate and up) have their adapters stacked, too: the A one above
//! another, the B along a diagonal with zeros elsewhere, which change no sum.

use crate::backend::{
    AddRows, Backend, Footprint, GatherRows, Limits, Linear, MatrixPart, WeightRole, WeightShape, WeightView,
};
use crate::checkpoint::{LoraHalf, LoraModule};
use crate::error::{Error, Result};
use crate::model::batch::{AdapterId, Batch};
use crate::model::source::LowRankSource;
use crate::model::spec::{ModelSpec, WeightSpec};
use crate::numerics::encoding::Encoding;
use crate::numerics::size;

/// The most rows of a chunk.
const CHUNK: usize = 128;

/// The adapters that a part of a model has loaded, and those of the step.
#[derive(Debug)]
pub(crate) struct Adapters<B: Backend> {
    loaded: Vec<Loaded<B>>,
    /// The rows of the step with an adapter: the first `num_chunks` of these.
    chunks: Vec<Chunk<B>>,
    num_chunks: usize,
    /// Whether the only chunk is all rows of the step in order.
    is_whole: bool,
    buffers: Option<Buffers<B>>,
    rows: Vec<u32>,
}

/// One adapter, with the pairs of each layer of this part.
#[derive(Debug)]
struct Loaded<B: Backend> {
    id: AdapterId,
    layers: Vec<LayerPairs<B>>,
    /// `[CHUNK, rank]` the products with A.
    down: B::Buffer,
}

/// The pairs beside the matrices of a layer.
#[derive(Debug)]
struct LayerPairs<B: Backend> {
    qkv_proj: Option<Pair<B>>,
    o_proj: Option<Pair<B>>,
    gate_up_proj: Option<Pair<B>>,
    down_proj: Option<Pair<B>>,
}

#[derive(Debug)]
struct Pair<B: Backend> {
    a: B::Weight,
    b: B::Weight,
    scale: f32,
}

/// Rows of one adapter.
#[derive(Debug)]
struct Chunk<B: Backend> {
    /// `[CHUNK]` numbers of rows.
    indices: B::Indices,
    rows: usize,
    /// The index of the adapter among the loaded ones.
    adapter: usize,
}

/// What all adapters share.
#[derive(Debug)]
struct Buffers<B: Backend> {
    /// `[CHUNK, widest input]` the rows of a chunk.
    gathered: B::Buffer,
    /// `[CHUNK, widest output]` the products with B.
    up: B::Buffer,
    /// `[tokens, 2 * intermediate_size]`, if the model has no such buffer of its own.
    gate_up: Option<B::Buffer>,
}

/// A matrix of a layer that pairs go beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Qkv,
    O,
    GateUp,
    Down,
}

impl<B: Backend> Default for Adapters<B> {
    fn default() -> Self {
        let (loaded, chunks, rows) = (Vec::new(), Vec::new(), Vec::new());
        Adapters { loaded, chunks, num_chunks: 0, is_whole: false, buffers: None, rows }
    }
}

impl<B: Backend> Adapters<B> {
    /// Load an adapter for the part `spec` of a model. What is loaded stays as it was if this fails.
    pub(crate) fn load(
        &mut self,
        b: &mut B,
        spec: &ModelSpec,
        limits: &Limits,
        id: AdapterId,
        adapter: &dyn LowRankSource,
    ) -> Result<()> {
        check_unsplit(spec)?;
        let footprint = b.footprint();
        let needed = adapter_bytes(&*footprint, spec, limits, adapter)?.saturating_add(match self.buffers {
            Some(_) => 0,
            None => shared_bytes(&*footprint, spec, limits),
        });
        if let Some(available) = b.info().memory_available.filter(|available| *available < needed) {
            let advice = format!(" for the adapter {}", adapter.name());
            return Err(Error::DoesNotFit { needed, available, advice });
        }
        let chunk = CHUNK.min(limits.max_num_batched_tokens);
        if self.buffers.is_none() {
            let tokens = limits.max_num_batched_tokens;
            let [input, output] = widths(spec);
            let mut buffer =
                |rows: usize, width: usize| b.alloc(size::values("max_num_batched_tokens", &[rows, width])?);
            let (gathered, up) = (buffer(chunk, input)?, buffer(chunk, output)?);
            let gate_up = match b.footprint().fuses_gate_up() {
                true => Some(b.alloc(size::values("max_num_batched_tokens", &[tokens, 2 * spec.intermediate_size])?)?),
                false => None,
            };
            self.buffers = Some(Buffers { gathered, up, gate_up });
        }
        let mut rank = 0;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in spec.layers.clone() {
            let mut pair = |weight: WeightSpec| {
                let stacked = Stacked::read(&weight, adapter)?;
                rank = rank.max(stacked.as_ref().map_or(0, |stacked| stacked.rank));
                stacked.map(|stacked| stacked.load(b, &weight.name)).transpose()
            };
            layers.push(LayerPairs {
                qkv_proj: pair(spec.qkv_proj(layer))?,
                o_proj: pair(spec.o_proj(layer))?,
                gate_up_proj: pair(spec.gate_up_proj(layer))?,
                down_proj: pair(spec.down_proj(layer))?,
            });
        }
        let down = b.alloc(size::values("r", &[chunk, rank])?)?;
        // A step has at most as many chunks as its rows fill, and one more for each adapter.
        let most = limits.max_num_batched_tokens.div_ceil(chunk) + self.loaded.len() + 1;
        while self.chunks.len() < most {
            self.chunks.push(Chunk { indices: b.alloc_indices(chunk)?, rows: 0, adapter: 0 });
        }
        self.loaded.push(Loaded { id, layers, down });
        Ok(())
    }

    /// Free an adapter that no sequence uses.
    pub(crate) fn unload(&mut self, id: AdapterId) {
        self.loaded.retain(|loaded| loaded.id != id);
        self.num_chunks = 0;
        if self.loaded.is_empty() {
            *self = Adapters::default();
        }
    }

    /// Group the rows of a batch by their adapters. Whether there are any.
    pub(crate) fn begin(&mut self, b: &mut B, batch: &Batch) -> Result<bool> {
        self.num_chunks = 0;
        if batch.adapters.iter().all(Option::is_none) {
            return Ok(false);
        }
        let Adapters { loaded, chunks, num_chunks, rows, is_whole, .. } = self;
        let is_loaded = |id: &AdapterId| loaded.iter().any(|loaded| loaded.id == *id);
        if let Some(id) = batch.adapters.iter().flatten().find(|id| !is_loaded(id)) {
            return Err(Error::argument("adapter", format!("number {} is not loaded", id.0)));
        }
        for (adapter, Loaded { id, .. }) in loaded.iter().enumerate() {
            rows.clear();
            let sequences = batch.cu_seqlens_q.windows(2).zip(&batch.adapters);
            for (tokens, _) in sequences.filter(|(_, chosen)| **chosen == Some(*id)) {
                rows.extend(tokens[0]..tokens[1]);
            }
            for rows in rows.chunks(CHUNK) {
                let Some(chunk) = chunks.get_mut(*num_chunks) else {
                    return Err(Error::argument("adapter", "a step has more rows than the limits allow"));
                };
                b.write_indices(&mut chunk.indices, rows)?;
                (chunk.rows, chunk.adapter) = (rows.len(), adapter);
                *num_chunks += 1;
            }
        }
        *is_whole = *num_chunks == 1 && chunks.first().is_some_and(|chunk| chunk.rows == batch.num_tokens());
        Ok(true)
    }

    /// Take the scratch for gate and up, where the model has none of its own, to use it beside [`Adapters::add`].
    pub(crate) fn take_gate_up(&mut self) -> Option<B::Buffer> {
        self.buffers.as_mut().and_then(|buffers| buffers.gate_up.take())
    }

    /// Give it back.
    pub(crate) fn put_gate_up(&mut self, scratch: Option<B::Buffer>) {
        if let Some(buffers) = &mut self.buffers {
            buffers.gate_up = scratch;
        }
    }

    /// `y += scale * B (A x)` for the rows of the step with an adapter beside the matrix `beside` of `layer`. Rows of `x`
    /// have `cols` values, those of `y` have `width`; the step has `rows`.
    pub(crate) fn add(
        &mut self,
        b: &mut B,
        (layer, beside): (usize, Beside),
        (x, cols): (&B::Buffer, usize),
        (y, width): (&mut B::Buffer, usize),
        rows: usize,
    ) -> Result<()> {
        let Adapters { loaded, chunks, num_chunks, is_whole, buffers, .. } = self;
        let Some(Buffers { gathered, up, .. }) = buffers else { return Ok(()) };
        for chunk in chunks.iter().take(*num_chunks) {
            let Some(Loaded { layers, down, .. }) = loaded.get_mut(chunk.adapter) else { continue };
            let pairs = layers.get(layer);
            let Some(Pair { a, b: to_rows, scale }) = pairs.and_then(|pairs| pairs.beside(beside)) else { continue };
            let x = match is_whole {
                true => x,
                false => {
                    let (indices, rows) = (&chunk.indices, chunk.rows);
                    b.gather_rows(GatherRows { x, indices, out: gathered, width: cols, rows })?;
                    &*gathered
                }
            };
            b.linear(Linear { x, w: a, bias: None, out: down, rows: chunk.rows })?;
            b.linear(Linear { x: down, w: to_rows, bias: None, out: up, rows: chunk.rows })?;
            b.add_rows(AddRows {
                x: up,
                indices: &chunk.indices,
                scale: *scale,
                out: y,
                out_rows: rows,
                width,
                rows: chunk.rows,
            })?;
        }
        Ok(())
    }
}

impl<B: Backend> LayerPairs<B> {
    fn beside(&self, beside: Beside) -> Option<&Pair<B>> {
        match beside {
            Beside::Qkv => self.qkv_proj.as_ref(),
            Beside::O => self.o_proj.as_ref(),
            Beside::GateUp => self.gate_up_proj.as_ref(),
            Beside::Down => self.down_proj.as_ref(),
        }
    }
}

/// The halves beside a matrix of the model, which may be several stored ones.
struct Stacked {
    encoding: Encoding,
    a: Vec<u8>,
    b: Vec<u8>,
    rows: usize,
    cols: usize,
    rank: usize,
    scale: f32,
}

impl Stacked {
    /// Read the halves of all modules in `weight`; `None` if the adapter has none there.
    fn read(weight: &WeightSpec, adapter: &dyn LowRankSource) -> Result<Option<Self>> {
        let mut modules: Vec<(usize, LoraModule)> = Vec::new();
        let mut rows = 0;
        for cut in &weight.cuts {
            let read = adapter.module(module_name(&cut.tensor))?;
            modules.extend(read.map(|module| (rows, module)));
            rows += cut.rows.len();
        }
        let (Some((_, first)), Some(cut)) = (modules.first(), weight.cuts.first()) else { return Ok(None) };
        // One scale for all, unless they differ: then each is multiplied into its B.
        let scale = first.scale;
        let is_one = modules.iter().all(|(_, module)| module.scale == scale);
        let encoding =
            encoding_of(modules.iter().flat_map(|(_, module)| [module.a.encoding, module.b.encoding]), is_one);
        let (cols, rank) = (cut.cols.len(), modules.iter().map(|(_, module)| module.rank).sum());
        let value = encoding.block().bytes;
        let mut stacked = Stacked {
            encoding,
            a: size::zeros("r", &[rank, cols, value])?,
            b: size::zeros("r", &[rows, rank, value])?,
            rows,
            cols,
            rank,
            scale: if is_one { scale as f32 } else { 1.0 },
        };
        let mut at = 0;
        for (first_row, module) in &modules {
            let factor = if is_one { 1.0 } else { module.scale as f32 };
            let (a, b) = (bytes_in(&module.a, encoding, 1.0), bytes_in(&module.b, encoding, factor));
            stacked.a[at * cols * value..][..a.len()].copy_from_slice(&a);
            let width = module.rank * value;
            for (row, from) in b.chunks_exact(width.max(1)).enumerate() {
                stacked.b[((first_row + row) * rank + at) * value..][..width].copy_from_slice(from);
            }
            at += module.rank;
        }
        Ok(Some(stacked))
    }

    fn load<B: Backend>(self, b: &mut B, name: &str) -> Result<Pair<B>> {
        let Stacked { encoding, a, b: to_rows, rows, cols, rank, scale } = self;
        let mut load = |half: &str, rows, cols, bytes: &[u8]| {
            let parts = [MatrixPart::whole(encoding, rows, cols, bytes)?];
            b.load(&WeightView { name: &format!("{name}.lora_{half}"), role: WeightRole::Linear, parts: &parts })
        };
        Ok(Pair { a: load("A", rank, cols, &a)?, b: load("B", rows, rank, &to_rows)?, scale })
    }
}

/// The encoding that holds halves in these encodings exactly: their own if it is one, and nothing is multiplied in.
fn encoding_of(encodings: impl IntoIterator<Item = Encoding>, is_one: bool) -> Encoding {
    let mut encodings = encodings.into_iter();
    let first = encodings.next().unwrap_or(Encoding::F32);
    if is_one && encodings.all(|encoding| encoding == first) { first } else { Encoding::F32 }
}

/// The values of a half, multiplied with `factor`, in `encoding`: its own, or F32.
fn bytes_in(half: &LoraHalf, encoding: Encoding, factor: f32) -> Vec<u8> {
    match half.encoding == encoding && factor == 1.0 {
        true => half.data.clone(),
        false => half.to_f32().into_iter().flat_map(|value| (value * factor).to_le_bytes()).collect(),
    }
}

/// The name of the module whose weight is called `tensor`.
fn module_name(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// Values of the widest rows that pairs multiply and give.
fn widths(spec: &ModelSpec) -> [usize; 2] {
    let shape = spec.shape();
    [shape.widest_input(), shape.hidden_size.max(shape.heads.qkv_size()).max(2 * shape.intermediate_size)]
}

fn check_unsplit(spec: &ModelSpec) -> Result<()> {
    match spec.shard.world_size {
        1 => Ok(()),
        ranks => {
            let reason = "an adapter is not split over ranks: use stages of layers, one rank, or merge it at load";
            Err(Error::unsupported(format!("an adapter beside a model on {ranks} ranks"), reason))
        }
    }
}

/// Bytes on the device of an adapter for this part of a model, from headers alone.
///
/// # Errors
/// When the device cannot hold it.
pub fn adapter_bytes(
    footprint: &dyn Footprint,
    spec: &ModelSpec,
    limits: &Limits,
    adapter: &dyn LowRankSource,
) -> Result<u64> {
    let (mut bytes, mut widest) = (0u64, 0);
    for layer in spec.layers.clone() {
        for weight in [spec.qkv_proj(layer), spec.o_proj(layer), spec.gate_up_proj(layer), spec.down_proj(layer)] {
            let found = weight.cuts.iter().map(|cut| adapter.encodings(module_name(&cut.tensor)));
            let found: Vec<_> = found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            let rank: usize = found.iter().map(|(_, rank)| rank).sum();
            if rank == 0 {
                continue;
            }
            widest = widest.max(rank);
            let encoding = encoding_of(found.iter().flat_map(|(encodings, _)| *encodings), true);
            let rows = weight.cuts.iter().map(|cut| cut.rows.len()).sum();
            let cols = weight.cuts.first().map_or(0, |cut| cut.cols.len());
            for (rows, cols) in [(rank, cols), (rows, rank)] {
                let shape = WeightShape { role: WeightRole::Linear, parts: vec![(encoding, rows)], cols };
                bytes = bytes.saturating_add(footprint.weight_bytes(&shape)?);
            }
        }
    }
    let chunk = CHUNK.min(limits.max_num_batched_tokens);
    Ok(bytes.saturating_add(size::bytes(4, &[chunk, widest.saturating_add(1)])))
}

/// Bytes of the buffers that all adapters share.
pub fn shared_bytes(footprint: &dyn Footprint, spec: &ModelSpec, limits: &Limits) -> u64 {
    let chunk = CHUNK.min(limits.max_num_batched_tokens);
    let [input, output] = widths(spec);
    let gate_up = if footprint.fuses_gate_up() { limits.max_num_batched_tokens } else { 0 };
    let scratch = size::bytes(4, &[gate_up, 2, spec.intermediate_size]);
    size::bytes(4, &[chunk, input.saturating_add(output)]).saturating_add(scratch)
}
