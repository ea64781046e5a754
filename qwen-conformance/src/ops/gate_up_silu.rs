//! `silu_and_mul` and `gate_up_silu`, with and without a norm first.

use std::ops::Range;

use super::linear::Matrix;
use super::{Form, Inputs, RAGGED_ROWS};
use crate::op::{Allowed, Cost, Guarded, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use crate::tolerance;
use qwen_core::backend::composed;
use qwen_core::backend::{self, Backend, Norm, WeightRole};
use qwen_core::error::Result;
use qwen_core::{Encoding, Precision};

const SEED: u64 = 4;

/// `silu_and_mul`.
#[derive(Debug, Clone)]
pub struct SiluAndMul {
    /// Values of a row of the output.
    pub intermediate_size: usize,
    /// Tokens.
    pub rows: usize,
    /// The deviation of the gates: large ones saturate.
    pub gate: f32,
}

/// The buffers of a [`SiluAndMul`].
#[derive(Debug)]
pub struct SiluOnDevice<B: Backend> {
    gate_up: Guarded<B>,
    out: Guarded<B>,
}

impl Op for SiluAndMul {
    type On<B: Backend> = SiluOnDevice<B>;

    fn cost(&self) -> Cost {
        let len = (self.rows * self.intermediate_size) as u64;
        Cost { bytes: 12 * len, flops: 5 * len }
    }

    fn allowed(&self, _precision: Precision, _output: &str) -> Allowed {
        Allowed::rms(tolerance::ELEMENTWISE)
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<SiluOnDevice<B>> {
        let mut rng = Rng::of(&[SEED, self.intermediate_size as u64]);
        let values: Vec<f32> = (0..self.rows)
            .flat_map(|_| {
                let gate = rng.normals(self.intermediate_size, self.gate);
                [gate, rng.normals(self.intermediate_size, 1.0)].concat()
            })
            .collect();
        let len = self.rows * self.intermediate_size;
        Ok(SiluOnDevice { gate_up: Guarded::new(b, &values)?, out: Guarded::output(b, len)? })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut SiluOnDevice<B>) -> Result<()> {
        b.silu_and_mul(backend::SiluAndMul {
            gate_up: &on.gate_up.buffer,
            out: &mut on.out.buffer,
            intermediate_size: self.intermediate_size,
            rows: self.rows,
        })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a SiluOnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.rows, self.intermediate_size)]
    }
}

/// `gate_up_silu` in one of its forms.
#[derive(Debug, Clone)]
pub struct GateUpSilu {
    /// How the weights are encoded.
    pub encoding: Encoding,
    /// Values of a row of the input.
    pub hidden_size: usize,
    /// Values of a row of the output.
    pub intermediate_size: usize,
    /// The tokens, as rows of an endless list.
    pub rows: Range<usize>,
    /// Whether the input has to be normed first.
    pub normed: bool,
    /// Which form to run.
    pub form: Form,
    /// Whether the matrices are cut out of larger ones.
    pub cut: bool,
}

/// The buffers of a [`GateUpSilu`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    norm: Guarded<B>,
    normed: Guarded<B>,
    w: B::Weight,
    scratch: Guarded<B>,
    out: Guarded<B>,
}

impl GateUpSilu {
    fn matrix(&self) -> Matrix {
        let part = (self.encoding, self.intermediate_size);
        Matrix { cut: self.cut, ..Matrix::stacked(WeightRole::GateUp, &[part, part], self.hidden_size) }
    }
}

impl Op for GateUpSilu {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let (rows, hidden, inner) = (self.rows.len(), self.hidden_size, self.intermediate_size);
        Cost {
            bytes: (self.matrix().bytes() + 4 * rows * (hidden + inner)) as u64,
            flops: (4 * rows * hidden * inner + 5 * rows * inner) as u64,
        }
    }

    fn allowed(&self, precision: Precision, _output: &str) -> Allowed {
        // For normal g and u, E[(silu'(g) u)^2] + E[silu(g)^2] is 2.1 times E[(silu(g) u)^2], which is 0.36: the errors
        // of both projections are amplified 1.44 times. Products have longer tails, so allow for chance as with fewer
        // values. Of blocks the errors of a token are correlated over all outputs, as for `linear`.
        let outputs = match self.encoding.block().values {
            1 => self.rows.len() * self.intermediate_size / 4,
            _ => self.rows.len(),
        };
        let norm = if self.normed { tolerance::sum(self.hidden_size) + tolerance::ELEMENTWISE } else { 0.0 };
        let linear = norm + tolerance::linear(precision, self.encoding, self.hidden_size, outputs);
        Allowed::Rms { tolerance: 1.5 * linear + tolerance::ELEMENTWISE, floor: 0.6 }
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        let (rows, inner) = (self.rows.len(), self.intermediate_size);
        // A backend that needs no scratch gets none, unless the composed form runs.
        let scratch = if self.form == Form::Own && b.footprint().fuses_gate_up() { 0 } else { rows * 2 * inner };
        Ok(OnDevice {
            x: Guarded::new(b, &Inputs::Normal.rows(SEED, self.rows.clone(), self.hidden_size))?,
            norm: Guarded::new(b, &super::rms_norm::weight(self.hidden_size))?,
            normed: Guarded::output(b, rows * self.hidden_size)?,
            w: self.matrix().load(b)?,
            scratch: Guarded::output(b, scratch)?,
            out: Guarded::output(b, rows * inner)?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let (inner, rows) = (self.intermediate_size, self.rows.len());
        let OnDevice { x, norm, normed, w, scratch, out } = on;
        let (x, scratch, out) = (&x.buffer, &mut scratch.buffer, &mut out.buffer);
        let (weight, normed) = (&norm.buffer, &mut normed.buffer);
        let norm = self.normed.then_some(Norm { weight, eps: 1e-6, hidden_size: self.hidden_size, normed });
        let op = backend::GateUpSilu { norm, x, w, scratch, out, intermediate_size: inner, rows };
        match self.form {
            Form::Own => b.gate_up_silu(op),
            Form::Composed => composed::gate_up_silu(b, op),
        }
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.rows.len(), self.intermediate_size)]
    }
}

/// `silu_and_mul` over ragged shapes and gates that saturate.
pub fn silu_and_mul<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for rows in RAGGED_ROWS {
        rig.check(&SiluAndMul { intermediate_size: 67, rows, gate: 1.0 })?;
    }
    for intermediate_size in [1, 2, 3, 7, 15, 16, 17, 31, 33, 257, 4864] {
        for gate in [1.0, 40.0, 1e3] {
            rig.check(&SiluAndMul { intermediate_size, rows: 3, gate })?;
        }
    }
    Ok(())
}

/// `gate_up_silu` over ragged shapes, in its own and in its composed form.
pub fn fused<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        for form in [Form::Own, Form::Composed] {
            let (hidden_size, intermediate_size, rows) = (65, 48, 0..0);
            let op = GateUpSilu { encoding, hidden_size, intermediate_size, rows, normed: false, form, cut: false };
            for rows in RAGGED_ROWS {
                rig.check(&GateUpSilu { rows: 0..rows, ..op.clone() })?;
            }
            for (hidden_size, intermediate_size) in [(64, 7), (33, 16), (100, 17), (129, 33), (896, 35), (256, 1)] {
                for cut in [false, true] {
                    rig.check(&GateUpSilu { hidden_size, intermediate_size, cut, rows: 0..3, ..op.clone() })?;
                }
            }
        }
    }
    Ok(())
}

/// The same with a norm first.
pub fn normed<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        for form in [Form::Own, Form::Composed] {
            for hidden_size in [1, 7, 64, 65, 100, 257, 896, 2048] {
                for rows in [1, 3, 8, 9, 20] {
                    let (rows, cut) = (0..rows, false);
                    let intermediate_size = 19;
                    rig.check(&GateUpSilu { encoding, hidden_size, intermediate_size, rows, normed: true, form, cut })?;
                }
            }
        }
    }
    Ok(())
}

/// A row has the same bits alone and among others, with and without a norm first.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    for (encoding, normed) in [(Encoding::F32, false), (Encoding::F32, true), (Encoding::Bf16, true)] {
        let of = |rows: Range<usize>| {
            let (hidden_size, intermediate_size, form) = (100, 50, Form::Own);
            GateUpSilu { encoding, hidden_size, intermediate_size, rows, normed, form, cut: false }
        };
        let whole = rig.run(&of(0..40))?;
        for part in [0..1, 1..2, 39..40, 3..6, 5..13, 1..18, 8..40] {
            rig.check_same_rows((&of(part.clone()), 0..part.len()), (&whole, part))?;
        }
    }
    Ok(())
}
