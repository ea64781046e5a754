//! `qkv_rope_store`, with and without a norm first: observed through its query heads and through attention over what it
//! stored.

use super::linear::Matrix;
use super::rope::{GEOMETRIES, heads};
use super::{Form, Inputs};
use crate::op::{Allowed, Cost, Data, Guarded, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use crate::scenario::{Keys, LAYER, Placed, Scenario};
use crate::tolerance;
use qwen_core::backend::{Backend, Norm, QkvRopeStore, WeightRole, composed};
use qwen_core::error::Result;
use qwen_core::{Encoding, Precision};

/// `qkv_rope_store` in one of its forms, then `paged_attention`.
#[derive(Debug, Clone)]
pub struct QkvRopeStoreOp {
    /// The sequences. Their earlier positions are in the store.
    pub scenario: Scenario,
    /// Values of a row of the input.
    pub hidden_size: usize,
    /// How the weights are encoded.
    pub encoding: Encoding,
    /// Whether the input has to be normed first.
    pub normed: bool,
    /// Which form to run.
    pub form: Form,
}

/// The buffers of a [`QkvRopeStoreOp`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    placed: Placed<B>,
    x: Guarded<B>,
    norm: Guarded<B>,
    normed: Guarded<B>,
    w: B::Weight,
    bias: Guarded<B>,
    qkv: Guarded<B>,
    out: Guarded<B>,
}

impl QkvRopeStoreOp {
    fn matrix(&self) -> Matrix {
        let (q, kv) = (self.scenario.heads.q_size(), self.scenario.heads.kv_size());
        let parts = [(self.encoding, q), (self.encoding, kv), (self.encoding, kv)];
        Matrix::stacked(WeightRole::Qkv, &parts, self.hidden_size)
    }

    fn bias(&self) -> Vec<f32> {
        let heads = self.scenario.heads;
        let mut bias = Rng::of(&[12]).normals(heads.qkv_size(), 0.5);
        for head in bias[heads.q_size()..][..heads.kv_size()].chunks_exact_mut(heads.head_dim) {
            head.iter_mut().enumerate().for_each(|(channel, bias)| *bias += self.scenario.keys.bias(channel));
        }
        bias
    }
}

impl Op for QkvRopeStoreOp {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let (rows, hidden, width) = (self.scenario.tokens(), self.hidden_size, self.scenario.heads.qkv_size());
        Cost {
            bytes: (self.matrix().bytes() + 4 * rows * (hidden + width)) as u64,
            flops: (2 * rows * hidden * width) as u64,
        }
    }

    fn allowed(&self, precision: Precision, output: &str) -> Allowed {
        let Scenario { heads, keys, .. } = &self.scenario;
        let outputs = self.scenario.tokens() * heads.q_size();
        let norm = if self.normed { tolerance::sum(self.hidden_size) + tolerance::ELEMENTWISE } else { 0.0 };
        let product = tolerance::linear(precision, self.encoding, self.hidden_size, outputs) + tolerance::ELEMENTWISE;
        let linear = norm + product;
        if output == "queries" {
            return Allowed::rms(linear);
        }
        // Queries and keys have variance 1 + 0.5^2, the bias is not rounded. Errors of both change a score, errors of
        // values the sum.
        let score = 1.25 * keys.rms(heads.head_dim);
        let attention = tolerance::attention(precision, heads.head_dim, self.scenario.max_context(), score);
        let products = linear * (1.0 + 2.0 * score * score).sqrt();
        Allowed::rms(attention + products + tolerance::stored_twice(self.scenario.kv_encodings))
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        let (key, heads) = (self.scenario.key(), self.scenario.heads);
        let x = |(id, position)| Inputs::Normal.rows(100 + id, position..position + 1, self.hidden_size);
        let mut activations: Vec<f32> = self.scenario.positions().flat_map(|(s, p)| x((s.id, p))).collect();
        // Padding rows hold whatever was there before.
        activations.resize(key.num_tokens * self.hidden_size, 1e30);
        Ok(OnDevice {
            placed: self.scenario.place(b, |sequence| sequence.computed)?,
            x: Guarded::new(b, &activations)?,
            norm: Guarded::new(b, &super::rms_norm::weight(self.hidden_size))?,
            normed: Guarded::output(b, key.num_tokens * self.hidden_size)?,
            w: self.matrix().load(b)?,
            bias: Guarded::new(b, &self.bias())?,
            qkv: Guarded::output(b, key.num_tokens * heads.qkv_size())?,
            out: Guarded::output(b, key.num_tokens * heads.q_size())?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let (heads, key) = (self.scenario.heads, self.scenario.key());
        let OnDevice { placed, x, norm, normed, w, bias, qkv, out } = on;
        let (weight, normed) = (&norm.buffer, &mut normed.buffer);
        let op = QkvRopeStore {
            norm: self.normed.then_some(Norm { weight, eps: 1e-6, hidden_size: self.hidden_size, normed }),
            x: &x.buffer,
            w,
            bias: &bias.buffer,
            inputs: &placed.inputs,
            heads,
            qkv: &mut qkv.buffer,
            kv: &mut placed.kv,
            layer: LAYER,
            rows: key.num_tokens,
        };
        match self.form {
            Form::Own => b.qkv_rope_store(op)?,
            Form::Composed => composed::qkv_rope_store(b, op)?,
        }
        self.scenario.attend(b, placed, qkv, out)
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        let (rows, heads) = (self.scenario.tokens(), self.scenario.heads);
        let (data, width, cols) = (Data::Values(&on.qkv), heads.qkv_size(), 0..heads.q_size());
        let queries = Output { name: "queries", data, rows, width, cols };
        vec![queries, Output::rows("attention over what was stored", &on.out, rows, heads.q_size())]
    }
}

const FORMS: [Form; 2] = [Form::Own, Form::Composed];

/// The heads of every published size, in its own and in its composed form.
pub fn every_geometry<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for (_, heads) in GEOMETRIES {
        for form in FORMS {
            let scenario = Scenario::new(heads, &[(0, 3), (20, 1), (15, 2)]);
            rig.check(&QkvRopeStoreOp { scenario, hidden_size: 64, encoding: Encoding::Bf16, normed: false, form })?;
        }
    }
    Ok(())
}

/// Ragged batches with padding, odd widths, every encoding.
pub fn ragged_batches<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        for form in FORMS {
            for sequences in [&[(0, 1)][..], &[(0, 17), (33, 1), (15, 2)], &[(16, 1), (31, 1)], &[(0, 40), (5, 8)]] {
                for (pad_tokens, pad_seqs, hidden_size) in [(0, 0, 100), (6, 2, 33)] {
                    let scenario = Scenario { pad_tokens, pad_seqs, ..Scenario::new(heads(5, 1, 64), sequences) };
                    rig.check(&QkvRopeStoreOp { scenario, hidden_size, encoding, normed: false, form })?;
                }
            }
        }
    }
    Ok(())
}

/// K biases of a few hundred.
pub fn biased_keys<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for form in FORMS {
        let scenario = Scenario { keys: Keys::Biased, ..Scenario::new(heads(4, 2, 64), &[(0, 9), (20, 1)]) };
        rig.check(&QkvRopeStoreOp { scenario, hidden_size: 64, encoding: Encoding::Bf16, normed: false, form })?;
    }
    Ok(())
}

/// With a norm first: ragged batches, odd widths, every encoding.
pub fn normed<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        for form in FORMS {
            for sequences in [&[(0, 1)][..], &[(0, 5), (15, 2)], &[(0, 17), (33, 1)]] {
                for (pad_tokens, hidden_size) in [(0, 64), (2, 100), (1, 33), (0, 896)] {
                    let scenario = Scenario { pad_tokens, ..Scenario::new(heads(5, 1, 64), sequences) };
                    rig.check(&QkvRopeStoreOp { scenario, hidden_size, encoding, normed: true, form })?;
                }
            }
        }
    }
    Ok(())
}

/// A prompt at once and in pieces: the same bits, with and without a norm first.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    for (encoding, normed) in [(Encoding::F32, false), (Encoding::F32, true), (Encoding::Bf16, true)] {
        // The history comes from the scenario, so only the queries can be compared token by token.
        let of = |sequences: &[(usize, usize)], pad_tokens| QkvRopeStoreOp {
            scenario: Scenario { pad_tokens, ..Scenario::new(heads(14, 2, 64), sequences) },
            hidden_size: 96,
            encoding,
            normed,
            form: Form::Own,
        };
        let whole = rig.run(&of(&[(20, 40)], 0))?;
        for (sequences, pad_tokens) in [(&[(20, 40)][..], 5), (&[(20, 40), (0, 3)], 0), (&[(20, 40), (33, 1)], 2)] {
            rig.check_same_rows((&of(sequences, pad_tokens), 0..40), (&whole, 0..40))?;
        }
        for (computed, tokens) in [(20, 1), (33, 1), (30, 7), (44, 16)] {
            let part = rig.run(&of(&[(computed, tokens)], 0))?;
            let queries = (part[0].clone(), whole[0].rows(computed - 20..computed - 20 + tokens));
            rig.check_bits(
                || format!("queries of {tokens} tokens after {computed}, {encoding}, normed: {normed}"),
                &queries.0,
                &queries.1,
            );
        }
    }
    Ok(())
}
