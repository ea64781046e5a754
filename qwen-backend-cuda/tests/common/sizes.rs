//! Operations in sizes that the conformance suite does not reach: products of more tokens than one pass of the tensor
//! cores takes, and contexts of more spans than a warp, and then a block, merges at once.

use qwen_backend_cuda::CudaBackend;
use qwen_core::conformance::op::{Allowed, Op, Values, run};
use qwen_core::conformance::ops::Form;
use qwen_core::conformance::ops::attention::Attention;
use qwen_core::conformance::ops::gate_up_silu::GateUpSilu;
use qwen_core::conformance::ops::linear::Linear;
use qwen_core::conformance::ops::qkv_rope_store::QkvRopeStoreOp;
use qwen_core::conformance::ops::rope::heads;
use qwen_core::conformance::{Scenario, rms_error};
use qwen_core::reference::Reference;
use qwen_core::{Backend, Encoding};

/// An operation and what has to hold of it: what is wrong, if something is.
pub(crate) type Check = fn(&mut CudaBackend) -> Result<(), String>;

/// All of them by name.
pub(crate) const CHECKS: [(&str, Check); 5] = [
    ("products of long prompts in bf16", |b| products(b, Encoding::Bf16)),
    ("products of long prompts in f16", |b| products(b, Encoding::F16)),
    ("keys and values of a long prompt", heads_of_a_prompt),
    ("single tokens after long contexts", single_tokens),
    ("prompts after long contexts", prompts),
];

fn near(b: &mut CudaBackend, op: &impl Op) -> Result<Vec<Values>, String> {
    let run_on = |error: qwen_core::Error| format!("{op:?}: {error}");
    let got = run(b, op).map_err(run_on)?;
    let expected = run(&mut Reference::new(), op).map_err(run_on)?;
    for (got, expected) in got.iter().zip(&expected) {
        let Allowed::Rms { tolerance, .. } = op.allowed(b.info().precision, got.name) else { continue };
        let error = rms_error(&got.values, &expected.values);
        if error.is_nan() || error > tolerance || got.overrun.is_some() {
            return Err(format!("{op:?}, `{}`: {error:e} of {tolerance:e}, overrun {:?}", got.name, got.overrun));
        }
    }
    Ok(got)
}

fn products(b: &mut CudaBackend, encoding: Encoding) -> Result<(), String> {
    // The last one has tiles enough for the wide ones.
    for (rows, cols, outs) in [(65, 200, 66), (130, 72, 140), (257, 96, 33), (257, 72, 290)] {
        near(b, &Linear::new(encoding, rows, cols, outs))?;
        near(b, &Linear { residual: Some(Form::Own), bias: None, ..Linear::new(encoding, rows, cols, outs) })?;
    }
    for (intermediate_size, rows) in [(80, 0..140), (264, 0..140)] {
        let (hidden_size, form) = (72, Form::Own);
        near(b, &GateUpSilu { encoding, hidden_size, intermediate_size, rows, normed: false, form, cut: false })?;
    }
    Ok(())
}

fn heads_of_a_prompt(b: &mut CudaBackend) -> Result<(), String> {
    for encoding in [Encoding::Bf16, Encoding::F16] {
        for heads in [heads(2, 1, 32), heads(4, 2, 64)] {
            let scenario = Scenario::new(heads, &[(0, 70), (9, 1), (20, 60)]);
            near(b, &QkvRopeStoreOp { scenario, hidden_size: 72, encoding, normed: false, form: Form::Own })?;
        }
    }
    Ok(())
}

/// 40 spans are more than a warp merges at once, 260 more than a block does.
const CONTEXTS: [usize; 2] = [5_000, 33_200];

fn single_tokens(b: &mut CudaBackend) -> Result<(), String> {
    for context in CONTEXTS {
        let heads = heads(2, 1, 32);
        let split = near(b, &Attention(Scenario::new(heads, &[(context - 1, 1)])))?;
        // Beside a prompt nothing is split: the bits are the same.
        let whole = run(b, &Attention(Scenario::new(heads, &[(context - 1, 1), (0, 2)]))).map_err(|e| e.to_string())?;
        let bits = |values: &Values| values.rows(0..1).values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        if b.info().precision == qwen_core::Precision::Exact && bits(&split[0]) != bits(&whole[0]) {
            return Err(format!(
                "{context} positions: side by side {:?}, in order {:?}",
                split[0],
                whole[0].rows(0..1)
            ));
        }
    }
    Ok(())
}

fn prompts(b: &mut CudaBackend) -> Result<(), String> {
    for head_dim in [64, 128, 256] {
        near(b, &Attention(Scenario::new(heads(2, 1, head_dim), &[(900, 70), (0, 130), (300, 1)])))?;
    }
    Ok(())
}
