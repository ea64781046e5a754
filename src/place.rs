//! Where a model is planned and loaded: a [`Device`] by name, or a backend that the program brings.

// A build with fewer devices has less to ask of the options.
#![cfg_attr(not(all(feature = "cpu", feature = "cuda", feature = "wgpu")), allow(unused_variables))]

use qwen_core::batch::Limits;
use qwen_core::checkpoint::Checkpoint;
use qwen_core::model::Model;
use qwen_core::model::spec::ModelSpec;
use qwen_core::rope::Rope;
use qwen_core::runner::{ModelRunner, Runner};
use qwen_core::{Backend, Config, Footprint, Result, memory};

use crate::device::Device;
use crate::options::EngineOptions;

/// A loaded model and the name of its device.
pub(crate) struct Loaded {
    pub(crate) runner: Box<dyn Runner>,
    pub(crate) device: String,
}

/// What a place has for a model.
pub(crate) struct Room {
    pub(crate) footprint: Box<dyn Footprint>,
    /// Bytes that may be taken, where that is known.
    pub(crate) available_bytes: Option<u64>,
}

/// A place that may be meant, and why, in a few words.
pub(crate) type Candidate<P> = (P, String);

/// Where a model is planned and loaded.
pub(crate) trait Place: Sized {
    /// The places that are meant, best first: each next one is there for the case that those before do not open.
    fn candidates(
        self,
        options: &EngineOptions,
        checkpoint: &Checkpoint,
        config: &Config,
        num_token_ids: usize,
    ) -> Result<Vec<Candidate<Self>>>;

    /// The device by name, when it is one.
    fn device(&self) -> Option<Device>;

    /// What there is for a model.
    fn room(&self, options: &EngineOptions) -> Result<Room>;

    /// The backend, ready to load.
    fn open(self, options: &EngineOptions) -> Result<Box<dyn Opened>>;
}

/// A backend that is open.
pub(crate) trait Opened {
    /// Load a model.
    fn load(
        self: Box<Self>,
        checkpoint: &Checkpoint,
        config: &Config,
        limits: &Limits,
        options: &mut EngineOptions,
    ) -> Result<Loaded>;
}

/// The first of `candidates` that opens, with why it is that one and not another. The error is that of the last.
pub(crate) fn first_to_open<P, T>(
    candidates: Vec<Candidate<P>>,
    mut open: impl FnMut(P) -> Result<T>,
) -> Result<(T, String)> {
    let mut refused = Vec::new();
    let mut rest = candidates.into_iter().peekable();
    while let Some((place, reason)) = rest.next() {
        match open(place) {
            Ok(opened) if refused.is_empty() => return Ok((opened, reason)),
            Ok(opened) => return Ok((opened, format!("{reason}; not opened: {}", refused.join("; ")))),
            Err(error) if rest.peek().is_none() => return Err(error),
            Err(error) => refused.push(error.to_string()),
        }
    }
    Err(qwen_core::Error::unsupported("this device", "no place to load on was named"))
}

/// A backend of the program's own.
pub(crate) struct Own<B>(pub(crate) B);

impl<B: Backend> Place for Own<B> {
    fn candidates(self, _: &EngineOptions, _: &Checkpoint, _: &Config, _: usize) -> Result<Vec<Candidate<Self>>> {
        Ok(vec![(self, "it is the program's own backend".into())])
    }

    fn device(&self) -> Option<Device> {
        None
    }

    fn room(&self, _: &EngineOptions) -> Result<Room> {
        let available_bytes = self.0.info().memory_available.or_else(host_bytes);
        Ok(Room { footprint: self.0.footprint(), available_bytes })
    }

    fn open(self, _: &EngineOptions) -> Result<Box<dyn Opened>> {
        Ok(Box::new(self.0))
    }
}

impl Place for Device {
    fn candidates(
        self,
        options: &EngineOptions,
        checkpoint: &Checkpoint,
        config: &Config,
        num_token_ids: usize,
    ) -> Result<Vec<Candidate<Self>>> {
        match self {
            Device::Auto => auto(options, checkpoint, config, num_token_ids),
            device => Ok(vec![(device, "the program asked for it".into())]),
        }
    }

    fn device(&self) -> Option<Device> {
        Some(self.clone())
    }

    fn room(&self, options: &EngineOptions) -> Result<Room> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu => {
                Ok(Room { footprint: Box::new(qwen_backend_cpu::CpuFootprint), available_bytes: host_bytes() })
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let available_bytes = Some(qwen_backend_cuda::free_bytes(*ordinal)?);
                let card = qwen_backend_cuda::cards().into_iter().find(|card| card.ordinal == *ordinal);
                let card = card.ok_or_else(|| self.absent())?;
                let footprint = qwen_backend_cuda::CudaFootprint::on(&card, options.precision);
                Ok(Room { footprint: Box::new(footprint), available_bytes })
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => {
                let info = qwen_backend_wgpu::AdapterInfo::of(adapter)?;
                let host = if info.shares_host_memory() { host_bytes() } else { None };
                let footprint = qwen_backend_wgpu::WgpuFootprint::on(&info, options.wgpu_capabilities);
                let available_bytes = info.memory.into_iter().chain(host).min();
                Ok(Room { footprint: Box::new(footprint), available_bytes })
            }
            _ => Err(self.absent()),
        }
    }

    fn open(self, options: &EngineOptions) -> Result<Box<dyn Opened>> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu => Ok(Box::new(qwen_backend_cpu::CpuBackend::new(options.cpu())?)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Ok(Box::new(qwen_backend_cuda::CudaBackend::new(options.cuda(ordinal))?)),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => Ok(Box::new(qwen_backend_wgpu::WgpuBackend::new(options.wgpu(&adapter))?)),
            _ => Err(self.absent()),
        }
    }
}

/// A GPU that gives a conversation fewer positions than this, when no context was asked for, does not hold the model.
const SHORTEST_CONTEXT: usize = 4096;

/// The GPUs that [`Device::Auto`] may take, best first, and their names: cards by CUDA before others, since a card that
/// both interfaces offer runs faster kernels there.
fn gpus() -> Vec<(Device, String)> {
    let gpus = std::iter::empty();
    #[cfg(feature = "cuda")]
    let gpus = {
        let mut cards = qwen_backend_cuda::cards();
        cards.sort_by_key(|card| std::cmp::Reverse((card.memory, card.compute_capability)));
        gpus.chain(cards.into_iter().map(|card| (Device::Cuda(card.ordinal), card.name)))
    };
    #[cfg(feature = "wgpu")]
    let gpus = gpus.chain(
        qwen_backend_wgpu::hardware_adapters()
            .into_iter()
            .map(|adapter| (Device::Wgpu(qwen_backend_wgpu::AdapterChoice::Index(adapter.index)), adapter.name)),
    );
    gpus.collect()
}

/// What [`Device::Auto`] means for a model: the GPUs that hold it, best first, and then the CPU.
fn auto(
    options: &EngineOptions,
    checkpoint: &Checkpoint,
    config: &Config,
    num_token_ids: usize,
) -> Result<Vec<Candidate<Device>>> {
    if !cfg!(any(feature = "cuda", feature = "wgpu")) {
        return Ok(vec![(Device::Cpu, "this build has no other device".into())]);
    }
    let (mut candidates, mut passed) = (Vec::new(), Vec::new());
    for (device, name) in gpus() {
        let refusal = match options.plan_for(&device, checkpoint, config, num_token_ids) {
            Ok(plan) => match plan.check() {
                Ok(()) if plan.context >= config.max_context().min(SHORTEST_CONTEXT).min(options.asked_context()) => {
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
        (false, true) => "no GPU opens".into(),
        (false, false) => format!("no GPU that holds the model opens ({})", passed.join("; ")),
    };
    candidates.push((Device::Cpu, reason));
    Ok(candidates)
}

fn host_bytes() -> Option<u64> {
    memory::available_memory().map(|memory| memory.available)
}

impl<B: Backend> Opened for B {
    fn load(
        mut self: Box<Self>,
        checkpoint: &Checkpoint,
        config: &Config,
        limits: &Limits,
        options: &mut EngineOptions,
    ) -> Result<Loaded> {
        let device = self.info().name;
        let spec = ModelSpec::new(config);
        let model = Model::load(&mut *self, spec, limits, checkpoint, &mut |share| options.report(share))?;
        let mut runner = ModelRunner::new(*self, model, Rope::new(config), limits.clone());
        runner.warm_up()?;
        Ok(Loaded { runner: Box::new(runner), device })
    }
}

#[cfg(test)]
mod tests {
    use qwen_core::Error;

    use super::*;

    fn refusal(place: &str) -> Error {
        Error::Device { device: place.into(), op: "open".into(), reason: "the driver refused a device".into() }
    }

    fn candidates(places: &[&'static str]) -> Vec<Candidate<&'static str>> {
        places.iter().map(|place| (*place, format!("{place} is there"))).collect()
    }

    #[test]
    fn the_next_candidate_opens_when_a_driver_refuses_and_the_reason_says_so() {
        let open = |place| if place == "bad" { Err(refusal(place)) } else { Ok(place) };
        let first = first_to_open(candidates(&["good", "bad"]), open).unwrap();
        assert_eq!(first, ("good", "good is there".into()));
        let second = first_to_open(candidates(&["bad", "good"]), open).unwrap();
        assert_eq!(second.0, "good");
        assert_eq!(second.1, "good is there; not opened: bad: open: the driver refused a device");
        let third = first_to_open(candidates(&["bad", "bad", "good", "bad"]), open).unwrap();
        assert_eq!(third.1.matches("the driver refused").count(), 2);
    }

    #[test]
    fn the_last_refusal_is_the_error() {
        let refused = first_to_open(candidates(&["gpu", "cpu"]), |place| Err::<(), _>(refusal(place)));
        assert!(matches!(refused, Err(Error::Device { device, .. }) if device == "cpu"));
    }
}
