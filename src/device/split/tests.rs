//! A split over two kinds of devices, against its stages run by hand.

use std::path::Path;

use qwen_backend_cpu::{CpuBackend, CpuOptions};
use qwen_backend_wgpu::{AdapterInfo, WgpuBackend, WgpuOptions};
use qwen_core::backend::{AdapterChoice, Backend, Interrupt, Limits};
use qwen_core::checkpoint::Checkpoint;
use qwen_core::model::Model;
use qwen_core::model::batch::{Batch, BlockId, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Stage};
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Precision, Result};

use super::Split;
use crate::{Device, EngineOptions};

const LIMITS: Limits = Limits {
    max_model_len: 256,
    max_num_batched_tokens: 64,
    max_num_seqs: 8,
    max_num_logits: 64,
    block_size: 32,
    num_blocks: 8,
    vocab_size: 1536,
    num_token_ids: 1536,
};

fn stage<B: Backend>(mut b: B, checkpoint: &Checkpoint, layers: std::ops::Range<usize>) -> ModelRunner<B> {
    let spec = ModelSpec::new(checkpoint.config()).stage(layers).unwrap();
    let model = Model::load(&mut b, spec, &LIMITS, checkpoint, &mut |_, _| Ok(())).unwrap();
    ModelRunner::new(b, model, RopeStages::new(checkpoint.config()), LIMITS)
}

/// The logits of a prompt by two stages, one after the other.
fn by_hand(stages: [&mut dyn Stage; 2], prompt: &[u32]) -> Result<Vec<f32>> {
    let mut batch = Batch::new(LIMITS.block_size);
    batch.push(SequenceStep {
        input_ids: prompt,
        num_computed_tokens: 0,
        block_table: &[BlockId(5), BlockId(2)],
        logits: WantLogits::All,
        rope_stage: 0,
        adapter: None,
    })?;
    let [first, last] = stages;
    let (mut hidden, mut output) = (Vec::new(), StepOutput::default());
    first.run(&batch, None, &Interrupt::default())?;
    first.read_hidden(prompt.len(), &mut hidden)?;
    last.run(&batch, Some(&hidden), &Interrupt::default())?;
    last.read_output(&batch, &mut output)?;
    Ok(output.logits)
}

#[test]
fn a_split_over_a_gpu_and_the_cpu_is_its_stages_one_after_the_other() {
    let adapter = AdapterChoice::Name(std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into()));
    if AdapterInfo::of(&adapter).is_err() {
        return println!("skipped: there is no adapter {adapter}");
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
    let checkpoint = Checkpoint::open(&demo).unwrap();
    let precision = Precision::Exact;
    let cpu = || CpuBackend::new(CpuOptions::new().precision(precision)).unwrap();
    let wgpu = || WgpuBackend::new(WgpuOptions::new().adapter(adapter.clone()).precision(precision)).unwrap();
    let prompt: Vec<u32> = (0..40).map(|i| i * 31 % 1500).collect();
    let device = Device::Wgpu(adapter.clone());
    let gpu_first = Split::new().layers(device.clone(), 2).layers(Device::Cpu, 4);
    let cpu_first = Split::new().layers(Device::Cpu, 3).fill(device);
    let hands = [
        by_hand([&mut stage(wgpu(), &checkpoint, 0..2), &mut stage(cpu(), &checkpoint, 2..6)], &prompt).unwrap(),
        by_hand([&mut stage(cpu(), &checkpoint, 0..3), &mut stage(wgpu(), &checkpoint, 3..6)], &prompt).unwrap(),
    ];
    assert_ne!(hands[0], hands[1], "the devices differ in their last bits");
    for (split, expected) in [gpu_first, cpu_first].into_iter().zip(hands) {
        let options = EngineOptions::new().device(Device::Split(split)).precision(precision).context(256);
        let engine = options.allow_padding_tokens(true).load(&demo).unwrap();
        // The engine computes the prompt in other steps.
        let found = engine.logits(&prompt).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&found) == bits(&expected), "{}", engine.device_name());
    }
}
