//! Operations in sizes that the conformance suite does not reach: products for every number of tokens with its own
//! kernel, contexts with more spans than a warp, or a block, merges at once, wide heads, and stores of mixed types.

use qwen_backend_cuda::CudaBackend;
use qwen_conformance::op::{Allowed, Cost, Guarded, GuardedIndices, Op, Output, Values, run};
use qwen_conformance::ops::Form;
use qwen_conformance::ops::attention::Attention;
use qwen_conformance::ops::gate_up_silu::GateUpSilu;
use qwen_conformance::ops::linear::Linear;
use qwen_conformance::ops::qkv_rope_store::QkvRopeStoreOp;
use qwen_conformance::ops::rope::heads;
use qwen_conformance::{Blocks, Scenario, Sequence, rms_error};
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{KvSpec, PagedAttention, StepInputs, StoreKv};
use qwen_core::{Backend, Encoding, Precision};

use super::blocks;

/// Run operations and compare their results. The error is what is wrong.
pub(crate) type Check = fn(&mut CudaBackend) -> Result<(), String>;

/// All of them by name.
pub(crate) const CHECKS: [(&str, Check); 12] = [
    ("products of few tokens", products_of_few),
    ("products of long prompts in bf16", |b| products(b, Encoding::Bf16)),
    ("products of long prompts in f16", |b| products(b, Encoding::F16)),
    ("keys and values of a long prompt", heads_of_a_prompt),
    ("single tokens after long contexts", single_tokens),
    ("prompts after long contexts", prompts),
    ("keys in f32 beside values in f16", mixed_stores),
    ("keys and values in 8 bits", stores_in_blocks),
    ("long rows of blocks", blocks::long_rows),
    ("products of every block format", blocks::products),
    ("epilogues of blocks", blocks::epilogues),
    ("gate and up in different formats", blocks::gate_and_up),
];

/// Run `op` and compare it with the reference.
pub(crate) fn near(b: &mut CudaBackend, op: &impl Op) -> Result<Vec<Values>, String> {
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

/// Each kernel of few tokens with every epilogue.
fn products_of_few(b: &mut CudaBackend) -> Result<(), String> {
    let form = Form::Own;
    for encoding in [Encoding::F32, Encoding::Bf16, Encoding::F16] {
        for rows in [1, 2, 3, 7, 12, 27, 40] {
            near(b, &Linear::new(encoding, rows, 136, 70))?;
            near(b, &Linear { residual: Some(form), bias: None, ..Linear::new(encoding, rows, 136, 70) })?;
            let (hidden_size, intermediate_size, rows) = (136, 70, 0..rows);
            let scenario = Scenario::new(heads(3, 1, 32), &[(5, rows.len())]);
            near(b, &GateUpSilu { encoding, hidden_size, intermediate_size, rows, normed: false, form, cut: false })?;
            near(b, &QkvRopeStoreOp { scenario, hidden_size, encoding, normed: false, form })?;
        }
    }
    Ok(())
}

fn products(b: &mut CudaBackend, encoding: Encoding) -> Result<(), String> {
    // The last one has enough tiles for the wide kernels.
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

/// Prompts, and single tokens after contexts of several spans; keys and values in blocks, and one of them in 16 or 32 bits.
fn stores_in_blocks(b: &mut CudaBackend) -> Result<(), String> {
    let (f32, f16, q8_0) = (Encoding::F32, Encoding::F16, Encoding::Q8_0);
    let all = [(q8_0, q8_0), (f16, q8_0), (f32, q8_0), (q8_0, f16), (q8_0, f32), (f16, f32)];
    for (head_dim, encodings) in [(64, &all[..]), (128, &all[..]), (96, &all[..1]), (256, &all[..1])] {
        for encodings in encodings {
            for sequences in [&[(0, 70), (130, 5)][..], &[(300, 1), (5, 1)]] {
                let scenario = Scenario::new(heads(2, 1, head_dim), sequences);
                near(b, &Attention(Scenario { kv_encodings: Some(*encodings), ..scenario }))?;
            }
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
        // With a prompt in the step nothing is split: the bits are the same.
        let whole = run(b, &Attention(Scenario::new(heads, &[(context - 1, 1), (0, 2)]))).map_err(|e| e.to_string())?;
        let bits = |values: &Values| values.rows(0..1).values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        if b.info().precision == Precision::Exact && bits(&split[0]) != bits(&whole[0]) {
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

/// As in the layers of a model with large key biases.
fn mixed_stores(b: &mut CudaBackend) -> Result<(), String> {
    for head_dim in [32, 64, 128, 256] {
        for sequences in [&[(0, 70), (130, 5)][..], &[(300, 1), (5, 1)]] {
            near(
                b,
                &MixedStore(Scenario { blocks: Blocks::InOrder, ..Scenario::new(heads(2, 1, head_dim), sequences) }),
            )?;
        }
    }
    Ok(())
}

/// Attention over keys in f32 and values in f16.
#[derive(Debug)]
struct MixedStore(Scenario);

struct OnDevice<B: Backend> {
    kv: B::Kv,
    inputs: StepInputs<B>,
    qkv: Guarded<B>,
    out: Guarded<B>,
}

impl Op for MixedStore {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        Attention(self.0.clone()).cost()
    }

    fn allowed(&self, _precision: Precision, output: &str) -> Allowed {
        // Values are rounded in either precision.
        Attention(self.0.clone()).allowed(Precision::Fast, output)
    }

    fn place<B: Backend>(&self, b: &mut B) -> qwen_core::Result<OnDevice<B>> {
        let scenario = &self.0;
        let blocks = |sequence: &Sequence| sequence.context().div_ceil(scenario.block_size);
        let num_blocks = scenario.sequences.iter().map(blocks).sum::<usize>() + 1;
        let mut kv = b.kv(&KvSpec {
            key_encodings: vec![Encoding::F32],
            value_encoding: Encoding::F16,
            num_blocks,
            block_size: scenario.block_size,
            num_key_value_heads: scenario.heads.num_key_value_heads,
            head_dim: scenario.heads.head_dim,
        })?;
        let (mut values, mut slots, mut first_block) = (Vec::new(), Vec::new(), 0);
        for sequence in &scenario.sequences {
            for position in 0..sequence.context() {
                values.extend(scenario.qkv_row(sequence.id, position));
                slots.push((first_block * scenario.block_size + position) as u32);
            }
            first_block += blocks(sequence);
        }
        let (x, at) = (Guarded::new(b, &values)?, GuardedIndices::new(b, &slots)?);
        b.store_kv(StoreKv {
            qkv: &x.buffer,
            slot_mapping: &at.buffer,
            kv: &mut kv,
            layer: 0,
            heads: scenario.heads,
            rows: slots.len(),
        })?;
        let qkv: Vec<f32> = scenario.positions().flat_map(|(s, p)| scenario.qkv_row(s.id, p)).collect();
        Ok(OnDevice {
            kv,
            inputs: scenario.place(b, |_| 0)?.inputs,
            qkv: Guarded::new(b, &qkv)?,
            out: Guarded::output(b, scenario.tokens() * scenario.heads.q_size())?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> qwen_core::Result<()> {
        let OnDevice { kv, inputs, qkv, out } = on;
        b.paged_attention(PagedAttention {
            qkv: &qkv.buffer,
            kv,
            layer: 0,
            heads: self.0.heads,
            inputs,
            out: &mut out.buffer,
            key: self.0.key(),
        })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.0.tokens(), self.0.heads.q_size())]
    }
}
