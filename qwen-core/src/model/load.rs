//! Weights from their source to the device, one matrix at a time.

use super::low_rank::Adapters;
use super::source::WeightSource;
use super::spec::{ModelSpec, WeightSpec};
use super::{Buffers, Layer, Model};
use crate::backend::Limits;
use crate::backend::{Backend, KvSpec, StepInputs, WeightView};
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;
use crate::numerics::float_env::FloatEnv;
use crate::numerics::precision::Precision;
use crate::numerics::size;

impl<B: Backend> Model<B> {
    /// Load the part of a model that `spec` describes. `progress` is called after each matrix with the bytes of the
    /// matrices loaded so far and of all, as stored in the source; its error ends the load.
    ///
    /// # Errors
    /// Errors of the source about its tensors, of the backend about its memory, and of `progress`.
    pub fn load(
        b: &mut B,
        spec: ModelSpec,
        limits: &Limits,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Self> {
        let _float_env = FloatEnv::enter();
        limits.check()?;
        b.prepare(limits, &spec.shape())?;
        let bytes = |weight: &WeightSpec| weight.shape(source)?.stored_bytes();
        let total = spec.stored_bytes(source)?;
        let mut done = 0u64;
        let mut matrix = |b: &mut B, weight: WeightSpec| {
            let loaded = load_matrix(b, &weight, source)?;
            done = done.saturating_add(bytes(&weight)?);
            progress(done, total)?;
            Ok::<_, Error>(loaded)
        };
        let embed_tokens = spec.has_embeddings().then(|| matrix(b, spec.embed_tokens())).transpose()?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in spec.layers.clone() {
            let mut bias = Vec::with_capacity(spec.heads.qkv_size());
            for (tensor, len, rows) in spec.qkv_bias(layer) {
                bias.extend_from_slice(source.vector(&tensor, len)?.get(rows).unwrap_or_default());
            }
            layers.push(Layer {
                input_layernorm: vector(b, &source.vector(&spec.input_layernorm(layer), spec.hidden_size)?)?,
                qkv_proj: matrix(b, spec.qkv_proj(layer))?,
                qkv_bias: vector(b, &bias)?,
                o_proj: matrix(b, spec.o_proj(layer))?,
                post_attention_layernorm: vector(
                    b,
                    &source.vector(&spec.post_attention_layernorm(layer), spec.hidden_size)?,
                )?,
                gate_up_proj: matrix(b, spec.gate_up_proj(layer))?,
                down_proj: matrix(b, spec.down_proj(layer))?,
            });
        }
        let norm = match spec.has_head() {
            true => Some(vector(b, &source.vector(spec.norm(), spec.hidden_size)?)?),
            false => None,
        };
        let untied = spec.has_head() && !spec.tie_word_embeddings;
        let lm_head = untied.then(|| matrix(b, spec.lm_head())).transpose()?;
        let kv_spec = spec.kv(limits, b.info().precision, source)?;
        Ok(Model {
            kv: b.kv(&kv_spec)?,
            kv_spec,
            inputs: step_inputs(b, &spec, limits)?,
            buffers: Buffers::new(b, &spec, limits)?,
            adapters: Adapters::default(),
            num_token_ids: limits.num_token_ids,
            embed_tokens,
            layers,
            norm,
            lm_head,
            spec,
        })
    }
}

impl ModelSpec {
    /// The K/V store of this part: values in the encoding of [`ModelSpec::with_kv_encoding`] or of the precision, keys
    /// in the same or with more bits.
    ///
    /// Rounding a key changes its scores by the product of the query and the rounding error, which grows with the key.
    /// The key biases of Qwen2.5 reach several hundred in some layers. So a layer's keys are stored in
    ///
    /// - Q8_0 if requested, and no key bias of the layer is larger than 4 in magnitude;
    /// - F16 if 16 or 8 bits were requested, and none is larger than 16;
    /// - F32 otherwise.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`] when the source lacks a bias.
    pub fn kv(&self, limits: &Limits, precision: Precision, source: &dyn WeightSource) -> Result<KvSpec> {
        let value_encoding = self.kv_encoding.unwrap_or(precision.kv_encoding());
        let key_encoding = |layer| {
            let [_, (tensor, len, _), _] = self.qkv_bias(layer);
            let largest = source.vector(&tensor, len)?.into_iter().map(f32::abs).fold(0.0, f32::max);
            Ok(match value_encoding {
                Encoding::Q8_0 if largest > BYTE_KEY_BIAS && largest <= WIDE_KEY_BIAS => Encoding::F16,
                _ if largest > WIDE_KEY_BIAS => Encoding::F32,
                encoding => encoding,
            })
        };
        Ok(KvSpec {
            key_encodings: self.layers.clone().map(key_encoding).collect::<Result<_>>()?,
            value_encoding,
            num_blocks: limits.num_blocks,
            block_size: limits.block_size,
            num_key_value_heads: self.heads.num_key_value_heads,
            head_dim: self.heads.head_dim,
        })
    }
}

/// Above this key bias, keys are f32. At this bias an f16 key is off by at most 2^-7, less than the error of bf16
/// products for a key of size 1.
const WIDE_KEY_BIAS: f32 = 16.0;

/// Above this key bias, keys have 16 bits where others have 8. A bias determines the scale of its block, which leaves
/// fewer levels for the other 31 values; up to here they have about as many as with the largest of 32 normally
/// distributed keys.
const BYTE_KEY_BIAS: f32 = 4.0;

fn load_matrix<B: Backend>(b: &mut B, weight: &WeightSpec, source: &dyn WeightSource) -> Result<B::Weight> {
    let parts = weight
        .cuts
        .iter()
        .map(|cut| {
            let whole = source.matrix(&cut.tensor, cut.shape.0, cut.shape.1)?;
            whole.cut(cut.rows.clone(), cut.cols.clone()).map_err(|error| match error {
                Error::Unsupported { what, reason } => Error::unsupported(format!("`{}`: {what}", cut.tensor), reason),
                error => error,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    b.load(&WeightView { name: &weight.name, role: weight.role, parts: &parts })
}

fn vector<B: Backend>(b: &mut B, values: &[f32]) -> Result<B::Buffer> {
    let mut buffer = b.alloc(values.len())?;
    b.write(&mut buffer, values)?;
    Ok(buffer)
}

fn step_inputs<B: Backend>(b: &mut B, spec: &ModelSpec, limits: &Limits) -> Result<StepInputs<B>> {
    let (tokens, seqs) = (limits.max_num_batched_tokens, limits.max_num_seqs);
    let max_blocks_per_seq = limits.max_blocks_per_seq();
    Ok(StepInputs {
        input_ids: b.alloc_indices(tokens)?,
        cos_sin: b.alloc(size::values("max_num_batched_tokens", &[tokens, spec.heads.head_dim])?)?,
        slot_mapping: b.alloc_indices(tokens)?,
        cu_seqlens_q: b.alloc_indices(seqs + 1)?,
        context_lens: b.alloc_indices(seqs)?,
        block_tables: b.alloc_indices(size::values("max_num_seqs", &[seqs, max_blocks_per_seq])?)?,
        max_blocks_per_seq,
        logits_indices: b.alloc_indices(limits.max_num_logits)?,
    })
}
