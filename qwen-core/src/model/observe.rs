//! Reads the activations that a model's matrices are multiplied with, between the halves of its layers.

use super::spec::WeightSpec;
use super::{Buffers, Model};
use crate::backend::{Backend, RmsNorm, StepKey};
use crate::error::Result;
use crate::numerics::size;

impl<B: Backend> Model<B> {
    /// Issue the operations of one step up to the output head, and call `note` with the input rows of each matrix for
    /// `tokens` tokens. The inputs of the step have been written; nothing is summed over ranks.
    pub(super) fn observe(
        &mut self,
        b: &mut B,
        key: StepKey,
        tokens: usize,
        note: &mut dyn FnMut(&WeightSpec, &[f32]),
    ) -> Result<()> {
        let spec = self.spec.clone();
        let norm = |b: &mut B, weight: &B::Buffer, buffers: &mut Buffers<B>| {
            let Buffers { residual: x, normed: out, .. } = buffers;
            let (eps, hidden_size) = (spec.rms_norm_eps, spec.hidden_size);
            b.rms_norm(RmsNorm { x, weight, eps, hidden_size, out, rows: key.num_tokens })
        };
        let mut show = |b: &mut B, inputs: &B::Buffer, weight: WeightSpec| {
            let cols = weight.cuts.first().map_or(0, |cut| cut.cols.len());
            let mut rows = size::zeros("num_tokens", &[tokens, cols])?;
            b.read(inputs, &mut rows)?;
            note(&weight, &rows);
            Ok::<(), crate::Error>(())
        };
        self.embed(b, key)?;
        for (index, layer) in spec.layers.clone().enumerate() {
            norm(b, &self.layers[index].input_layernorm, &mut self.buffers)?;
            show(b, &self.buffers.normed, spec.qkv_proj(layer))?;
            self.attention(b, index, key, None)?;
            show(b, &self.buffers.attended, spec.o_proj(layer))?;
            norm(b, &self.layers[index].post_attention_layernorm, &mut self.buffers)?;
            show(b, &self.buffers.normed, spec.gate_up_proj(layer))?;
            self.mlp(b, index, key, None)?;
            show(b, &self.buffers.inner, spec.down_proj(layer))?;
        }
        if let Some(weight) = self.norm.as_ref().filter(|_| spec.has_head()) {
            norm(b, weight, &mut self.buffers)?;
            let head = if spec.tie_word_embeddings { spec.embed_tokens() } else { spec.lm_head() };
            show(b, &self.buffers.normed, head)?;
        }
        Ok(())
    }
}
