//! What the example `bench` needs besides the public API: the ceilings of a device, and conversations that begin at a
//! depth. Not a stable API: it may change at any time.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use qwen_core::backend::{Interrupt, Limits};
pub use qwen_core::ceilings::Ceilings;
use qwen_core::model::batch::{Batch, BlockId, CopyBlock, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::plan::Plan;
use qwen_core::model::runner::Runner;

use crate::device::{Device, Split};
use crate::engine::Engine;
use crate::error::Result;
use crate::options::EngineOptions;

/// Measures the ceilings of a device, repeatedly.
pub trait CeilingMeter: fmt::Debug {
    /// Measure all ceilings within about `budget`.
    ///
    /// # Errors
    /// What the device reports.
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings>;
}

/// A meter for `device`, opened with the threads and the capabilities of `options`. It takes up to a gigabyte of host
/// memory, or two gigabytes of a GPU's.
///
/// # Errors
/// When the memory or the device is not available, and for [`Device::Auto`] and [`Device::Split`], which are resolved only
/// with a model: see [`crate::Engine::device`] and [`split_meter`].
pub fn ceiling_meter(device: &Device, options: &EngineOptions) -> Result<Box<dyn CeilingMeter>> {
    let _ = options;
    match device {
        #[cfg(feature = "cpu")]
        Device::Cpu => {
            let threads = options.settings.threads.unwrap_or_else(qwen_backend_cpu::physical_cores);
            Ok(Box::new(qwen_backend_cpu::ceilings::CeilingMeter::new(threads)?))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let options = qwen_backend_cuda::CudaOptions::new().ordinal(*ordinal);
            Ok(Box::new(qwen_backend_cuda::ceilings::CeilingMeter::new(&options)?))
        }
        #[cfg(feature = "wgpu")]
        Device::Wgpu(adapter) => {
            let capabilities = options.settings.wgpu_capabilities;
            let options = qwen_backend_wgpu::WgpuOptions::new().adapter(adapter.clone()).capabilities(capabilities);
            Ok(Box::new(qwen_backend_wgpu::ceilings::CeilingMeter::new(&options)?))
        }
        _ => Err(device.unsupported().into()),
    }
}

/// A meter for the devices of `split`, which hold a model as `plan` says. Its rates are those at which all of them
/// together read the weights of a token and multiply a prompt: each its own part, while the others wait.
///
/// # Errors
/// As [`ceiling_meter`], for each device.
pub fn split_meter(split: &Split, plan: &Plan, options: &EngineOptions) -> Result<Box<dyn CeilingMeter>> {
    let meter = |part: &crate::device::SplitPart| ceiling_meter(&part.device, options);
    let meters = split.parts().iter().map(meter).collect::<Result<Vec<_>>>()?;
    let loaded = plan.parts.iter().filter(|part| !part.layers.is_empty());
    let shares = loaded.map(|part| (part.plan.read_bytes as f64, part.layers.len() as f64));
    Ok(Box::new(SplitMeter { parts: meters.into_iter().zip(shares).collect() }))
}

/// The meters of several devices, with the bytes of weights and the layers of each.
#[derive(Debug)]
struct SplitMeter {
    parts: Vec<(Box<dyn CeilingMeter>, (f64, f64))>,
}

impl CeilingMeter for SplitMeter {
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings> {
        let budget = budget / self.parts.len().max(1) as u32;
        let measured = self.parts.iter_mut().map(|(meter, share)| Ok((meter.measure(budget)?, *share)));
        let measured = measured.collect::<qwen_core::Result<Vec<_>>>()?;
        // The rate of all the work, where each device does its part of it: `None` if one has no such arithmetic.
        let rate = |work: fn(&(f64, f64)) -> f64, rate: fn(&Ceilings) -> Option<f64>| {
            let all: f64 = measured.iter().map(|(_, share)| work(share)).sum();
            let seconds: Option<f64> = measured.iter().map(|(found, share)| Some(work(share) / rate(found)?)).sum();
            seconds.map(|seconds| all / seconds)
        };
        Ok(Ceilings {
            memory_bytes_per_second: rate(|(read, _)| *read, |c| Some(c.memory_bytes_per_second)).unwrap_or_default(),
            copy_bytes_per_second: None,
            f32_flops_per_second: rate(|(_, layers)| *layers, |c| Some(c.f32_flops_per_second)).unwrap_or_default(),
            f16_flops_per_second: rate(|(_, layers)| *layers, |c| c.f16_flops_per_second),
            f16_matrix_flops_per_second: rate(|(_, layers)| *layers, |c| c.f16_matrix_flops_per_second),
            bf16_flops_per_second: rate(|(_, layers)| *layers, |c| c.bf16_flops_per_second),
            int8_ops_per_second: rate(|(_, layers)| *layers, |c| c.int8_ops_per_second),
        })
    }
}

#[cfg(feature = "cpu")]
impl CeilingMeter for qwen_backend_cpu::ceilings::CeilingMeter {
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings> {
        Ok(qwen_backend_cpu::ceilings::CeilingMeter::measure(self, budget))
    }
}

#[cfg(feature = "cuda")]
impl CeilingMeter for qwen_backend_cuda::ceilings::CeilingMeter {
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings> {
        self.measure(budget)
    }
}

#[cfg(feature = "wgpu")]
impl CeilingMeter for qwen_backend_wgpu::ceilings::CeilingMeter {
    fn measure(&mut self, budget: Duration) -> qwen_core::Result<Ceilings> {
        self.measure(budget)
    }
}

/// Load the model at `path` as an engine whose conversations, at most `batch` at a time, begin after `depth` positions,
/// rounded down to whole K/V blocks. Their K/V is that of one block of tokens, repeated, so that no long prompt has to
/// be computed. What follows takes as long as after any text of that length, but its values are meaningless.
///
/// # Errors
/// As [`EngineOptions::load`], and when the context of `options` is not longer than `depth`.
pub fn load_at_depth(options: EngineOptions, path: &Path, depth: usize, batch: usize) -> Result<Engine> {
    options.load_wrapped(path, |runner| Ok(Box::new(AtDepth::new(runner, depth, batch)?)))
}

/// Runs batches on `runner` as if a prefix had been computed before each sequence.
struct AtDepth {
    runner: Box<dyn Runner>,
    /// The limits without the prefixes.
    limits: Limits,
    /// The blocks of each sequence's prefix.
    prefixes: Vec<Vec<BlockId>>,
    batch: Batch,
}

impl AtDepth {
    fn new(mut runner: Box<dyn Runner>, depth: usize, batch: usize) -> Result<Self> {
        let mut limits = runner.limits().clone();
        let block_size = limits.block_size;
        let blocks = depth / block_size;
        let too_deep = || qwen_core::Error::argument("depth", "leaves no room for the conversations");
        let taken = blocks.checked_mul(batch).ok_or_else(too_deep)?;
        let left = limits.num_blocks.checked_sub(taken).filter(|left| *left > 0).ok_or_else(too_deep)?;
        limits.num_blocks = left;
        limits.max_model_len =
            limits.max_model_len.checked_sub(blocks * block_size).filter(|len| *len > 0).ok_or_else(too_deep)?;
        let ids = (left..left + taken).map(|block| BlockId(block as u32)).collect::<Vec<_>>();
        if let [first, others @ ..] = &ids[..] {
            let tokens: Vec<u32> = (0..block_size).map(|id| (id % limits.vocab_size) as u32).collect();
            let mut step = Batch::new(block_size);
            let (block_table, logits) = (std::slice::from_ref(first), WantLogits::Argmax);
            step.push(SequenceStep {
                input_ids: &tokens,
                num_computed_tokens: 0,
                block_table,
                logits,
                rope_stage: 0,
                adapter: None,
            })?;
            runner.execute(&step, &mut StepOutput::default(), &Interrupt::default())?;
            let copies: Vec<_> = others.iter().map(|to| CopyBlock { from: *first, to: *to }).collect();
            runner.copy_blocks(&copies)?;
        }
        let prefixes = (0..batch).map(|n| ids[n * blocks..][..blocks].to_vec()).collect();
        Ok(AtDepth { runner, limits, prefixes, batch: Batch::new(block_size) })
    }
}

impl Runner for AtDepth {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> qwen_core::Result<()> {
        let AtDepth { runner, limits, prefixes, batch: deep } = self;
        if batch.num_seqs() > prefixes.len() {
            let reason = format!("{} conversations, the engine was loaded for {}", batch.num_seqs(), prefixes.len());
            return Err(qwen_core::Error::argument("batch", reason));
        }
        let before = prefixes.first().map_or(0, Vec::len);
        deep.clone_from(batch);
        let positions = (before * limits.block_size) as u32;
        deep.positions.iter_mut().chain(&mut deep.context_lens).for_each(|position| *position += positions);
        deep.block_tables.clear();
        deep.cu_blocks.truncate(1);
        for (prefix, own) in prefixes.iter().zip(batch.cu_blocks.windows(2)) {
            deep.block_tables.extend(prefix.iter().map(|block| block.0));
            deep.block_tables.extend(&batch.block_tables[own[0] as usize..own[1] as usize]);
            deep.cu_blocks.push(deep.block_tables.len() as u32);
        }
        runner.execute(deep, output, interrupt)
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> qwen_core::Result<()> {
        self.runner.copy_blocks(copies)
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use crate::generate::GenerateOptions;

    const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");

    #[test]
    fn a_conversation_at_a_depth_sees_what_lies_before_it() {
        let options = || EngineOptions::new().context(256);
        let answer = |engine: &Engine, ids: Vec<u32>| -> Vec<u32> {
            let options = GenerateOptions::new().greedy().ignore_eos(true).max_new_tokens(20);
            engine.generate_ids(ids, &options).unwrap().collect::<Result<_>>().unwrap()
        };
        let own = [70, 71, 72];
        let whole = options().load(DEMO).unwrap();
        // One block, so that the prefix is the text of its tokens.
        let block = 32;
        let expected = answer(&whole, (0..block).chain(own).collect());
        assert_ne!(expected, answer(&whole, own.into()), "the prefix makes a difference");
        let deep = load_at_depth(options(), DEMO.as_ref(), block as usize + 5, 1).unwrap();
        assert_eq!(answer(&deep, own.into()), expected);
    }

    #[test]
    fn the_rate_of_a_split_is_that_of_its_parts_one_after_the_other() {
        #[derive(Debug)]
        struct Fixed(f64, Option<f64>);
        impl CeilingMeter for Fixed {
            fn measure(&mut self, _: Duration) -> qwen_core::Result<Ceilings> {
                let (memory_bytes_per_second, bf16_flops_per_second) = (self.0, self.1);
                Ok(Ceilings {
                    memory_bytes_per_second,
                    bf16_flops_per_second,
                    f32_flops_per_second: 8.0,
                    ..Ceilings::default()
                })
            }
        }
        let meter = |bf16| SplitMeter {
            parts: vec![
                (Box::new(Fixed(300.0, bf16)) as Box<dyn CeilingMeter>, (600.0, 3.0)),
                (Box::new(Fixed(20.0, Some(4.0))), (40.0, 1.0)),
            ],
        };
        let found = meter(Some(6.0)).measure(Duration::ZERO).unwrap();
        // Two seconds each for 640 bytes; 4 layers in 3/6 + 1/4 units of time.
        assert_eq!((found.memory_bytes_per_second, found.f32_flops_per_second), (160.0, 8.0));
        assert_eq!(found.bf16_flops_per_second, Some(4.0 / 0.75));
        assert_eq!(meter(None).measure(Duration::ZERO).unwrap().bf16_flops_per_second, None);
        let model = EngineOptions::new().device("split:cpu=2,cpu=4".parse().unwrap()).context(64);
        let plan = crate::plan(DEMO, &model).unwrap();
        let Device::Split(split) = &model.device else { panic!("{:?}", model.device) };
        assert!(split_meter(split, &plan, &model).is_ok());
    }

    #[test]
    fn a_depth_without_room_is_an_error() {
        for (depth, batch) in [(256, 1), (128, 2), (usize::MAX, 1), (usize::MAX, usize::MAX)] {
            let error = load_at_depth(EngineOptions::new().context(256), DEMO.as_ref(), depth, batch).unwrap_err();
            assert!(error.to_string().contains("depth"), "{error}");
        }
    }
}

/// The grammars of a tokenizer, without an engine: for what is measured and tested apart from a model.
#[cfg(feature = "structure")]
#[derive(Debug)]
pub struct Grammars {
    structure: crate::structure::Structure,
    tokenizer: qwen_tokenizer::Tokenizer,
}

#[cfg(feature = "structure")]
impl Grammars {
    /// Those of this tokenizer. Masks are computed by whoever asks for them.
    pub fn new(tokenizer: qwen_tokenizer::Tokenizer) -> Self {
        Grammars { structure: crate::structure::Structure::default(), tokenizer }
    }

    /// What a grammar allows in texts that end with one of these tokens.
    ///
    /// # Errors
    /// What is wrong with the grammar.
    pub fn constraint(
        &self,
        grammar: &crate::Grammar,
        stop_token_ids: &[u32],
    ) -> Result<std::sync::Arc<dyn qwen_core::engine::sampling::Constraint>> {
        self.structure.constraint(grammar, stop_token_ids, &self.tokenizer, 0)
    }
}
