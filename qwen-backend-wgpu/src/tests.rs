//! What only the inside shows: what a step makes and submits, and what becomes of faults. On the demo checkpoint.

use std::path::Path;
use std::time::Duration;

use qwen_core::backend::{Backend, Interrupt, MatrixPart, WeightRole, WeightView};
use qwen_core::batch::{Batch, Limits, SequenceStep, StepOutput, WantLogits};
use qwen_core::checkpoint::Checkpoint;
use qwen_core::kv::BlockId;
use qwen_core::model::Model;
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::rope::Rope;
use qwen_core::runner::{ModelRunner, Runner};
use qwen_core::{Config, Encoding, Error, Precision, Result};

use crate::gpu::Gpu;
use crate::{AdapterChoice, CapabilitySet, WgpuBackend, WgpuOptions};

const BLOCK_SIZE: usize = 16;
const CONTEXT: usize = 512;

/// A backend on `$QWEN_WGPU_ADAPTER` or software Vulkan; says so where there is none.
fn backend(precision: Precision) -> Option<WgpuBackend> {
    backend_with(precision, CapabilitySet::Default)
}

fn backend_with(precision: Precision, capabilities: CapabilitySet) -> Option<WgpuBackend> {
    let name = std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
    let options = WgpuOptions::new().adapter(AdapterChoice::Name(name)).pipeline_cache(false);
    let options = options.precision(precision).capabilities(capabilities);
    WgpuBackend::new(options).inspect_err(|error| eprintln!("skipped: {error}")).ok()
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model")).unwrap()
}

fn runner(backend: WgpuBackend) -> Result<ModelRunner<WgpuBackend>> {
    let checkpoint = checkpoint();
    runner_of(backend, checkpoint.config(), &checkpoint)
}

fn runner_of(mut backend: WgpuBackend, config: &Config, source: &dyn WeightSource) -> Result<ModelRunner<WgpuBackend>> {
    let limits = Limits {
        max_model_len: CONTEXT,
        max_num_batched_tokens: 64,
        max_num_seqs: 4,
        max_num_logits: 4,
        block_size: BLOCK_SIZE,
        num_blocks: CONTEXT / BLOCK_SIZE,
        vocab_size: config.vocab_size,
        num_token_ids: config.vocab_size,
    };
    let model = Model::load(&mut backend, ModelSpec::new(config), &limits, source, &mut |_| {})?;
    Ok(ModelRunner::new(backend, model, Rope::new(config), limits))
}

/// One step of sequences, each with its tokens and the positions that it has: their last rows. They share the blocks
/// evenly.
fn execute(runner: &mut dyn Runner, sequences: &[(&[u32], usize)], greedy: bool) -> Result<StepOutput> {
    let blocks: Vec<BlockId> = (0..(CONTEXT / BLOCK_SIZE) as u32).map(BlockId).collect();
    let mut batch = Batch::new(BLOCK_SIZE);
    let shares = blocks.chunks(blocks.len() / sequences.len());
    for ((input_ids, num_computed_tokens), block_table) in sequences.iter().zip(shares) {
        let num_computed_tokens = *num_computed_tokens;
        batch.push(SequenceStep { input_ids, num_computed_tokens, block_table, logits: WantLogits::Last })?;
    }
    batch.greedy = greedy;
    let mut output = StepOutput::default();
    runner.execute(&batch, &mut output, &Interrupt::default())?;
    Ok(output)
}

/// One greedy step of a sequence that has `computed` positions: the next id.
fn step(runner: &mut dyn Runner, ids: &[u32], computed: usize) -> Result<u32> {
    Ok(execute(runner, &[(ids, computed)], true)?.greedy_ids[0])
}

#[test]
fn a_decode_step_makes_nothing_and_submits_once() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let mut runner = runner(backend).unwrap();
    let mut id = step(&mut runner, &[1, 2, 3], 0).unwrap();
    id = step(&mut runner, &[id], 3).unwrap();
    let layers = checkpoint().config().num_hidden_layers as u64;
    let weights: u64 = 2 * 3_938_560;
    // Across spans of attention too: the context grows from 4 to 260.
    for computed in 4..260 {
        let before = (stats.objects(), stats.submissions(), stats.dispatches(), stats.weight_bytes());
        id = step(&mut runner, &[id], computed).unwrap();
        assert_eq!(stats.objects(), before.0, "objects made at position {computed}");
        assert_eq!(stats.submissions(), before.1 + 1, "command buffers at position {computed}");
        // Embedding, rows, norm, head and the largest; six a layer.
        let dispatches = stats.dispatches() - before.2;
        assert!(dispatches <= 6 * layers + 5, "{dispatches} kernels for {layers} layers");
        let read = stats.weight_bytes() - before.3;
        assert!(read <= weights + weights / 10, "{read} bytes of weights read, there are {weights}");
    }
}

#[test]
fn prompts_of_any_length_share_what_was_made() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let mut runner = runner(backend).unwrap();
    step(&mut runner, &[1; 20], 0).unwrap();
    let objects = stats.objects();
    for length in 21..30 {
        step(&mut runner, &vec![1; length], 0).unwrap();
    }
    assert_eq!(stats.objects(), objects);
}

#[test]
fn after_a_warm_up_the_first_answer_makes_nothing() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let Some(cold) = self::backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let mut runner = runner(backend).unwrap();
    runner.warm_up().unwrap();
    let objects = stats.objects();
    let id = step(&mut runner, &[5; 20], 0).unwrap();
    let next = step(&mut runner, &[id], 20).unwrap();
    // The buffer that results are read through alone.
    assert!(stats.objects() <= objects + 1, "{} objects", stats.objects() - objects);
    // Nor does the first token of two conversations at once.
    let objects = stats.objects();
    execute(&mut runner, &[(&[5], 0), (&[5], 0)], true).unwrap();
    assert_eq!(stats.objects(), objects);
    // And padding has left nothing behind.
    let mut cold = self::runner(cold).unwrap();
    assert_eq!(step(&mut cold, &[5; 20], 0).unwrap(), id);
    assert_eq!(step(&mut cold, &[id], 20).unwrap(), next);
}

#[test]
fn more_sequences_take_no_more_memory() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let mut runner = runner(backend).unwrap();
    let decode = |runner: &mut dyn Runner, sequences: usize| {
        let batch: Vec<(&[u32], usize)> = (0..sequences).map(|_| (&[1][..], 0)).collect();
        execute(runner, &batch, true).unwrap().greedy_ids
    };
    let id = decode(&mut runner, 1)[0];
    decode(&mut runner, 2);
    let objects = stats.objects();
    for sequences in 3..=4 {
        assert_eq!(decode(&mut runner, sequences), vec![id; sequences]);
    }
    assert_eq!(stats.objects(), objects);
}

#[test]
fn a_lost_device_ends_with_an_error_and_another_one_works() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let device = backend.gpu().device.clone();
    let mut lost = runner(backend).unwrap();
    let id = step(&mut lost, &[1, 2, 3], 0).unwrap();
    device.destroy();
    for _ in 0..2 {
        match step(&mut lost, &[id], 3) {
            Err(Error::Device { reason, .. }) => assert!(reason.contains("lost"), "{reason}"),
            other => panic!("{other:?} on a lost device"),
        }
    }
    let mut again = runner(self::backend(Precision::Fast).unwrap()).unwrap();
    assert_eq!(step(&mut again, &[1, 2, 3], 0).unwrap(), id);
}

#[test]
fn what_exceeds_the_device_is_refused_by_name() {
    let Some(mut backend) = backend(Precision::Fast) else { return };
    let most = backend.gpu().limits.max_buffer_size;
    let error = backend.alloc(most as usize / 4 + 64).unwrap_err().to_string();
    assert!(error.contains("activations") && error.contains(&most.to_string()), "{error}");
    // A refusal breaks nothing.
    let mut buffer = backend.alloc(4).unwrap();
    backend.write(&mut buffer, &[1.0; 4]).unwrap();
    backend.synchronize().unwrap();
}

#[test]
fn arrays_of_another_device_are_refused() {
    let Some(mut backend) = backend(Precision::Fast) else { return };
    let mut foreign = self::backend(Precision::Fast).unwrap().alloc(64).unwrap();
    let mut x = backend.alloc(64).unwrap();
    let refused =
        [backend.add(&mut x, &foreign, 64), backend.write(&mut foreign, &[0.0]), backend.read(&foreign, &mut [0.0])];
    for (refused, op) in refused.into_iter().zip(["add", "write", "read"]) {
        assert!(matches!(&refused, Err(Error::Device { op: found, .. }) if found == op), "{refused:?}");
    }
}

#[test]
fn ten_models_give_the_memory_back() {
    let Some(first) = backend(Precision::Fast) else { return };
    let (device, queue) = (first.gpu().device.clone(), first.gpu().queue.clone());
    let info = first.adapter().clone();
    drop(first);
    let allocated = || {
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    };
    let Some(before) = allocated() else {
        eprintln!("skipped: this driver reports no allocations");
        return;
    };
    for cycle in 0..10 {
        let gpu = Gpu::new(device.clone(), queue.clone(), info.clone());
        let mut runner = runner(WgpuBackend::on(gpu, Precision::Fast)).unwrap();
        step(&mut runner, &[1, 2, 3], 0).unwrap();
        assert!(allocated().unwrap() > before + 7_000_000, "the model is not on the device");
        drop(runner);
        let after = allocated().unwrap();
        assert!(after <= before, "{} bytes left behind by cycle {cycle}", after - before);
    }
}

/// The bits of the logits of `ids` in one step.
fn logits(runner: &mut dyn Runner, ids: &[u32]) -> Vec<u32> {
    let output = execute(runner, &[(ids, 0)], false).unwrap();
    output.logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn splitting_to_small_limits_changes_no_bit() {
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 1500).collect();
    for precision in [Precision::Exact, Precision::Fast] {
        let [tiny, default] = [CapabilitySet::Tiny, CapabilitySet::Default]
            .map(|set| backend_with(precision, set).map(|backend| logits(&mut runner(backend).unwrap(), &ids)));
        assert_eq!(tiny, default, "{precision:?}");
    }
}

/// Values between -1 and 1 that a bf16 holds.
fn values(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + salt * 11) % 101) as f32 / 64.0 - 0.78125).collect()
}

/// `rows` rows of `x` times a matrix of `values` in bf16.
fn product(backend: &mut WgpuBackend, x: &[f32], values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let outputs = values.len() / cols;
    let stored: Vec<u8> = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
    let parts = [MatrixPart::whole(Encoding::Bf16, outputs, cols, &stored)];
    let w = backend.load(&WeightView { name: "w", role: WeightRole::Linear, parts: &parts }).unwrap();
    let mut x_buffer = backend.alloc(rows * cols).unwrap();
    backend.write(&mut x_buffer, &x[..rows * cols]).unwrap();
    let mut out = backend.alloc(rows * outputs).unwrap();
    backend.linear(&x_buffer, &w, None, &mut out, rows).unwrap();
    let mut read = vec![0.0; rows * outputs];
    backend.read(&out, &mut read).unwrap();
    read
}

#[test]
fn a_row_of_a_tiled_product_does_not_depend_on_the_others() {
    for capabilities in [CapabilitySet::Default, CapabilitySet::Best] {
        let Some(mut backend) = backend_with(Precision::Fast, capabilities) else { return };
        let (cols, outputs) = (72, 70);
        let (x, w) = (values(150 * cols, 2), values(outputs * cols, 1));
        let [few, many] = [9, 150].map(|rows| product(&mut backend, &x, &w, rows, cols));
        assert_eq!(few, many[..few.len()], "{capabilities:?}");
    }
}

#[test]
fn cooperative_matrices_neither_overflow_nor_lose_what_is_small() {
    let Some(mut backend) = backend_with(Precision::Fast, CapabilitySet::Best) else { return };
    if backend.gpu().cooperative.is_none() {
        return println!("skipped: {} offers no cooperative matrices of f16", backend.adapter());
    }
    let (rows, cols, outputs) = (40, 100, 37);
    // Rows and weights far beyond f16 on both sides, with a channel a thousand times larger than the others.
    for (row_scale, weight_scale) in [(1.0, 1.0), (1e20, 1e-20), (1e-25, 1e9), (3e30, 1e-3), (1e-25, 1e-8)] {
        let mut x = values(rows * cols, 3);
        x.iter_mut().for_each(|value| *value *= row_scale);
        x.chunks_exact_mut(cols).for_each(|row| row[7] *= 1e3);
        x[5 * cols + 3] = f32::NAN;
        let to_bf16 = |value: f32| half::bf16::from_f32(value * weight_scale).to_f32();
        let w: Vec<f32> = values(outputs * cols, 4).into_iter().map(to_bf16).collect();
        let got = product(&mut backend, &x, &w, rows, cols);
        for (row, got) in got.chunks_exact(outputs).enumerate() {
            if row == 5 {
                assert!(got.iter().all(|value| value.is_nan()), "{got:?}");
                continue;
            }
            let x = &x[row * cols..][..cols];
            for (output, w) in w.chunks_exact(cols).enumerate() {
                let products = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (expected, scale) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                let off = (f64::from(got[output]) - expected).abs() / scale;
                assert!(off < 1.0 / 2048.0, "row {row}, output {output}: {} instead of {expected}", got[output]);
            }
        }
    }
}

/// Weights that are all zero.
struct Zeros(Vec<u8>);

impl WeightSource for Zeros {
    fn matrix(&self, _name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        Ok(MatrixPart::whole(Encoding::Bf16, rows, cols, &self.0[..2 * rows * cols]))
    }

    fn vector(&self, _name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn encoding(&self, _name: &str) -> Result<Encoding> {
        Ok(Encoding::Bf16)
    }
}

/// The host's part of a decode step of the 0.5B shape, on a device that computes nothing. It depends on the number of
/// layers, not on how wide they are.
#[test]
fn a_decode_step_of_24_layers_is_recorded_within_milliseconds() {
    let required_limits = wgpu::Limits { max_storage_buffers_per_shader_stage: 9, ..wgpu::Limits::defaults() };
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor { required_limits, ..Default::default() });
    let Some(real) = backend(Precision::Fast) else { return };
    let backend = WgpuBackend::on(Gpu::new(device, queue, real.adapter().clone()), Precision::Fast);
    let stats = backend.stats();
    let config = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 24, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": true}"#;
    let config = Config::from_json("config.json", config).unwrap();
    let mut runner = runner_of(backend, &config, &Zeros(vec![0; 2 * 512 * 256])).unwrap();
    let mut times = Vec::new();
    for computed in 0..40 {
        let (before, dispatches) = (stats.host_time(), stats.dispatches());
        step(&mut runner, &[1], computed).unwrap();
        times.push(stats.host_time() - before);
        assert_eq!(stats.dispatches() - dispatches, 24 * 6 + 5);
    }
    times.sort();
    println!("host time of a step: median {:?}, the first {:?}", times[20], times[39]);
    // Far above what it takes on any machine: what is caught is work that belongs to loading.
    assert!(times[20] < Duration::from_millis(50), "{:?}", times[20]);
}
