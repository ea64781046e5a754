//! Where a model is planned and loaded: a [`Device`] by name, or a backend that the program brings.
//!
//! A device with an interconnect of its own works with other ranks by it: see [`Open::group`]. Which devices
//! [`Device::Auto`] means is said in `auto.rs`.

// A build with fewer devices has less to ask of the options.
#![cfg_attr(not(all(feature = "cpu", feature = "cuda", feature = "wgpu")), allow(unused_variables))]

use std::sync::Arc;

use qwen_core::batch::Limits;
use qwen_core::checkpoint::Checkpoint;
use qwen_core::collective::Collective;
use qwen_core::model::Model;
use qwen_core::model::spec::ModelSpec;
use qwen_core::ranks::{LeaderRunner, Link, TcpGroup, follow};
use qwen_core::rope::Rope;
use qwen_core::runner::{ModelRunner, Runner};
use qwen_core::{Backend, Config, Footprint, Result, memory};

use crate::auto;
use crate::device::Device;
use crate::options::EngineOptions;

/// What is to be loaded.
pub(crate) struct Job<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) config: &'a Config,
    pub(crate) limits: &'a Limits,
    /// The model, or this rank's part of it.
    pub(crate) spec: ModelSpec,
    /// The other ranks, where there are any.
    pub(crate) link: Option<Arc<Link>>,
}

/// What this process does with what it has loaded.
pub(crate) enum Part {
    /// It has the engine: alone, or as rank 0.
    Engine(Box<dyn Runner>),
    /// It computes with rank 0, until that is done.
    Follower(Box<dyn FnOnce() -> Result<()>>),
}

/// What a place has for a model.
pub(crate) struct Room {
    pub(crate) footprint: Box<dyn Footprint>,
    /// Prompt tokens of a step that suit it.
    pub(crate) prompt_chunk: usize,
    /// Bytes that may be taken, where that is known.
    pub(crate) available_bytes: Option<u64>,
}

/// Beyond it a chunk gains little on the CPU, and delays running answers.
const PROMPT_CHUNK: usize = 512;
/// Fewer tokens leave parts of a large card idle.
#[cfg(feature = "cuda")]
const CARD_PROMPT_CHUNK: usize = 2048;

/// What a card's driver takes of its own while a model runs: compiled kernels, recorded steps, pages that are not full.
#[cfg(feature = "cuda")]
const CARD_RESERVE: u64 = 256 << 20;
/// Beside it the buffers of sums over cards.
#[cfg(feature = "cuda")]
const CARD_RESERVE_OF_RANKS: u64 = 768 << 20;

/// A place that may be meant, and why, in a few words.
pub(crate) type Candidate<P> = (P, String);

/// Where a model is planned and loaded.
pub(crate) trait Place: Sized {
    /// The places that are meant, best first: each next one is there for the case that those before do not load the model.
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

/// A device that is open.
pub(crate) trait Opened {
    /// Load a model or a part of it, and say the device's name.
    fn load(self: Box<Self>, job: Job<'_>, options: &EngineOptions) -> Result<(Part, String)>;
}

/// What the first of `candidates` loads that does, with why it is that one and not another. The error is that of the
/// last, or one that no other place would change.
pub(crate) fn first_that_loads<P, T>(
    candidates: Vec<Candidate<P>>,
    mut load: impl FnMut(P) -> Result<T>,
) -> Result<(T, String)> {
    let mut refused = Vec::new();
    let mut rest = candidates.into_iter().peekable();
    while let Some((place, reason)) = rest.next() {
        match load(place) {
            Ok(loaded) if refused.is_empty() => return Ok((loaded, reason)),
            Ok(loaded) => return Ok((loaded, format!("{reason}; not loaded: {}", refused.join("; ")))),
            Err(error) if rest.peek().is_none() || !is_of_the_place(&error) => return Err(error),
            Err(error) => refused.push(error.to_string()),
        }
    }
    Err(qwen_core::Error::unsupported("this device", "no place to load on was named"))
}

/// Whether another place may do better: it is not the checkpoint or the program that is wrong.
fn is_of_the_place(error: &qwen_core::Error) -> bool {
    use qwen_core::Error::{Device, DoesNotFit, OutOfMemory, Unsupported};
    matches!(error, Device { .. } | DoesNotFit { .. } | OutOfMemory { .. } | Unsupported { .. })
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

    fn room(&self, options: &EngineOptions) -> Result<Room> {
        let available_bytes = self.0.info().memory_available.or_else(|| host_bytes(options));
        Ok(Room { footprint: self.0.footprint(), prompt_chunk: PROMPT_CHUNK, available_bytes })
    }

    fn open(self, _: &EngineOptions) -> Result<Box<dyn Opened>> {
        Ok(Open::boxed(self.0))
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
            Device::Auto => Ok(auto::candidates(options, checkpoint, config, num_token_ids)),
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
                let footprint = Box::new(qwen_backend_cpu::CpuFootprint);
                Ok(Room { footprint, prompt_chunk: PROMPT_CHUNK, available_bytes: host_bytes(options) })
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let ordinal = options.card(*ordinal)?;
                let card = qwen_backend_cuda::device(ordinal)?;
                let reserve = if options.ranks.world_size() > 1 { CARD_RESERVE_OF_RANKS } else { CARD_RESERVE };
                let available_bytes = Some(qwen_backend_cuda::free_bytes(ordinal)?.saturating_sub(reserve));
                let footprint = qwen_backend_cuda::CudaFootprint::on(&card, options.precision);
                Ok(Room { footprint: Box::new(footprint), prompt_chunk: CARD_PROMPT_CHUNK, available_bytes })
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => {
                let info = qwen_backend_wgpu::AdapterInfo::of(adapter)?;
                let host = if info.shares_host_memory() { host_bytes(options) } else { None };
                let footprint = qwen_backend_wgpu::WgpuFootprint::on(&info, options.wgpu_capabilities);
                let available_bytes = info.memory.into_iter().chain(host).min();
                Ok(Room { footprint: Box::new(footprint), prompt_chunk: PROMPT_CHUNK, available_bytes })
            }
            _ => Err(self.absent()),
        }
    }

    fn open(self, options: &EngineOptions) -> Result<Box<dyn Opened>> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu => Ok(Open::boxed(qwen_backend_cpu::CpuBackend::new(options.cpu())?)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let backend = qwen_backend_cuda::CudaBackend::new(options.cuda(ordinal)?)?;
                Ok(Box::new(Open { backend, group: group_of_cards }))
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => Ok(Open::boxed(qwen_backend_wgpu::WgpuBackend::new(options.wgpu(&adapter))?)),
            _ => Err(self.absent()),
        }
    }
}

/// What this process may take of the host's memory: its share, where several ranks are on one machine.
fn host_bytes(options: &EngineOptions) -> Option<u64> {
    memory::available_memory().map(|memory| memory.available / options.ranks.local_world_size() as u64)
}

/// The ranks of a model as a group of a backend: to sum, where they share heads, or to hand activations on.
type Group<B> = fn(&B, &Arc<Link>, by_heads: bool) -> Result<Arc<dyn Collective>>;

/// A backend and how it works with other ranks.
struct Open<B> {
    backend: B,
    group: Group<B>,
}

impl<B: Backend> Open<B> {
    /// A backend without an interconnect of its own: everything goes over the link of the ranks.
    fn boxed(backend: B) -> Box<dyn Opened> {
        Box::new(Open { backend, group: |_, link, _| Ok(Arc::new(TcpGroup::new(link.clone()))) })
    }
}

/// Cards work with each other by NCCL. Without it, they cannot sum; activations go over the link then, on all ranks.
#[cfg(feature = "cuda")]
fn group_of_cards(
    backend: &qwen_backend_cuda::CudaBackend,
    link: &Arc<Link>,
    by_heads: bool,
) -> Result<Arc<dyn Collective>> {
    let present = qwen_backend_cuda::nccl_present();
    if !by_heads && link.least(u64::from(present.is_ok()))? == 0 {
        return Ok(Arc::new(TcpGroup::new(link.clone())));
    }
    present?;
    Ok(Arc::new(qwen_backend_cuda::NcclGroup::join(backend, link)?))
}

impl<B: Backend> Opened for Open<B> {
    fn load(self: Box<Self>, job: Job<'_>, options: &EngineOptions) -> Result<(Part, String)> {
        let Open { mut backend, group } = *self;
        let device = backend.info().name;
        let Job { checkpoint, config, limits, spec, link } = job;
        let by_heads = spec.shard.ranks > 1;
        let group = link.as_ref().map(|link| group(&backend, link, by_heads)).transpose()?;
        let model = Model::load(&mut backend, spec, limits, checkpoint, &mut |share| options.report(share))?;
        let mut runner = ModelRunner::new(backend, model, Rope::new(config), limits.clone());
        if let Some(group) = group {
            runner = if by_heads { runner.with_group(group) } else { runner.with_neighbours(group) };
        }
        runner.warm_up()?;
        let part = match link {
            None => Part::Engine(Box::new(runner)),
            Some(link) if link.rank() == 0 => Part::Engine(Box::new(LeaderRunner::new(runner, link))),
            Some(link) => Part::Follower(Box::new(move || follow(runner, &link))),
        };
        Ok((part, device))
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
    fn the_next_candidate_loads_when_a_driver_refuses_and_the_reason_says_so() {
        let load = |place| if place == "bad" { Err(refusal(place)) } else { Ok(place) };
        let first = first_that_loads(candidates(&["good", "bad"]), load).unwrap();
        assert_eq!(first, ("good", "good is there".into()));
        let second = first_that_loads(candidates(&["bad", "good"]), load).unwrap();
        assert_eq!(second.0, "good");
        assert_eq!(second.1, "good is there; not loaded: bad: open: the driver refused a device");
        let third = first_that_loads(candidates(&["bad", "bad", "good", "bad"]), load).unwrap();
        assert_eq!(third.1.matches("the driver refused").count(), 2);
    }

    #[test]
    fn the_last_refusal_is_the_error() {
        let refused = first_that_loads(candidates(&["gpu", "cpu"]), |place| Err::<(), _>(refusal(place)));
        assert!(matches!(refused, Err(Error::Device { device, .. }) if device == "cpu"));
    }

    #[test]
    fn a_gpu_that_runs_out_of_memory_gives_way_and_a_damaged_checkpoint_does_not() {
        let exhausted = Error::OutOfMemory { device: "gpu".into(), what: "w".into(), bytes: 1 };
        let mut failures = vec![Error::argument("context", "damaged"), exhausted];
        let loaded = first_that_loads(candidates(&["gpu", "cpu"]), |place| match place {
            "gpu" => Err(failures.pop().unwrap()),
            place => Ok(place),
        });
        assert_eq!(loaded.unwrap().0, "cpu");
        let failed = first_that_loads(candidates(&["gpu", "cpu"]), |_| Err::<(), _>(failures.pop().unwrap()));
        assert!(matches!(failed, Err(Error::InvalidArgument { .. })), "{failed:?}");
    }
}
