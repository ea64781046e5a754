//! Resolves [`Device::Auto`] for a model: the GPUs that can hold it, best first, then the CPU, or GPUs and CPU together if
//! neither can; and the fallback from one to the next while loading.

use qwen_core::model::plan::Plan;
use qwen_core::{Error, Result};

use super::{Device, Gpu, KINDS, Split};
use crate::events::warn;

/// The shortest context that a GPU must have memory for, if the program did not ask for a context.
const SHORTEST_CONTEXT: usize = 4096;

/// A device that may be loaded on.
#[derive(Debug, PartialEq)]
pub(crate) struct Candidate<T> {
    pub(crate) device: T,
    /// Why it is a candidate, in a few words.
    pub(crate) reason: String,
}

/// What the choice depends on besides the machine's devices.
pub(crate) struct Wanted {
    /// The context that the program asked for, exactly or at most.
    pub(crate) context: Option<usize>,
    /// The shortest context that it accepts.
    pub(crate) context_at_least: Option<usize>,
    /// The longest context of the model.
    pub(crate) model_context: usize,
    /// Whether the program set a memory budget: a plan is then meaningful even for a GPU of unknown memory size.
    pub(crate) has_memory_budget: bool,
}

/// The devices to try, best first.
pub(crate) fn candidates(wanted: &Wanted, plan: impl Fn(&Device) -> Result<Plan>) -> Vec<Candidate<Device>> {
    if !cfg!(any(feature = "cuda", feature = "wgpu")) {
        return vec![Candidate { device: Device::Cpu, reason: "this build has no other device".into() }];
    }
    let mut gpus: Vec<Gpu> = KINDS.iter().flat_map(|kind| (kind.gpus)()).collect();
    gpus.iter_mut().for_each(|gpu| gpu.has_known_memory |= wanted.has_memory_budget);
    let by_default = wanted.model_context.min(SHORTEST_CONTEXT).min(wanted.context.unwrap_or(usize::MAX));
    let least_context = wanted.context_at_least.unwrap_or(by_default);
    choose(gpus, least_context, plan)
}

/// The GPUs whose plan fits `least_context` positions, then the CPU. If no GPU has one, GPUs and CPU together are the
/// choice where the CPU does not hold the model alone, and an offer where it does.
fn choose(gpus: Vec<Gpu>, least_context: usize, plan: impl Fn(&Device) -> Result<Plan>) -> Vec<Candidate<Device>> {
    let (mut candidates, mut refused) = (Vec::new(), Vec::new());
    let together = together(&gpus);
    let fits = |device: &Device| {
        let plan = plan(device).and_then(|plan| plan.check().map(|()| plan)).ok()?;
        Some(plan).filter(|plan| plan.context >= least_context)
    };
    for Gpu { device, name, has_known_memory } in gpus {
        // A mistake in the checkpoint or the options fails on the CPU as well, and is reported there.
        let refusal = match plan(&device).and_then(|plan| plan.check().map(|()| plan)) {
            _ if !has_known_memory => "the size of its memory is unknown: name it, or set a memory budget".into(),
            Ok(plan) if plan.context >= least_context => {
                let rank = if candidates.is_empty() { "the best" } else { "the next best" };
                candidates.push(Candidate { device, reason: format!("{name} is {rank} GPU that holds the model") });
                continue;
            }
            Ok(plan) => format!("only a context of {} would fit", plan.context),
            Err(error) => error.to_string(),
        };
        refused.push(format!("{name}: {refusal}"));
    }
    let together = together.filter(|_| candidates.is_empty()).and_then(|device| {
        let gpu_has_layers = |plan: &Plan| plan.parts.first().is_some_and(|part| !part.layers.is_empty());
        fits(&device).filter(gpu_has_layers).map(|plan| (device, plan))
    });
    let mut reason = match (candidates.is_empty(), refused.is_empty()) {
        (true, true) => "no hardware GPU was found".into(),
        (true, false) => format!("no GPU holds the model ({})", refused.join("; ")),
        (false, true) => "no GPU loaded the model".into(),
        (false, false) => format!("no GPU loaded the model ({})", refused.join("; ")),
    };
    match together {
        // It can be slower than its figures say, since devices wait for each other: the program decides.
        Some((device, plan)) if fits(&Device::Cpu).is_some() => {
            let parts: Vec<String> = plan.parts.iter().map(ToString::to_string).collect();
            reason += &format!("; `{device}` would share it: {}", parts.join("; "));
        }
        Some((device, _)) => {
            let reason = format!("no device holds the model alone ({})", refused.join("; "));
            candidates.push(Candidate { device, reason });
        }
        None => {}
    }
    candidates.push(Candidate { device: Device::Cpu, reason });
    candidates
}

/// The devices that could share a model: the GPUs of the best kind, since another kind may be the same ones under other
/// names, and the CPU.
fn together(gpus: &[Gpu]) -> Option<Device> {
    let mut known = gpus.iter().filter(|gpu| gpu.has_known_memory).map(|gpu| &gpu.device).peekable();
    let kind = std::mem::discriminant(*known.peek()?);
    let same_kind = known.filter(|device| std::mem::discriminant(*device) == kind);
    let split = same_kind.fold(Split::new(), |split, device| split.fill(device.clone()));
    let split = if cfg!(feature = "cpu") { split.fill(Device::Cpu) } else { split };
    (split.parts().len() > 1).then_some(Device::Split(split))
}

/// The result of the first candidate that loads without an error, and why it was chosen. The error is that of the last
/// candidate, or the first one that would be the same on every device.
pub(crate) fn first_that_loads<D, T>(
    candidates: Vec<Candidate<D>>,
    mut load: impl FnMut(D) -> Result<T>,
) -> Result<(T, String)> {
    let mut refused = Vec::new();
    let mut rest = candidates.into_iter().peekable();
    while let Some(Candidate { device, reason }) = rest.next() {
        match load(device) {
            Ok(loaded) if refused.is_empty() => return Ok((loaded, reason)),
            Ok(loaded) => return Ok((loaded, format!("{reason}; not loaded: {}", refused.join("; ")))),
            Err(error) if rest.peek().is_none() || !another_may_load(&error) => return Err(error),
            Err(error) => {
                warn!("a device could not load the model, trying the next: {error}");
                refused.push(error.to_string());
            }
        }
    }
    Err(Error::unsupported("an engine without a device", "no device was named"))
}

/// Whether another device may succeed: the error is about this device, not about the checkpoint or the options.
fn another_may_load(error: &Error) -> bool {
    matches!(
        error,
        Error::Device { .. } | Error::DoesNotFit { .. } | Error::OutOfMemory { .. } | Error::Unsupported { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(device: &str) -> Error {
        Error::Device { device: device.into(), op: "open".into(), reason: "the driver refused a device".into() }
    }

    fn named(devices: &[&'static str]) -> Vec<Candidate<&'static str>> {
        let candidate = |device: &&'static str| Candidate { device: *device, reason: format!("{device} is there") };
        devices.iter().map(candidate).collect()
    }

    #[test]
    fn the_next_candidate_loads_when_a_driver_refuses_and_the_reason_says_so() {
        let load = |device| if device == "bad" { Err(refusal(device)) } else { Ok(device) };
        let first = first_that_loads(named(&["good", "bad"]), load).unwrap();
        assert_eq!(first, ("good", "good is there".into()));
        let second = first_that_loads(named(&["bad", "good"]), load).unwrap();
        assert_eq!(second.0, "good");
        assert_eq!(second.1, "good is there; not loaded: bad: open: the driver refused a device");
        let third = first_that_loads(named(&["bad", "bad", "good", "bad"]), load).unwrap();
        assert_eq!(third.1.matches("the driver refused").count(), 2);
    }

    #[test]
    fn the_last_refusal_is_the_error() {
        let refused = first_that_loads(named(&["gpu", "cpu"]), |device| Err::<(), _>(refusal(device)));
        assert!(matches!(refused, Err(Error::Device { device, .. }) if device == "cpu"));
    }

    #[test]
    fn a_gpu_that_runs_out_of_memory_gives_way_and_a_damaged_checkpoint_does_not() {
        let exhausted = Error::OutOfMemory { device: "gpu".into(), what: "w".into(), bytes: 1 };
        let mut failures = vec![Error::argument("context", "damaged"), exhausted];
        let loaded = first_that_loads(named(&["gpu", "cpu"]), |device| match device {
            "gpu" => Err(failures.pop().unwrap()),
            device => Ok(device),
        });
        assert_eq!(loaded.unwrap().0, "cpu");
        let failed = first_that_loads(named(&["gpu", "cpu"]), |_| Err::<(), _>(failures.pop().unwrap()));
        assert!(matches!(failed, Err(Error::InvalidArgument { .. })), "{failed:?}");
    }
}

#[cfg(all(test, feature = "cpu", feature = "cuda"))]
mod choice_tests {
    use std::path::Path;

    use super::*;
    use crate::options::EngineOptions;

    fn gpu(ordinal: usize) -> Gpu {
        Gpu { device: Device::Cuda(ordinal), name: format!("GPU {ordinal}"), has_known_memory: true }
    }

    /// A plan of the demo checkpoint in this much memory, with 1024 positions if they fit.
    fn plan_in(bytes: u64) -> Plan {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
        crate::plan(demo, &EngineOptions::new().device(Device::Cpu).memory_budget(bytes)).unwrap()
    }

    /// As [`plan`], with devices that share the model if they have to, and a CPU that holds it alone or does not.
    fn plan_with_cpu(cpu_bytes: u64) -> impl Fn(&Device) -> Result<Plan> {
        move |device| {
            let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
            let split = EngineOptions::new().device("split:cpu=2,cpu=4".parse().unwrap());
            Ok(match device {
                Device::Split(_) => crate::plan(demo, &split.memory_budget(1 << 40)).unwrap(),
                Device::Cpu => plan_in(cpu_bytes),
                gpu => plan(gpu)?,
            })
        }
    }

    #[test]
    fn devices_share_a_model_that_none_holds_alone() {
        let chosen = choose(vec![gpu(0), gpu(1)], 1024, plan_with_cpu(1000));
        let devices: Vec<String> = chosen.iter().map(|candidate| candidate.device.to_string()).collect();
        assert_eq!(devices, ["split:cuda:0,cuda:1,cpu", "cpu"]);
        let reason = &chosen[0].reason;
        assert!(reason.starts_with("no device holds the model alone (GPU 0: needs") && reason.contains("GPU 1: only"));
        // One that holds it is preferred.
        assert_eq!(choose(vec![gpu(0), gpu(2)], 1024, plan_with_cpu(1000))[0].device, Device::Cuda(2));
    }

    #[test]
    fn sharing_is_offered_with_what_it_takes_where_the_cpu_holds_the_model() {
        let chosen = choose(vec![gpu(0)], 1024, plan_with_cpu(1 << 40));
        assert_eq!(chosen.len(), 1);
        let reason = &chosen[0].reason;
        assert!(
            chosen[0].device == Device::Cpu && reason.contains("; `split:cuda:0,cpu` would share it: "),
            "{reason}"
        );
        assert!(reason.contains("layers 0 to 1 on ") && reason.contains("a token reads "), "{reason}");
        // Without memory of a known size nothing is planned.
        let unknown = Gpu { has_known_memory: false, ..gpu(0) };
        assert!(!choose(vec![unknown], 1024, plan_with_cpu(1 << 40))[0].reason.contains("split:"));
        assert!(together(&[]).is_none());
    }

    /// GPUs 0, 1, 2: one that is too small, one with memory for a short context only, one with enough.
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
        let devices: Vec<&Device> = chosen.iter().map(|candidate| &candidate.device).collect();
        assert_eq!(devices, [&Device::Cuda(2), &Device::Cuda(3), &Device::Cuda(4), &Device::Cpu]);
        assert_eq!(chosen[0].reason, "GPU 2 is the best GPU that holds the model");
        assert_eq!(chosen[1].reason, "GPU 3 is the next best GPU that holds the model");
        let reason = &chosen[3].reason;
        assert!(reason.contains("GPU 0: needs") && reason.contains("GPU 1: only a context of"), "{reason}");
    }

    #[test]
    fn the_cpu_is_taken_with_the_reasons() {
        let alone = choose(Vec::new(), 1024, plan);
        assert_eq!(alone, [Candidate { device: Device::Cpu, reason: "no hardware GPU was found".into() }]);
        let too_small = choose(vec![gpu(0)], 1024, plan);
        assert!(too_small.len() == 1 && too_small[0].reason.starts_with("no GPU holds the model (GPU 0: needs"));
    }

    #[test]
    fn a_gpu_of_unknown_memory_is_passed_over() {
        let unknown = Gpu { has_known_memory: false, ..gpu(3) };
        let chosen = choose(vec![unknown, gpu(4)], 1024, plan);
        assert_eq!(chosen[0].device, Device::Cuda(4));
        assert!(chosen[1].reason.contains("GPU 3: the size of its memory is unknown"), "{}", chosen[1].reason);
    }
}
