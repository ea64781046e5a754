//! `step`: repeating a key with other data gives the same as running the operations one by one.

use super::linear::Matrix;
use super::{Form, Inputs};
use crate::compare;
use crate::op::Guarded;
use crate::rig::Rig;
use qwen_core::Encoding;
use qwen_core::backend::{
    self, Argmax, Backend, Embed, GatherRows, HeadLayout, Interrupt, KvSpec, PagedAttention, StepInputs, StepKey,
    StoreKv, WeightRole,
};
use qwen_core::error::{Error, Result};

const HIDDEN: usize = 64;
const INNER: usize = 48;
const ROWS: usize = 5;

/// A norm and an MLP over fixed buffers.
struct Mlp<B: Backend> {
    residual: Guarded<B>,
    normed: Guarded<B>,
    norm: Guarded<B>,
    gate_up: B::Weight,
    scratch: Guarded<B>,
    inner: Guarded<B>,
    down: B::Weight,
    projected: Guarded<B>,
}

impl<B: Backend> Mlp<B> {
    fn new(b: &mut B) -> Result<Self> {
        let part = (Encoding::Bf16, INNER);
        Ok(Mlp {
            residual: Guarded::output(b, ROWS * HIDDEN)?,
            normed: Guarded::output(b, ROWS * HIDDEN)?,
            norm: Guarded::new(b, &[1.0; HIDDEN])?,
            gate_up: Matrix::stacked(WeightRole::GateUp, &[part, part], HIDDEN).load(b)?,
            scratch: Guarded::output(b, ROWS * 2 * INNER)?,
            inner: Guarded::output(b, ROWS * INNER)?,
            down: Matrix::new(Encoding::Bf16, HIDDEN, INNER).load(b)?,
            projected: Guarded::output(b, ROWS * HIDDEN)?,
        })
    }

    fn issue(&mut self, b: &mut B, rows: usize, form: Form) -> Result<()> {
        let residual = &mut self.residual.buffer;
        let (normed, inner) = (&mut self.normed.buffer, &mut self.inner.buffer);
        let (scratch, projected) = (&mut self.scratch.buffer, &mut self.projected.buffer);
        b.rms_norm(backend::RmsNorm {
            x: residual,
            weight: &self.norm.buffer,
            eps: 1e-6,
            out: normed,
            hidden_size: HIDDEN,
            rows,
        })?;
        b.gate_up_silu(backend::GateUpSilu {
            norm: None,
            x: normed,
            w: &self.gate_up,
            scratch,
            out: inner,
            intermediate_size: INNER,
            rows,
        })?;
        match form {
            Form::Own => b.linear_add(backend::LinearAdd {
                group: None,
                x: inner,
                w: &self.down,
                scratch: projected,
                residual,
                hidden_size: HIDDEN,
                rows,
            }),
            Form::Composed => {
                b.linear(backend::Linear { x: inner, w: &self.down, bias: None, out: projected, rows })?;
                b.add(backend::Add { x: residual, y: projected, len: rows * HIDDEN })
            }
        }
    }
}

fn key(rows: usize) -> StepKey {
    StepKey { num_tokens: rows, num_seqs: rows, num_logits: rows, max_seqlen_q: 1, hidden: false, adapters: false }
}

fn inputs(round: u64) -> Vec<f32> {
    Inputs::Normal.rows(30 + round, 0..ROWS, HIDDEN)
}

/// The result of `round` with the operations one by one, outside of a step.
fn eager<B: Backend>(rig: &mut Rig<'_, B>, round: u64, rows: usize, form: Form) -> Result<Vec<f32>> {
    let mut b = rig.another()?;
    let mut mlp = Mlp::new(&mut b)?;
    b.write(&mut mlp.residual.buffer, &inputs(round))?;
    mlp.issue(&mut b, rows, form)?;
    Ok(mlp.residual.read(&mut b)?.0)
}

/// Steps with equal and different keys, alternating, on changing data.
pub fn replay<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for form in [Form::Own, Form::Composed] {
        let mut b = rig.another()?;
        let mut mlp = Mlp::new(&mut b)?;
        let interrupt = Interrupt::default();
        for (round, rows) in [ROWS, ROWS, 2, ROWS, 2, 1, 2, ROWS].into_iter().enumerate() {
            b.write(&mut mlp.residual.buffer, &inputs(round as u64))?;
            b.step(key(rows), &interrupt, &mut |b| mlp.issue(b, rows, form))?;
            let (got, overrun) = mlp.residual.read(&mut b)?;
            let expected = eager(rig, round as u64, rows, form)?;
            let what = || format!("step {round} with {rows} rows, linear_add: {form:?}");
            rig.note(what, compare::bits(&got, &expected, HIDDEN));
            rig.note(what, overrun.map_or(Ok(()), |index| Err(format!("wrote to index {index}"))));
        }
    }
    Ok(())
}

/// Two steps without a read between them run one after the other.
pub fn steps_in_a_row<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut results = Vec::new();
    for read_between in [true, false] {
        let mut b = rig.another()?;
        let mut mlp = Mlp::new(&mut b)?;
        b.write(&mut mlp.residual.buffer, &inputs(0))?;
        for _ in 0..4 {
            b.step(key(ROWS), &Interrupt::default(), &mut |b| mlp.issue(b, ROWS, Form::Own))?;
            if read_between {
                mlp.residual.read(&mut b)?;
            }
        }
        b.synchronize()?;
        results.push(mlp.residual.read(&mut b)?.0);
    }
    rig.note(|| "four steps without reads".into(), compare::bits(&results[1], &results[0], HIDDEN));
    let changed = compare::bits(&results[0], &inputs(0), HIDDEN).err().map(|_| ()).ok_or("nothing was computed".into());
    rig.note(|| "four steps".into(), changed);
    Ok(())
}

/// A raised interrupt ends a step; the next one is correct.
pub fn interrupt<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut b = rig.another()?;
    let mut mlp = Mlp::new(&mut b)?;
    let interrupt = Interrupt::default();
    for round in 0..3 {
        interrupt.raise();
        b.write(&mut mlp.residual.buffer, &inputs(round))?;
        let outcome = b.step(key(ROWS), &interrupt, &mut |b| mlp.issue(b, ROWS, Form::Own));
        let cancelled = match outcome {
            Err(Error::Cancelled) => Ok(()),
            other => Err(format!("{other:?} instead of `Cancelled`")),
        };
        rig.note(|| format!("step {round} with a raised interrupt"), cancelled);
        interrupt.clear();
        b.write(&mut mlp.residual.buffer, &inputs(round))?;
        b.step(key(ROWS), &interrupt, &mut |b| mlp.issue(b, ROWS, Form::Own))?;
        let got = mlp.residual.read(&mut b)?.0;
        let expected = eager(rig, round, ROWS, Form::Own)?;
        rig.note(|| format!("step {round} after an interrupted one"), compare::bits(&got, &expected, HIDDEN));
    }
    Ok(())
}

/// An error of the body is returned by the step, and the next step with that key is correct.
pub fn failing_body<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut b = rig.another()?;
    let mut mlp = Mlp::new(&mut b)?;
    b.write(&mut mlp.residual.buffer, &inputs(0))?;
    let outcome = b.step(key(ROWS), &Interrupt::default(), &mut |b| {
        mlp.issue(b, ROWS, Form::Own)?;
        Err(Error::EmptyPrompt)
    });
    let returned = match outcome {
        Err(Error::EmptyPrompt) => Ok(()),
        other => Err(format!("{other:?} instead of the body's error")),
    };
    rig.note(|| "a body that fails".into(), returned);
    b.write(&mut mlp.residual.buffer, &inputs(1))?;
    b.step(key(ROWS), &Interrupt::default(), &mut |b| mlp.issue(b, ROWS, Form::Own))?;
    let got = mlp.residual.read(&mut b)?.0;
    let expected = eager(rig, 1, ROWS, Form::Own)?;
    rig.note(|| "the step after it".into(), compare::bits(&got, &expected, HIDDEN));
    Ok(())
}

/// Rows of `width` values whose `argmax` is `indices`.
fn rows_of<B: Backend>(b: &mut B, indices: &[u32], width: usize) -> Result<B::Buffer> {
    let mut values = vec![0.0; indices.len() * width];
    for (row, index) in values.chunks_exact_mut(width).zip(indices) {
        row[*index as usize] = 1.0;
    }
    let mut buffer = b.alloc(values.len())?;
    b.write(&mut buffer, &values)?;
    Ok(buffer)
}

/// Operations read indices that an earlier operation of the same step writes: they see the new contents, or the step is
/// refused. They neither check nor use the old contents.
pub fn written_indices<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    const HEADS: HeadLayout = HeadLayout { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 32 };
    const TOKENS: usize = 3;
    let spec = KvSpec {
        key_encodings: vec![rig.precision.kv_encoding()],
        value_encoding: rig.precision.kv_encoding(),
        num_blocks: 8,
        block_size: 32,
        num_key_value_heads: 1,
        head_dim: 32,
    };
    let key = StepKey {
        num_tokens: TOKENS,
        num_seqs: 2,
        num_logits: TOKENS,
        max_seqlen_q: 2,
        hidden: false,
        adapters: false,
    };
    let x = Inputs::Normal.rows(40, 0..TOKENS, HEADS.qkv_size());
    let mut results: Vec<Option<Vec<f32>>> = Vec::new();
    for in_a_step in [false, true] {
        let mut b = rig.another()?;
        let mut kv = b.kv(&spec)?;
        let mut qkv = b.alloc(x.len())?;
        b.write(&mut qkv, &x)?;
        let (mut attended, mut gathered) = (b.alloc(TOKENS * HEADS.q_size())?, b.alloc(TOKENS * HEADS.qkv_size())?);
        let mut embedded = b.alloc(TOKENS * 64)?;
        let table = Matrix::stacked(WeightRole::Embedding, &[(Encoding::Bf16, 80)], 64).load(&mut b)?;
        // Two sequences: a token at position 0 of block 2, and two tokens at positions 4 and 5 of block 1.
        let slots = rows_of(&mut b, &[64, 36, 37], 256)?;
        let cu_seqlens = rows_of(&mut b, &[0, 1, 3], 8)?;
        let context_lens = rows_of(&mut b, &[1, 6], 64)?;
        let tables = rows_of(&mut b, &[2, 1], 8)?;
        let rows = rows_of(&mut b, &[2, 0, 1], 80)?;
        let mut inputs = StepInputs::<B> {
            input_ids: b.alloc_indices(TOKENS)?,
            cos_sin: b.alloc(TOKENS * 32)?,
            slot_mapping: b.alloc_indices(TOKENS)?,
            cu_seqlens_q: b.alloc_indices(3)?,
            context_lens: b.alloc_indices(2)?,
            block_tables: b.alloc_indices(2)?,
            max_blocks_per_seq: 1,
            logits_indices: b.alloc_indices(TOKENS)?,
        };
        // The old contents are slots, lengths and blocks that do not exist.
        for (indices, len) in [
            (&mut inputs.slot_mapping, TOKENS),
            (&mut inputs.cu_seqlens_q, 3),
            (&mut inputs.context_lens, 2),
            (&mut inputs.block_tables, 2),
            (&mut inputs.input_ids, TOKENS),
        ] {
            b.write_indices(indices, &vec![1_000_000; len])?;
        }
        let mut body = |b: &mut B| {
            let out = &mut inputs.slot_mapping;
            b.argmax(Argmax { x: &slots, out, width: 256, valid: 256, rows: TOKENS })?;
            let (slot_mapping, kv) = (&inputs.slot_mapping, &mut kv);
            b.store_kv(StoreKv { qkv: &qkv, slot_mapping, kv, layer: 0, heads: HEADS, rows: TOKENS })?;
            let out = &mut inputs.cu_seqlens_q;
            b.argmax(Argmax { x: &cu_seqlens, out, width: 8, valid: 8, rows: 3 })?;
            let out = &mut inputs.context_lens;
            b.argmax(Argmax { x: &context_lens, out, width: 64, valid: 64, rows: 2 })?;
            let out = &mut inputs.block_tables;
            b.argmax(Argmax { x: &tables, out, width: 8, valid: 8, rows: 2 })?;
            let (inputs_, out) = (&inputs, &mut attended);
            b.paged_attention(PagedAttention { qkv: &qkv, kv, layer: 0, heads: HEADS, inputs: inputs_, out, key })?;
            b.argmax(Argmax { x: &rows, out: &mut inputs.input_ids, width: 80, valid: 80, rows: TOKENS })?;
            let indices = &inputs.input_ids;
            b.embed(Embed { ids: indices, table: &table, out: &mut embedded, rows: TOKENS })?;
            let (out, width) = (&mut gathered, HEADS.qkv_size());
            b.gather_rows(GatherRows { x: &qkv, indices, out, width, rows: TOKENS })
        };
        let outcome = match in_a_step {
            true => b.step(key, &Interrupt::default(), &mut body),
            false => body(&mut b),
        };
        let outcome = outcome.and_then(|()| b.synchronize());
        let mut read = Vec::new();
        for (buffer, width) in [(&attended, HEADS.q_size()), (&embedded, 64), (&gathered, HEADS.qkv_size())] {
            let mut values = vec![0.0; TOKENS * width];
            b.read(buffer, &mut values)?;
            read.extend(values);
        }
        results.push(outcome.is_ok().then_some(read));
        if !in_a_step {
            outcome?;
        }
    }
    let same = match &results[..] {
        [Some(eager), Some(step)] => compare::bits(step, eager, 1),
        // A refusal.
        _ => Ok(()),
    };
    rig.note(|| "indices that the step writes before it reads them".into(), same);
    Ok(())
}
