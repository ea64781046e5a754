//! Helpers for the tests below, which need more than the public interface; most run on the demo checkpoint.

mod faults;
mod numbers;
pub(crate) mod shaders;
mod sizes;
mod speed;
mod steps;

use std::path::Path;
use std::sync::Arc;

use qwen_core::backend::Limits;
use qwen_core::backend::{Backend, Interrupt, MatrixPart, WeightRole, WeightView};
use qwen_core::checkpoint::Checkpoint;
use qwen_core::model::Model;
use qwen_core::model::batch::BlockId;
use qwen_core::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Config, Encoding, Error, Precision, Result};

use crate::runtime::device::Device;
use crate::runtime::gpu::Gpu;
use crate::{AdapterChoice, AdapterInfo, CapabilitySet, WgpuBackend, WgpuOptions};

const BLOCK_SIZE: usize = 16;
const CONTEXT: usize = 512;

/// A backend on `$QWEN_WGPU_ADAPTER` or software Vulkan; prints a message if there is none.
fn backend(precision: Precision) -> Option<WgpuBackend> {
    backend_with(precision, CapabilitySet::Default)
}

/// The options for the adapter that tests run on.
fn options() -> WgpuOptions {
    let name = std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
    WgpuOptions::new().adapter(AdapterChoice::Name(name)).pipeline_cache(false)
}

fn backend_with(precision: Precision, capabilities: CapabilitySet) -> Option<WgpuBackend> {
    WgpuBackend::new(options().precision(precision).capabilities(capabilities))
        .inspect_err(|error| eprintln!("skipped: {error}"))
        .ok()
}

/// A backend that computes nothing: on a device without a driver.
fn idle_backend(precision: Precision) -> WgpuBackend {
    let required_limits = wgpu::Limits { max_storage_buffers_per_shader_stage: 9, ..wgpu::Limits::defaults() };
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor { required_limits, ..Default::default() });
    let info = AdapterInfo { max_storage_buffers: 9, ..AdapterInfo::idle() };
    WgpuBackend::on(Gpu::new(Device::new(device, queue, info, None)), precision)
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model")).unwrap()
}

fn runner(backend: WgpuBackend) -> Result<ModelRunner<WgpuBackend>> {
    let checkpoint = checkpoint();
    runner_of(backend, checkpoint.config(), &checkpoint)
}

fn runner_of(backend: WgpuBackend, config: &Config, source: &dyn WeightSource) -> Result<ModelRunner<WgpuBackend>> {
    runner_with(backend, config, source, ModelSpec::new(config))
}

fn runner_with(
    mut backend: WgpuBackend,
    config: &Config,
    source: &dyn WeightSource,
    spec: ModelSpec,
) -> Result<ModelRunner<WgpuBackend>> {
    let limits = Limits {
        max_model_len: CONTEXT,
        max_num_batched_tokens: CONTEXT,
        max_num_seqs: 4,
        max_num_logits: 4,
        block_size: BLOCK_SIZE,
        num_blocks: CONTEXT / BLOCK_SIZE,
        vocab_size: config.vocab_size,
        num_token_ids: config.vocab_size,
    };
    let model = Model::load(&mut backend, spec, &limits, source, &mut |_, _| Ok(()))?;
    Ok(ModelRunner::new(backend, model, RopeStages::new(config), limits))
}

/// One step of sequences, each with its tokens and number of computed positions; returns their last rows. They share
/// the blocks evenly.
fn execute(runner: &mut dyn Runner, sequences: &[(&[u32], usize)], greedy: bool) -> Result<StepOutput> {
    let blocks: Vec<BlockId> = (0..(CONTEXT / BLOCK_SIZE) as u32).map(BlockId).collect();
    let mut batch = Batch::new(BLOCK_SIZE);
    let shares = blocks.chunks(blocks.len() / sequences.len());
    for ((input_ids, num_computed_tokens), block_table) in sequences.iter().zip(shares) {
        let num_computed_tokens = *num_computed_tokens;
        let logits = if greedy { WantLogits::Argmax } else { WantLogits::Last };
        batch.push(SequenceStep {
            input_ids,
            num_computed_tokens,
            block_table,
            logits,
            rope_stage: 0,
            adapter: None,
        })?;
    }
    let mut output = StepOutput::default();
    runner.execute(&batch, &mut output, &Interrupt::default())?;
    Ok(output)
}

/// One greedy step of a sequence that has `computed` positions: the next id.
fn step(runner: &mut dyn Runner, ids: &[u32], computed: usize) -> Result<u32> {
    Ok(execute(runner, &[(ids, computed)], true)?.argmax[0].expect("finite logits"))
}

/// Weights that are all zero, in one encoding.
struct Zeros {
    encoding: Encoding,
    /// Whether the columns of the layers' matrices are stored in another order.
    reordered: bool,
    bytes: Vec<u8>,
}

impl Zeros {
    /// For matrices of at most `values` values.
    fn new(encoding: Encoding, values: usize) -> Self {
        Zeros { encoding, reordered: false, bytes: vec![0; encoding.bytes(values)] }
    }
}

impl WeightSource for Zeros {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        let matrix = MatrixPart::whole(self.encoding, rows, cols, &self.bytes[..self.encoding.bytes(rows * cols)])?;
        match self.column_order(name)? {
            Some(_) => matrix.with_column_order((0..cols as u32).rev().collect::<Vec<u32>>()),
            None => Ok(matrix),
        }
    }

    fn vector(&self, _name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn encoding(&self, _name: &str) -> Result<Encoding> {
        Ok(self.encoding)
    }

    /// Of the 0.5B shape's layers.
    fn column_order(&self, name: &str) -> Result<Option<Arc<[u32]>>> {
        let cols = if name.contains("down_proj") { 4864 } else { 896 };
        Ok((self.reordered && name.contains("layers")).then(|| (0..cols).rev().collect()))
    }
}
