//! The transformer, written once over [`Backend`].
//!
//! Straight-line code: embedding, layers, norm, output head. Nothing here knows about sequences, text or devices; the
//! batch arrives in device buffers and the result stays on the device (see [`crate::model::runner`]).

pub mod batch;
mod load;
pub mod low_rank;
pub mod merged;
mod observe;
pub mod plan;
pub mod rope;
pub mod runner;
pub mod source;
pub mod spec;

use crate::backend::Limits;
use crate::backend::collective::Collective;
use crate::backend::{
    Argmax, Backend, Embed, GateUpSilu, GatherRows, Interrupt, KvSpec, Linear, LinearAdd, Norm, PagedAttention,
    QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepInputs, StepKey, StoreKv,
};
use crate::error::{Error, Result};
use crate::numerics::size;
use batch::{AdapterId, Batch};
use low_rank::{Adapters, Beside};
use source::LowRankSource;
use spec::ModelSpec;

/// A Qwen2 decoder, or one rank's or stage's part of it, with its K/V store and all the buffers of a step.
#[derive(Debug)]
pub struct Model<B: Backend> {
    pub(crate) spec: ModelSpec,
    num_token_ids: usize,
    embed_tokens: Option<B::Weight>,
    layers: Vec<Layer<B>>,
    norm: Option<B::Buffer>,
    lm_head: Option<B::Weight>,
    pub(crate) kv: B::Kv,
    pub(crate) kv_spec: KvSpec,
    pub(crate) inputs: StepInputs<B>,
    pub(crate) buffers: Buffers<B>,
    adapters: Adapters<B>,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    input_layernorm: B::Buffer,
    qkv_proj: B::Weight,
    qkv_bias: B::Buffer,
    o_proj: B::Weight,
    post_attention_layernorm: B::Buffer,
    gate_up_proj: B::Weight,
    down_proj: B::Weight,
}

/// The activations of a step.
#[derive(Debug)]
pub(crate) struct Buffers<B: Backend> {
    /// `[tokens, hidden_size]` the residual stream.
    pub(crate) residual: B::Buffer,
    /// `[tokens, hidden_size]` the output of a norm; at the end of a step that wants hidden states, those.
    pub(crate) normed: B::Buffer,
    /// `[tokens, qkv_size]`
    qkv: B::Buffer,
    /// `[tokens, q_size]` the output of attention.
    attended: B::Buffer,
    /// `[tokens, 2 * intermediate_size]`, or empty if the backend fuses it away.
    gate_up: B::Buffer,
    /// `[tokens, intermediate_size]`
    inner: B::Buffer,
    /// `[tokens, hidden_size]` a projection before it is added to the residual stream.
    projected: B::Buffer,
    /// `[logits, hidden_size]` the rows whose logits are wanted.
    gathered: B::Buffer,
    /// `[logits, vocab_size]`
    pub(crate) logits: B::Buffer,
    /// `[logits]`
    pub(crate) greedy_ids: B::Indices,
}

impl<B: Backend> Buffers<B> {
    fn new(b: &mut B, spec: &ModelSpec, limits: &Limits) -> Result<Self> {
        let tokens = limits.max_num_batched_tokens;
        let logits = if spec.has_head() { limits.max_num_logits } else { 0 };
        let gate_up = if b.footprint().fuses_gate_up() { 0 } else { tokens };
        let mut rows = |rows: usize, width: usize| b.alloc(size::values("max_num_batched_tokens", &[rows, width])?);
        Ok(Buffers {
            residual: rows(tokens, spec.hidden_size)?,
            normed: rows(tokens.max(logits), spec.hidden_size)?,
            qkv: rows(tokens, spec.heads.qkv_size())?,
            attended: rows(tokens, spec.heads.q_size())?,
            gate_up: rows(gate_up, 2 * spec.intermediate_size)?,
            inner: rows(tokens, spec.intermediate_size)?,
            projected: rows(tokens, spec.hidden_size)?,
            gathered: rows(logits, spec.hidden_size)?,
            logits: rows(logits, spec.vocab_size)?,
            greedy_ids: b.alloc_indices(logits)?,
        })
    }
}

impl<B: Backend> Model<B> {
    /// Issue the operations of one step: everything from the written inputs to the logits and their argmax.
    ///
    /// A stage that is not the first starts from the residual stream that was written to its buffer.
    pub(crate) fn forward(
        &mut self,
        b: &mut B,
        key: StepKey,
        group: Option<&dyn Collective>,
        interrupt: &Interrupt,
    ) -> Result<()> {
        self.embed(b, key)?;
        for layer in 0..self.layers.len() {
            if interrupt.is_raised() {
                return Err(Error::Cancelled);
            }
            self.layer(b, layer, key, group)?;
        }
        self.head(b, key)
    }

    pub(crate) fn embed(&mut self, b: &mut B, key: StepKey) -> Result<()> {
        match &self.embed_tokens {
            Some(table) if self.spec.is_first() => {
                let out = &mut self.buffers.residual;
                b.embed(Embed { ids: &self.inputs.input_ids, table, out, rows: key.num_tokens })
            }
            _ => Ok(()),
        }
    }

    /// One decoder layer: attention and MLP, each normed before and added to the residual stream after.
    pub(crate) fn layer(
        &mut self,
        b: &mut B,
        index: usize,
        key: StepKey,
        group: Option<&dyn Collective>,
    ) -> Result<()> {
        self.attention(b, index, key, group)?;
        self.mlp(b, index, key, group)
    }

    /// The first half of a layer.
    fn attention(&mut self, b: &mut B, index: usize, key: StepKey, group: Option<&dyn Collective>) -> Result<()> {
        let Model { spec, layers, kv, inputs, buffers, adapters, .. } = self;
        let Buffers { residual, normed, qkv, attended, projected, .. } = buffers;
        let layer = &layers[index];
        let (rows, heads, hidden_size, eps) = (key.num_tokens, spec.heads, spec.hidden_size, spec.rms_norm_eps);
        let (weight, w, bias) = (&layer.input_layernorm, &layer.qkv_proj, &layer.qkv_bias);
        if key.adapters {
            // An adapter changes queries and keys before they are rotated.
            b.rms_norm(RmsNorm { x: residual, weight, eps, hidden_size, out: normed, rows })?;
            b.linear(Linear { x: normed, w, bias: Some(bias), out: qkv, rows })?;
            adapters.add(b, (index, Beside::Qkv), (normed, hidden_size), (qkv, heads.qkv_size()), rows)?;
            b.rope(Rope { qkv, cos_sin: &inputs.cos_sin, heads, rows })?;
            b.store_kv(StoreKv { qkv, slot_mapping: &inputs.slot_mapping, kv, layer: index, heads, rows })?;
        } else {
            let norm = Some(Norm { weight, eps, hidden_size, normed });
            b.qkv_rope_store(QkvRopeStore { norm, x: residual, w, bias, inputs, heads, qkv, kv, layer: index, rows })?;
        }
        b.paged_attention(PagedAttention { qkv, kv, layer: index, heads, inputs, out: attended, key })?;
        b.linear_add(LinearAdd {
            x: attended,
            w: &layer.o_proj,
            group,
            scratch: projected,
            residual,
            hidden_size,
            rows,
        })?;
        if key.adapters {
            adapters.add(b, (index, Beside::O), (attended, heads.q_size()), (residual, hidden_size), rows)?;
        }
        Ok(())
    }

    /// The second half of a layer.
    fn mlp(&mut self, b: &mut B, index: usize, key: StepKey, group: Option<&dyn Collective>) -> Result<()> {
        let Model { spec, layers, buffers, adapters, .. } = self;
        let Buffers { residual, normed, gate_up, inner, projected, .. } = buffers;
        let layer = &layers[index];
        let (rows, hidden_size, eps) = (key.num_tokens, spec.hidden_size, spec.rms_norm_eps);
        let (weight, w, intermediate_size) =
            (&layer.post_attention_layernorm, &layer.gate_up_proj, spec.intermediate_size);
        if key.adapters {
            let mut own = adapters.take_gate_up();
            let gate_up = own.as_mut().unwrap_or(gate_up);
            b.rms_norm(RmsNorm { x: residual, weight, eps, hidden_size, out: normed, rows })?;
            b.linear(Linear { x: normed, w, bias: None, out: gate_up, rows })?;
            adapters.add(b, (index, Beside::GateUp), (normed, hidden_size), (gate_up, 2 * intermediate_size), rows)?;
            b.silu_and_mul(SiluAndMul { gate_up, out: inner, intermediate_size, rows })?;
            adapters.put_gate_up(own);
        } else {
            b.gate_up_silu(GateUpSilu {
                norm: Some(Norm { weight, eps, hidden_size, normed }),
                x: residual,
                w,
                scratch: gate_up,
                out: inner,
                intermediate_size,
                rows,
            })?;
        }
        b.linear_add(LinearAdd {
            x: inner,
            w: &layer.down_proj,
            group,
            scratch: projected,
            residual,
            hidden_size,
            rows,
        })?;
        if key.adapters {
            adapters.add(b, (index, Beside::Down), (inner, intermediate_size), (residual, hidden_size), rows)?;
        }
        Ok(())
    }

    /// Norm and output head for the wanted rows, then the norm of all rows if hidden states are wanted.
    fn head(&mut self, b: &mut B, key: StepKey) -> Result<()> {
        let Model { spec, embed_tokens, norm, lm_head, inputs, buffers, num_token_ids, .. } = self;
        let Buffers { residual, normed, gathered, logits, greedy_ids, .. } = buffers;
        let (Some(weight), Some(head)) = (norm, lm_head.as_ref().or(embed_tokens.as_ref())) else {
            return Ok(());
        };
        if !spec.has_head() {
            return Ok(());
        }
        let (hidden_size, eps) = (spec.hidden_size, spec.rms_norm_eps);
        if key.num_logits > 0 {
            let (rows, width, valid) = (key.num_logits, spec.vocab_size, *num_token_ids);
            b.gather_rows(GatherRows {
                x: residual,
                indices: &inputs.logits_indices,
                out: gathered,
                width: hidden_size,
                rows,
            })?;
            b.rms_norm(RmsNorm { x: gathered, weight, eps, hidden_size, out: normed, rows })?;
            b.linear(Linear { x: normed, w: head, bias: None, out: logits, rows })?;
            b.argmax(Argmax { x: logits, out: greedy_ids, width, valid, rows })?;
        }
        if key.hidden {
            b.rms_norm(RmsNorm { x: residual, weight, eps, hidden_size, out: normed, rows: key.num_tokens })?;
        }
        Ok(())
    }

    /// Prepare the adapters of a step. Whether any sequence has one.
    pub(crate) fn begin_adapters(&mut self, b: &mut B, batch: &Batch) -> Result<bool> {
        self.adapters.begin(b, batch)
    }

    /// Load a low-rank adapter for this part.
    pub(crate) fn load_adapter(
        &mut self,
        b: &mut B,
        limits: &Limits,
        id: AdapterId,
        adapter: &dyn LowRankSource,
    ) -> Result<()> {
        self.adapters.load(b, &self.spec, limits, id, adapter)
    }

    /// Free a low-rank adapter.
    pub(crate) fn unload_adapter(&mut self, b: &mut B, id: AdapterId) {
        self.adapters.unload(id);
        b.trim();
    }

    /// Bytes that an adapter takes for this part.
    pub(crate) fn adapter_bytes(&self, b: &B, limits: &Limits, adapter: &dyn LowRankSource) -> Result<u64> {
        low_rank::adapter_bytes(&*b.footprint(), &self.spec, limits, adapter)
    }

    /// How many layers this part has.
    pub(crate) fn num_layers(&self) -> usize {
        self.layers.len()
    }
}
