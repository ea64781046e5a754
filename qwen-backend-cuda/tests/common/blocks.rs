//! Products of matrices in block formats, in sizes that reach each kernel of each format: tokens from one to more than a
//! tile, every epilogue, and matrices whose parts differ in format.

use qwen_backend_cuda::CudaBackend;
use qwen_conformance::op::{Allowed, Cost, Guarded, Op, Output};
use qwen_conformance::ops::embed::Embed;
use qwen_conformance::ops::gate_up_silu::GateUpSilu;
use qwen_conformance::ops::linear::{Linear, Matrix};
use qwen_conformance::ops::qkv_rope_store::QkvRopeStoreOp;
use qwen_conformance::ops::rope::heads;
use qwen_conformance::ops::{Form, Inputs};
use qwen_conformance::{Scenario, tolerance};
use qwen_core::backend::{self, WeightRole, planes};
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};
use qwen_core::{Backend, Encoding, Precision};

use super::sizes::near;

/// Numbers of tokens with kernels of their own.
const TOKENS: [usize; 5] = [1, 3, 6, 20, 65];

/// Prompts with more columns than the stages of a pipeline hold, so that each is used several times.
pub(crate) fn long_rows(b: &mut CudaBackend) -> Result<(), String> {
    for rows in [20, 70] {
        near(b, &Linear::new(Encoding::Q8_0, rows, 1312, 40))?;
    }
    Ok(())
}

/// Each kernel of each format.
pub(crate) fn products(b: &mut CudaBackend) -> Result<(), String> {
    for encoding in planes::encodings() {
        let block = encoding.block().values;
        // Units of 32 columns that are not a multiple of a step of tensor cores.
        let cols = (160 / block).max(1) * block;
        for rows in TOKENS {
            near(b, &Linear::new(encoding, rows, cols, 17))?;
        }
        let table = Matrix { role: WeightRole::Embedding, ..Matrix::new(encoding, 9, cols) };
        near(b, &Embed { table, ids: vec![8, 0, 3] })?;
    }
    Ok(())
}

/// Every epilogue, with columns in order and in another one.
pub(crate) fn epilogues(b: &mut CudaBackend) -> Result<(), String> {
    let form = Form::Own;
    for encoding in [Encoding::Q4_0, Encoding::Q4K, Encoding::Q6K] {
        for rows in TOKENS {
            near(b, &Linear { bias: Some(1.0), ..Linear::new(encoding, rows, 256, 40) })?;
            near(b, &Linear { residual: Some(form), bias: None, ..Linear::new(encoding, rows, 256, 39) })?;
            let (hidden_size, intermediate_size) = (256, 70);
            let silu =
                GateUpSilu { encoding, hidden_size, intermediate_size, rows: 0..rows, normed: true, form, cut: false };
            near(b, &silu)?;
            let scenario = Scenario::new(heads(3, 1, 32), &[(5, rows)]);
            near(b, &QkvRopeStoreOp { scenario, hidden_size, encoding, normed: false, form })?;
        }
    }
    let int4 = Encoding::Group(GroupEncoding { bits: GroupBits::Four, group_size: 64 });
    for rows in TOKENS {
        let shuffled = Matrix { shuffled: true, ..Matrix::new(int4, 40, 320) };
        near(b, &Linear::of(shuffled, rows))?;
    }
    Ok(())
}

/// Gate and up in different formats, blocks and values, wherever the blocks are.
pub(crate) fn gate_and_up(b: &mut CudaBackend) -> Result<(), String> {
    let pairs = [
        (Encoding::Q4K, Encoding::Q6K),
        (Encoding::Bf16, Encoding::Q8_0),
        (Encoding::Q8_0, Encoding::Bf16),
        (Encoding::F32, Encoding::Bf16),
    ];
    for (gate, up) in pairs {
        for tokens in TOKENS {
            near(b, &TwoFormats { gate, up, tokens })?;
        }
    }
    Ok(())
}

/// `gate_up_silu` of 33 gates in one format and 33 ups in another.
#[derive(Debug)]
struct TwoFormats {
    gate: Encoding,
    up: Encoding,
    tokens: usize,
}

const HIDDEN_SIZE: usize = 512;
const INTERMEDIATE_SIZE: usize = 33;

struct OnDevice<B: Backend> {
    x: Guarded<B>,
    w: B::Weight,
    scratch: Guarded<B>,
    out: Guarded<B>,
}

impl TwoFormats {
    fn matrix(&self) -> Matrix {
        let parts = [(self.gate, INTERMEDIATE_SIZE), (self.up, INTERMEDIATE_SIZE)];
        Matrix::stacked(WeightRole::GateUp, &parts, HIDDEN_SIZE)
    }
}

impl Op for TwoFormats {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        Cost { bytes: self.matrix().bytes() as u64, flops: 0 }
    }

    fn allowed(&self, precision: Precision, _output: &str) -> Allowed {
        // As GateUpSilu allows.
        let linear = tolerance::linear(precision, self.matrix().worst_encoding(), HIDDEN_SIZE, self.tokens);
        Allowed::Rms { tolerance: 1.5 * linear + tolerance::ELEMENTWISE, floor: 0.6 }
    }

    fn place<B: Backend>(&self, b: &mut B) -> qwen_core::Result<OnDevice<B>> {
        let scratch = if b.footprint().fuses_gate_up() { 0 } else { self.tokens * 2 * INTERMEDIATE_SIZE };
        Ok(OnDevice {
            x: Guarded::new(b, &Inputs::Normal.rows(1, 0..self.tokens, HIDDEN_SIZE))?,
            w: self.matrix().load(b)?,
            scratch: Guarded::output(b, scratch)?,
            out: Guarded::output(b, self.tokens * INTERMEDIATE_SIZE)?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> qwen_core::Result<()> {
        let OnDevice { x, w, scratch, out } = on;
        let (x, scratch, out) = (&x.buffer, &mut scratch.buffer, &mut out.buffer);
        let (norm, intermediate_size, rows) = (None, INTERMEDIATE_SIZE, self.tokens);
        b.gate_up_silu(backend::GateUpSilu { norm, x, w, scratch, out, intermediate_size, rows })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.tokens, INTERMEDIATE_SIZE)]
    }
}
