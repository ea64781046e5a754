//! Tests that need the crate's internals: the launches of every published shape, on a driver that only checks them;
//! faults; sizes that overflow; hostile indices on the emulator.

mod blocks;
mod bounds;
mod modules;
mod sizes;

use qwen_conformance::published;
use qwen_core::backend::Limits;
use qwen_core::backend::collective::Shard;
use qwen_core::backend::{Add, Backend, Interrupt, MatrixPart, RmsNorm, StepKey, WeightRole, WeightView};
use qwen_core::model::Model;
use qwen_core::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::batch::{BlockId, CopyBlock};
use qwen_core::model::plan::{Plan, PlanInput, limits_for};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};
use qwen_core::{Config, Encoding, Error, Precision, Result};

use crate::driver::Launch;
use crate::driver::recording::RecordingDriver;
use crate::kernel::Kernel;
use crate::params::{Address, Params, Rows};
use crate::{CudaBackend, CudaOptions, devices, nccl};

const BLOCK_SIZE: usize = 32;
const MAX_SEQS: usize = 32;
const MAX_TOKENS: usize = 4096;

/// Layers are alike: two represent all of them.
const LAYERS: usize = 2;

/// All-zero weights: each matrix is its first row, repeated.
struct Zeros(Stored, Vec<u8>);

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// All alike.
    As(Encoding),
    /// Blocks of 256 values with more bits where it matters, or of 32 where a model of this shape has other widths.
    Q4KM { fallback: bool },
    /// Groups of 128 columns in 4 bits, and the table and the head in bf16; for GPTQ with columns in another order.
    Groups { ordered: bool },
}

impl Stored {
    fn encoding(self, name: &str) -> Encoding {
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        match self {
            Stored::As(encoding) => encoding,
            Stored::Q4KM { fallback } => match (has(&["v_proj", "down_proj", "embed_tokens", "lm_head"]), fallback) {
                (true, false) => Encoding::Q6K,
                (true, true) => Encoding::Q8_0,
                (false, false) => Encoding::Q4K,
                (false, true) => Encoding::Q5_0,
            },
            Stored::Groups { .. } if has(&["embed_tokens", "lm_head"]) => Encoding::Bf16,
            Stored::Groups { .. } => Encoding::Group(GroupEncoding { bits: GroupBits::Four, group_size: 128 }),
        }
    }
}

impl WeightSource for Zeros {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        let part = MatrixPart::strided(self.0.encoding(name), rows, cols, 0, &self.1)?;
        match self.0 {
            Stored::Groups { ordered: true } if part.encoding != Encoding::Bf16 => {
                part.with_column_order((0..cols as u32).rev().collect::<Vec<u32>>())
            }
            _ => Ok(part),
        }
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        // The keys of the first layer stay f32.
        Ok(vec![if name.contains("layers.0.self_attn.k_proj") { 100.0 } else { 0.0 }; len])
    }

    fn encoding(&self, name: &str) -> Result<Encoding> {
        Ok(self.0.encoding(name))
    }
}

/// A published shape with few layers.
fn shape(name: &str) -> Config {
    let (_, mut config) = published::shapes().into_iter().find(|(found, _)| *found == name).unwrap();
    config.num_hidden_layers = LAYERS;
    config
}

/// Limits for one sequence of `context` positions.
fn limits(config: &Config, context: usize) -> Limits {
    let limits = Limits {
        max_model_len: context,
        max_num_batched_tokens: MAX_TOKENS,
        max_num_seqs: MAX_SEQS,
        max_num_logits: MAX_SEQS,
        block_size: BLOCK_SIZE,
        num_blocks: 0,
        vocab_size: config.vocab_size,
        num_token_ids: config.vocab_size,
    };
    limits_for(&limits, context, 1)
}

/// A model without values on a driver that checks every call.
struct Harness {
    driver: RecordingDriver,
    runner: ModelRunner<CudaBackend>,
    context: usize,
}

impl Harness {
    fn new(config: &Config, context: usize, capability: (u32, u32), precision: Precision) -> Self {
        Self::of_rank(config, context, capability, precision, Shard::WHOLE)
    }

    /// A rank's part of a model.
    fn of_rank(config: &Config, context: usize, capability: (u32, u32), precision: Precision, shard: Shard) -> Self {
        let options = CudaOptions::new().precision(precision);
        Self::stored(Stored::As(Encoding::Bf16), config, context, capability, &options, shard)
    }

    /// The same with weights stored like this.
    fn stored(
        stored: Stored,
        config: &Config,
        context: usize,
        capability: (u32, u32),
        options: &CudaOptions,
        shard: Shard,
    ) -> Self {
        Self::of(stored, ModelSpec::new(config).shard(shard).unwrap(), config, context, capability, options)
    }

    /// A model, or a part of it. Once it is loaded, GPU memory may be neither allocated nor freed.
    fn of(
        stored: Stored,
        spec: ModelSpec,
        config: &Config,
        context: usize,
        capability: (u32, u32),
        options: &CudaOptions,
    ) -> Self {
        let source = Zeros(stored, vec![0; 1 << 17]);
        let driver = RecordingDriver::new(capability);
        let precision = options.precision;
        let mut backend = CudaBackend::on(std::sync::Arc::new(driver.clone()), options);
        let limits = limits(config, context);
        let input = PlanInput {
            spec: &spec,
            limits: limits.clone(),
            precision,
            context,
            batch: 1,
            model_context: 131_072,
            available_bytes: None,
        };
        let plan = Plan::new(&source, &input, &*backend.footprint()).unwrap();
        let group = (spec.shard.world_size > 1).then(|| nccl::tests::silent_group(&backend));
        let model = Model::load(&mut backend, spec.clone(), &limits, &source, &mut |_, _| Ok(())).unwrap();
        let mut runner = ModelRunner::new(backend, model, RopeStages::new(config), limits);
        if let Some(group) = group {
            runner = runner.with_group(std::sync::Arc::new(group));
        }
        runner.warm_up().unwrap();
        let taken = driver.calls().live_bytes();
        let planned = plan.weight_bytes + plan.kv_bytes + plan.activation_bytes;
        assert!(planned.abs_diff(taken) <= taken / 50, "{planned} bytes planned, {taken} taken");
        driver.freeze(true);
        Harness { driver, runner, context }
    }

    /// One step of sequences, each with its number of tokens and of positions before them. They share one store.
    fn execute(&mut self, sequences: &[(usize, usize)], greedy: bool) -> Result<Vec<Kernel>> {
        let blocks: Vec<BlockId> = (0..(self.context / BLOCK_SIZE) as u32).map(BlockId).collect();
        let mut batch = Batch::new(BLOCK_SIZE);
        for (tokens, num_computed_tokens) in sequences {
            let (input_ids, num_computed_tokens) = (&vec![1; *tokens][..], *num_computed_tokens);
            let logits = if greedy { WantLogits::Argmax } else { WantLogits::Last };
            batch.push(SequenceStep {
                input_ids,
                num_computed_tokens,
                block_table: &blocks,
                logits,
                rope_stage: 0,
                adapter: None,
            })?;
        }
        let before = self.driver.calls().launched.len();
        self.runner.execute(&batch, &mut StepOutput::default(), &Interrupt::default())?;
        Ok(self.driver.calls().launched.split_off(before))
    }

    /// A greedy step of single tokens.
    fn decode(&mut self, sequences: usize, computed: usize) -> Result<Vec<Kernel>> {
        self.execute(&vec![(1, computed); sequences], true)
    }

    /// Check that no call was forbidden. The harness can be dropped.
    fn check(&self) {
        self.driver.freeze(false);
        assert_eq!(self.driver.calls().violations, Vec::<String>::new());
    }
}

/// The shapes of steps: for each sequence, its tokens and the positions before them.
fn steps(context: usize) -> Vec<Vec<(usize, usize)>> {
    let mut steps: Vec<Vec<(usize, usize)>> =
        [1, 3, 7, 31, 32].iter().map(|count| vec![(1, context - 1); *count]).collect();
    steps.extend([vec![(512, 0)], vec![(4096, 0)], vec![(4096, context - 4096)]]);
    // Prompts, a chunk and single tokens together.
    steps.push(vec![(1, 700), (300, 0), (1, context - 1), (40, 1000)]);
    steps
}

fn every_launch(mut harness: Harness) {
    for greedy in [true, false] {
        for step in steps(harness.context) {
            harness.execute(&step, greedy).unwrap();
            let again = harness.execute(&step, greedy).unwrap();
            let single = step.iter().all(|(tokens, _)| *tokens == 1);
            assert_eq!(again.is_empty(), single, "{step:?}");
        }
    }
    let copies: Vec<CopyBlock> = (0..8).map(|n| CopyBlock { from: BlockId(n), to: BlockId(n + 8) }).collect();
    harness.runner.copy_blocks(&copies).unwrap();
    harness.check();
}

#[test]
fn every_published_shape_launches_within_its_arrays() {
    for (name, _) in published::shapes() {
        for (context, capability) in [(32_768, (9, 0)), (131_072, (8, 6)), (131_072, (7, 5))] {
            println!("{name}, {context} positions, compute capability {capability:?}");
            every_launch(Harness::new(&shape(name), context, capability, Precision::Fast));
        }
    }
    every_launch(Harness::new(&shape("0.5B"), 32_768, (9, 0), Precision::Exact));
}

/// Both kinds of keys: those of the first layer stay f32.
#[test]
fn shapes_with_keys_and_values_in_8_bits_launch_within_their_arrays() {
    let in_blocks = |name, context, capability, precision| {
        let config = shape(name);
        let spec = ModelSpec::new(&config).with_kv_encoding(Encoding::Q8_0).unwrap();
        let options = CudaOptions::new().precision(precision);
        Harness::of(Stored::As(Encoding::Bf16), spec, &config, context, capability, &options)
    };
    for (name, _) in published::shapes() {
        every_launch(in_blocks(name, 32_768, (9, 0), Precision::Fast));
    }
    every_launch(in_blocks("7B", 131_072, (7, 5), Precision::Fast));
    every_launch(in_blocks("0.5B", 32_768, (9, 0), Precision::Exact));
    let mut tensor = in_blocks("0.5B", 4096, (8, 0), Precision::Fast);
    let prompt: Vec<String> = tensor.execute(&[(512, 0)], true).unwrap().iter().map(Kernel::to_string).collect();
    let attention = |kernel: &&String| kernel.starts_with("attention");
    assert_eq!(prompt.iter().filter(attention).collect::<Vec<_>>(), ["attention_tile_kf32_d64"; 2]);
    assert!(prompt.contains(&"store_kv".into()), "{prompt:?}");
}

#[test]
fn the_parts_of_ranks_launch_within_their_arrays() {
    // Heads that divide evenly, K/V heads that several ranks hold, and the largest model, over 8 ranks.
    for (name, ranks) in [("7B", 4), ("3B", 8), ("32B", 8)] {
        for rank in [0, ranks - 1] {
            every_launch(Harness::of_rank(
                &shape(name),
                32_768,
                (9, 0),
                Precision::Fast,
                Shard { rank, world_size: ranks },
            ));
        }
    }
}

#[test]
fn kernels_are_chosen_by_precision_capability_and_size() {
    let names = |kernels: Vec<Kernel>| kernels.iter().map(Kernel::to_string).collect::<Vec<_>>();
    let shape = shape("0.5B");
    let mut tensor = Harness::new(&shape, 4096, (8, 0), Precision::Fast);
    let mut plain = Harness::new(&shape, 4096, (7, 5), Precision::Fast);
    let mut exact = Harness::new(&shape, 4096, (9, 0), Precision::Exact);
    let layer = |prompt: Vec<String>| prompt[1..9].to_vec();
    assert_eq!(
        layer(names(tensor.execute(&[(512, 0)], true).unwrap())),
        [
            "rms_norm",
            "scale_and_round_bf16",
            "matmul_bf16_heads",
            "attention_tile_kf32_d64",
            "scale_and_round_bf16",
            "matmul_bf16_add",
            "rms_norm",
            "scale_and_round_bf16"
        ]
    );
    let short = names(tensor.execute(&[(20, 0)], true).unwrap());
    assert!(
        short.contains(&"skinny_bf16_n4_silu".into()) && short.contains(&"matvec_bf16_t1_write".into()),
        "{short:?}"
    );
    let prompt = names(plain.execute(&[(512, 0)], true).unwrap());
    assert!(
        prompt.contains(&"tile_bf16_silu".into()) && prompt.contains(&"attention_kf32_vf16_d64".into()),
        "{prompt:?}"
    );
    let prompt = names(exact.execute(&[(512, 0)], true).unwrap());
    assert!(prompt.contains(&"matvec_bf16_t8_silu".into()) && prompt.contains(&"attention_kf32_vf32_d64".into()));
    // Three single tokens run as four, which were recorded.
    let singles = names(tensor.execute(&[(1, 9), (1, 9), (1, 9)], false).unwrap());
    assert!(singles.is_empty(), "four are recorded at load: {singles:?}");
    let graphs = tensor.driver.calls().graphs_launched;
    assert!(tensor.decode(1, 10).unwrap().is_empty());
    assert_eq!(tensor.driver.calls().graphs_launched, graphs + 1);
}

#[test]
fn a_step_with_a_read_is_not_replayed() {
    let mut harness = Harness::new(&shape("0.5B"), 4096, (9, 0), Precision::Fast);
    harness.driver.freeze(false);
    let mut backend = CudaBackend::on(std::sync::Arc::new(harness.driver.clone()), &CudaOptions::new());
    let (mut x, y) = (backend.alloc(64).unwrap(), backend.alloc(64).unwrap());
    let key = StepKey { num_tokens: 1, num_seqs: 1, num_logits: 1, max_seqlen_q: 1, hidden: false, adapters: false };
    for _ in 0..3 {
        let before = harness.driver.calls().launched.len();
        backend
            .step(key, &Interrupt::default(), &mut |b| {
                b.add(Add { x: &mut x, y: &y, len: 64 })?;
                b.read(&x, &mut [0.0; 64])?;
                b.add(Add { x: &mut x, y: &y, len: 64 })
            })
            .unwrap();
        assert_eq!(harness.driver.calls().launched[before..], [Kernel::Add; 2]);
    }
    drop((x, y));
    harness.check();
    harness.decode(1, 0).unwrap();
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let mut backend = CudaBackend::on(std::sync::Arc::new(RecordingDriver::new((9, 0))), &CudaOptions::new());
    let (mut x, y) = (backend.alloc(16).unwrap(), backend.alloc(8).unwrap());
    let error = backend.add(Add { x: &mut x, y: &y, len: 16 }).unwrap_err().to_string();
    assert!(error.contains("add") && error.contains("`y` holds 32 bytes, 64 are needed"), "{error}");
    let other =
        CudaBackend::on(std::sync::Arc::new(RecordingDriver::new((9, 0))), &CudaOptions::new()).alloc(16).unwrap();
    let error = backend.add(Add { x: &mut x, y: &other, len: 16 }).unwrap_err().to_string();
    assert!(error.contains("belongs to another backend"), "{error}");
    let [narrow, wide] = [4, 8].map(|cols| MatrixPart::whole(Encoding::F32, 4, cols, &[0; 128]).unwrap());
    let uneven = [narrow, wide];
    let error = backend.load(&WeightView { name: "w", role: WeightRole::Linear, parts: &uneven }).unwrap_err();
    assert!(error.to_string().contains("part 1 of `w` has 8 columns, the first 4"), "{error}");
}

#[test]
fn a_fault_names_what_was_queued_and_ends_the_backend() {
    let driver = RecordingDriver::new((9, 0));
    let mut backend = CudaBackend::on(std::sync::Arc::new(driver.clone()), &CudaOptions::new());
    let (mut x, y) = (backend.alloc(16).unwrap(), backend.alloc(16).unwrap());
    backend.add(Add { x: &mut x, y: &y, len: 16 }).unwrap();
    let mut normed = backend.alloc(16).unwrap();
    backend.rms_norm(RmsNorm { x: &x, weight: &y, eps: 1e-6, out: &mut normed, hidden_size: 16, rows: 1 }).unwrap();
    driver.lose();
    let error = backend.synchronize().unwrap_err().to_string();
    for part in ["illegal memory access", "load it again", "2 kernels, from add to rms_norm"] {
        assert!(error.contains(part), "`{part}` in {error}");
    }
    // The driver gets no further calls.
    let launched = driver.calls().launched.len();
    let again = backend.add(Add { x: &mut x, y: &y, len: 16 }).unwrap_err().to_string();
    assert!(again.contains("illegal memory access") && driver.calls().launched.len() == launched, "{again}");
    assert!(backend.alloc(16).is_err());
}

#[test]
fn memory_that_is_short_is_named() {
    let mut backend = CudaBackend::on(std::sync::Arc::new(RecordingDriver::new((9, 0))), &CudaOptions::new());
    let error = backend.alloc(1 << 49).unwrap_err();
    assert!(matches!(&error, Error::OutOfMemory { bytes, .. } if *bytes == 1 << 51), "{error}");
    assert!(error.to_string().contains("recorder (cuda:0") && error.to_string().contains("`activations`"), "{error}");
    // The backend stays usable.
    backend.alloc(16).unwrap();
}

/// Only on a GPU, and last there: the fault loses everything that the process has on the GPU.
#[test]
fn a_faulting_kernel_ends_a_backend_and_the_next_one_opens() {
    if std::env::var("QWEN_CUDA_CARD").as_deref() != Ok("1") {
        return println!("skipped: QWEN_CUDA_CARD=1 is not set");
    }
    let mut backend = CudaBackend::new(CudaOptions::new()).unwrap();
    let nowhere = Address(1 << 60);
    let params = Rows { x: nowhere, out: nowhere, rows: 256, width: 1, ..Rows::default() }.pack();
    let launch = Launch { kernel: Kernel::Add, grid: [1, 1, 1], params, accessed: Vec::new() };
    // SAFETY: no array of ours is accessed; no GPU has the address.
    unsafe { backend.driver().launch(&launch) }.unwrap();
    let error = backend.synchronize().unwrap_err();
    assert!(matches!(error, Error::Device { .. }) && error.to_string().contains("load it again"), "{error}");
    drop(backend);
    // A model loads, with its recorded steps, and computes.
    let config = shape("0.5B");
    let mut next = CudaBackend::new(CudaOptions::new()).unwrap();
    let limits = limits(&config, 1024);
    let source = Zeros(Stored::As(Encoding::Bf16), vec![0; 1 << 17]);
    let model = Model::load(&mut next, ModelSpec::new(&config), &limits, &source, &mut |_, _| Ok(())).unwrap();
    let mut runner = ModelRunner::new(next, model, RopeStages::new(&config), limits);
    runner.warm_up().unwrap();
}

#[test]
fn dropping_everything_frees_everything() {
    let harness = Harness::new(&shape("0.5B"), 4096, (9, 0), Precision::Fast);
    let driver = harness.driver.clone();
    driver.freeze(false);
    drop(harness);
    let calls = driver.calls();
    assert_eq!((calls.live_bytes(), calls.violations), (0, Vec::new()));
}

#[test]
fn a_machine_without_a_driver_says_so() {
    if devices().is_ok() {
        eprintln!("skipped: there is a driver");
        return;
    }
    let error = CudaBackend::new(CudaOptions::new()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("CUDA"), "{error}");
    assert!(crate::free_bytes(0).is_err());
}
