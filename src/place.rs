//! Where a model is planned and loaded: a [`Device`] by name, or a backend that the program brings.
//!
//! A device with an interconnect of its own joins the ranks by it: its arm of [`Place::load`] makes a [`Collective`],
//! for whose identifier [`Link::broadcast`] is there, and hands it to [`load_on`] in place of [`Job::tcp_group`].

// A build with fewer devices has less to ask of the options.
#![cfg_attr(not(all(feature = "cpu", feature = "wgpu", feature = "cuda")), allow(unused_variables))]

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

impl Job<'_> {
    /// The sum over the ranks on their link: for devices without an interconnect of their own. Ranks that share layers
    /// have nothing to sum.
    fn tcp_group(&self) -> Option<Arc<dyn Collective>> {
        self.link
            .clone()
            .filter(|_| self.spec.shard.ranks > 1)
            .map(|link| Arc::new(TcpGroup::new(link)) as Arc<dyn Collective>)
    }
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
    /// Bytes that may be taken, where that is known.
    pub(crate) available_bytes: Option<u64>,
}

/// Where a model is planned and loaded.
pub(crate) trait Place: Sized {
    /// The one place that is meant, and why, in a few words.
    fn settle(
        self,
        options: &EngineOptions,
        checkpoint: &Checkpoint,
        config: &Config,
        num_token_ids: usize,
    ) -> Result<(Self, String)>;

    /// The device by name, when it is one.
    fn device(&self) -> Option<Device>;

    /// What there is for a model.
    fn room(&self, options: &EngineOptions) -> Result<Room>;

    /// Tokens of a prompt that are computed at a time, unless the options say how many.
    fn prompt_chunk(&self) -> usize {
        512
    }

    /// Load a model or a part of it, and say the device's name.
    fn load(self, job: Job<'_>, options: &EngineOptions) -> Result<(Part, String)>;
}

/// A backend of the program's own.
pub(crate) struct Own<B>(pub(crate) B);

impl<B: Backend> Place for Own<B> {
    fn settle(self, _: &EngineOptions, _: &Checkpoint, _: &Config, _: usize) -> Result<(Self, String)> {
        Ok((self, "it is the program's own backend".into()))
    }

    fn device(&self) -> Option<Device> {
        None
    }

    fn room(&self, options: &EngineOptions) -> Result<Room> {
        let available_bytes = self.0.info().memory_available.or_else(|| host_bytes(options));
        Ok(Room { footprint: self.0.footprint(), available_bytes })
    }

    fn load(self, job: Job<'_>, options: &EngineOptions) -> Result<(Part, String)> {
        load_on(self.0, job.tcp_group(), job, options)
    }
}

impl Place for Device {
    fn settle(
        self,
        options: &EngineOptions,
        checkpoint: &Checkpoint,
        config: &Config,
        num_token_ids: usize,
    ) -> Result<(Self, String)> {
        match self {
            Device::Auto => auto(options, checkpoint, config, num_token_ids),
            device => Ok((device, "the program asked for it".into())),
        }
    }

    fn device(&self) -> Option<Device> {
        Some(self.clone())
    }

    fn room(&self, options: &EngineOptions) -> Result<Room> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu => {
                Ok(Room { footprint: Box::new(qwen_backend_cpu::CpuFootprint), available_bytes: host_bytes(options) })
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => {
                let info = qwen_backend_wgpu::AdapterInfo::of(adapter)?;
                let host = if info.shares_host_memory() { host_bytes(options) } else { None };
                let footprint = qwen_backend_wgpu::WgpuFootprint::on(&info, options.wgpu_capabilities);
                let available_bytes = info.memory.into_iter().chain(host).min();
                Ok(Room { footprint: Box::new(footprint), available_bytes })
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let card = qwen_backend_cuda::CardInfo::of(*ordinal)?;
                let footprint = qwen_backend_cuda::CudaFootprint::on(&card, options.precision);
                let available_bytes = Some(qwen_backend_cuda::free_bytes(*ordinal)?);
                Ok(Room { footprint: Box::new(footprint), available_bytes })
            }
            _ => Err(self.absent()),
        }
    }

    fn prompt_chunk(&self) -> usize {
        match self {
            // So many that tensor cores are busy, not the memory that the weights are read from.
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => 2048,
            _ => 512,
        }
    }

    fn load(self, job: Job<'_>, options: &EngineOptions) -> Result<(Part, String)> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu => {
                let backend = qwen_backend_cpu::CpuBackend::new(options.cpu())?;
                load_on(backend, job.tcp_group(), job, options)
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => {
                let backend = qwen_backend_wgpu::WgpuBackend::new(options.wgpu(&adapter))?;
                load_on(backend, job.tcp_group(), job, options)
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let backend = qwen_backend_cuda::CudaBackend::new(options.cuda(ordinal))?;
                let group = nccl_group(&backend, job.link.as_deref())?;
                load_on(backend, group, job, options)
            }
            _ => Err(self.absent()),
        }
    }
}

/// A GPU that gives a conversation fewer positions than this, when no context was asked for, does not hold the model.
const SHORTEST_CONTEXT: usize = 4096;

/// The GPUs that [`Device::Auto`] may mean, best first, with their names: those of CUDA before others, which may be the
/// same ones by another way.
fn gpus() -> Vec<(Device, String)> {
    let gpus = std::iter::empty();
    #[cfg(feature = "cuda")]
    let gpus = gpus.chain({
        let mut cards = qwen_backend_cuda::cards();
        // Stable: equals stay in order.
        cards.sort_by_key(|card| std::cmp::Reverse((card.compute_capability, card.memory)));
        cards.into_iter().map(|card| (Device::Cuda(card.ordinal), card.name))
    });
    #[cfg(feature = "wgpu")]
    let gpus = gpus.chain(qwen_backend_wgpu::hardware_adapters().into_iter().map(|adapter| {
        let device = Device::Wgpu(qwen_backend_wgpu::AdapterChoice::Index(adapter.index));
        (device, adapter.name)
    }));
    gpus.collect()
}

/// What [`Device::Auto`] means for a model: the best GPU that holds it, else the CPU.
fn auto(
    options: &EngineOptions,
    checkpoint: &Checkpoint,
    config: &Config,
    num_token_ids: usize,
) -> Result<(Device, String)> {
    let mut passed = Vec::new();
    for (device, name) in gpus() {
        let refusal = match options.plan_for(&device, checkpoint, config, num_token_ids) {
            Ok(plan) => match plan.check() {
                Ok(()) if plan.context >= config.max_context().min(SHORTEST_CONTEXT).min(options.asked_context()) => {
                    return Ok((device, format!("{name} is the best GPU that holds the model")));
                }
                Ok(()) => format!("only a context of {} would fit", plan.context),
                Err(error) => error.to_string(),
            },
            // What is wrong with the checkpoint or the options is wrong on the CPU, too.
            Err(error) => error.to_string(),
        };
        passed.push(format!("{name}: {refusal}"));
    }
    let reason = match passed.is_empty() {
        true if cfg!(any(feature = "wgpu", feature = "cuda")) => "no hardware GPU was found".into(),
        true => "this build has no other device".into(),
        false => format!("no GPU holds the model ({})", passed.join("; ")),
    };
    Ok((Device::Cpu, reason))
}

/// The sum over the ranks on their cards; their link hands NCCL's identifier around.
#[cfg(feature = "cuda")]
fn nccl_group(backend: &qwen_backend_cuda::CudaBackend, link: Option<&Link>) -> Result<Option<Arc<dyn Collective>>> {
    let Some(link) = link else { return Ok(None) };
    qwen_backend_cuda::nccl_present()?;
    // A rank that has no NCCL fails here, where the others hear of it; within NCCL they would wait for it.
    link.least(0)?;
    let mut id = if link.rank() == 0 { qwen_backend_cuda::unique_id()? } else { Vec::new() };
    link.broadcast(&mut id)?;
    let group = qwen_backend_cuda::NcclGroup::new(backend, link.rank(), link.world_size(), &id)?;
    link.on_loss(group.abort_on_loss());
    Ok(Some(Arc::new(group)))
}

/// What this process may take of the host's memory: its share, where several ranks are on one machine.
fn host_bytes(options: &EngineOptions) -> Option<u64> {
    memory::available_memory().map(|memory| memory.available / options.ranks.local_world_size() as u64)
}

/// Load on `backend`, whose sums over the ranks go over `group`.
fn load_on<B: Backend>(
    mut backend: B,
    group: Option<Arc<dyn Collective>>,
    job: Job<'_>,
    options: &EngineOptions,
) -> Result<(Part, String)> {
    let device = backend.info().name;
    let Job { checkpoint, config, limits, spec, link } = job;
    let model = Model::load(&mut backend, spec, limits, checkpoint, &mut |share| options.report(share))?;
    let mut runner = ModelRunner::new(backend, model, Rope::new(config), limits.clone());
    if let Some(group) = group {
        runner = runner.with_group(group);
    }
    runner.warm_up()?;
    let part = match link {
        None => Part::Engine(Box::new(runner)),
        Some(link) if link.rank() == 0 => Part::Engine(Box::new(LeaderRunner::new(runner, link))),
        Some(link) => Part::Follower(Box::new(move || follow(runner, &link))),
    };
    Ok((part, device))
}
