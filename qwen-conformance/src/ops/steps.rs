//! `step`: the same key again with other data gives what running the operations one by one gives.

use super::linear::Matrix;
use super::{Form, Inputs};
use crate::compare;
use crate::op::Guarded;
use crate::rig::Rig;
use qwen_core::backend::{self, Backend, Interrupt, StepKey, WeightRole};
use qwen_core::dtype::Encoding;
use qwen_core::error::{Error, Result};

const HIDDEN: usize = 64;
const INNER: usize = 48;
const ROWS: usize = 5;

/// A norm and an MLP over buffers that stay where they are.
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
    StepKey { num_tokens: rows, num_seqs: rows, num_logits: rows, max_seqlen_q: 1 }
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

/// Steps with equal and with other keys, in turns, on changing data.
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

/// A raised interrupt ends a step; the next one is right again.
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

/// An error of the body comes out of the step, and the next step with that key is right.
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
