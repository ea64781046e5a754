//! What [`Device::Auto`] means for a model: the GPUs that hold it, best first, and then the CPU; with why.

use qwen_core::checkpoint::Checkpoint;
use qwen_core::plan::Plan;
use qwen_core::{Config, Result};

use crate::device::Device;
use crate::options::EngineOptions;
use crate::place::Candidate;

/// A GPU that gives a conversation fewer positions than this, when no context was asked for, does not hold the model.
const SHORTEST_CONTEXT: usize = 4096;

/// A GPU that may be taken.
#[derive(Debug, Clone)]
struct Gpu {
    device: Device,
    name: String,
    /// Whether nobody knows how much memory it has, so that every plan would fit.
    of_unknown_memory: bool,
}

/// The devices to try, best first.
pub(crate) fn candidates(
    options: &EngineOptions,
    checkpoint: &Checkpoint,
    config: &Config,
    num_token_ids: usize,
) -> Vec<Candidate<Device>> {
    if !cfg!(any(feature = "cuda", feature = "wgpu")) {
        return vec![(Device::Cpu, "this build has no other device".into())];
    }
    let mut gpus = gpus();
    if options.memory_budget.is_some() {
        gpus.iter_mut().for_each(|gpu| gpu.of_unknown_memory = false);
    }
    let least_context = config.max_context().min(SHORTEST_CONTEXT).min(options.asked_context());
    choose(gpus, least_context, |device| options.plan_for(device, checkpoint, config, num_token_ids))
}

/// The GPUs of this machine, best first: cards by CUDA before others, since a card that both interfaces offer runs faster
/// kernels there.
fn gpus() -> Vec<Gpu> {
    let gpus = std::iter::empty();
    #[cfg(feature = "cuda")]
    let gpus = {
        let mut cards = qwen_backend_cuda::devices().unwrap_or_default();
        cards.sort_by_key(|card| std::cmp::Reverse((card.memory, card.compute_capability)));
        gpus.chain(cards.into_iter().map(|card| Gpu {
            device: Device::Cuda(card.ordinal),
            name: card.name,
            of_unknown_memory: false,
        }))
    };
    #[cfg(feature = "wgpu")]
    let gpus = gpus.chain(qwen_backend_wgpu::hardware_adapters().into_iter().map(|adapter| Gpu {
        device: Device::Wgpu(qwen_backend_wgpu::AdapterChoice::Index(adapter.index)),
        // What shares the host's memory is as well known as the CPU is.
        of_unknown_memory: adapter.memory.is_none() && !adapter.shares_host_memory(),
        name: adapter.name,
    }));
    gpus.collect()
}

/// Those of `gpus` whose plan fits with so many positions at least, and the CPU.
fn choose(gpus: Vec<Gpu>, least_context: usize, plan: impl Fn(&Device) -> Result<Plan>) -> Vec<Candidate<Device>> {
    let (mut candidates, mut passed) = (Vec::new(), Vec::new());
    for Gpu { device, name, of_unknown_memory } in gpus {
        let refusal = match plan(&device) {
            _ if of_unknown_memory => "how much memory it has is not known: name it, or set a memory budget".into(),
            Ok(plan) => match plan.check() {
                Ok(()) if plan.context >= least_context => {
                    let rank = if candidates.is_empty() { "the best" } else { "the next best" };
                    candidates.push((device, format!("{name} is {rank} GPU that holds the model")));
                    continue;
                }
                Ok(()) => format!("only a context of {} would fit", plan.context),
                Err(error) => error.to_string(),
            },
            // What is wrong with the checkpoint or the options is wrong on the CPU, too.
            Err(error) => error.to_string(),
        };
        passed.push(format!("{name}: {refusal}"));
    }
    let reason = match (candidates.is_empty(), passed.is_empty()) {
        (true, true) => "no hardware GPU was found".into(),
        (true, false) => format!("no GPU holds the model ({})", passed.join("; ")),
        (false, true) => "no GPU took the model".into(),
        (false, false) => format!("no GPU took the model ({})", passed.join("; ")),
    };
    candidates.push((Device::Cpu, reason));
    candidates
}

#[cfg(all(test, feature = "cpu", feature = "cuda"))]
mod tests {
    use std::path::Path;

    use super::*;

    fn gpu(ordinal: usize) -> Gpu {
        Gpu { device: Device::Cuda(ordinal), name: format!("GPU {ordinal}"), of_unknown_memory: false }
    }

    /// A plan of the demo checkpoint in so much memory, 1024 positions long where that fits.
    fn plan_in(bytes: u64) -> Plan {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
        crate::plan(demo, &EngineOptions::new().device(Device::Cpu).memory_budget(bytes)).unwrap()
    }

    /// GPUs 0, 1, 2: one that is too small, one with little room for a context, one with enough.
    fn plan(device: &Device) -> Result<Plan> {
        let whole = plan_in(1 << 40);
        Ok(match device {
            Device::Cuda(0) => plan_in(whole.weight_bytes / 2),
            Device::Cuda(1) => plan_in(whole.total_bytes - whole.kv_bytes / 2),
            _ => whole,
        })
    }

    #[test]
    fn the_first_gpu_that_holds_the_model_is_taken_and_the_cpu_after_all() {
        let chosen = choose((0..5).map(gpu).collect(), 1024, plan);
        let devices: Vec<&Device> = chosen.iter().map(|(device, _)| device).collect();
        assert_eq!(devices, [&Device::Cuda(2), &Device::Cuda(3), &Device::Cuda(4), &Device::Cpu]);
        assert_eq!(chosen[0].1, "GPU 2 is the best GPU that holds the model");
        assert_eq!(chosen[1].1, "GPU 3 is the next best GPU that holds the model");
        let reason = &chosen[3].1;
        assert!(reason.contains("GPU 0: needs") && reason.contains("GPU 1: only a context of"), "{reason}");
    }

    #[test]
    fn the_cpu_is_taken_with_the_reasons() {
        let alone = choose(Vec::new(), 1024, plan);
        assert_eq!(alone, [(Device::Cpu, "no hardware GPU was found".to_string())]);
        let too_small = choose(vec![gpu(0)], 1024, plan);
        assert!(too_small.len() == 1 && too_small[0].1.starts_with("no GPU holds the model (GPU 0: needs"));
    }

    #[test]
    fn a_gpu_of_unknown_memory_is_passed_over() {
        let unknown = Gpu { of_unknown_memory: true, ..gpu(3) };
        let chosen = choose(vec![unknown, gpu(4)], 1024, plan);
        assert_eq!(chosen[0].0, Device::Cuda(4));
        assert!(chosen[1].1.contains("GPU 3: how much memory it has is not known"), "{}", chosen[1].1);
    }
}
