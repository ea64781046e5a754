//! What loading needs from any device: its capacity, and to open it and load weights.
//!
//! A [`DeviceFactory`] is a device that is not open yet: one of the kinds in this folder, or a backend that the program
//! provides ([`CustomBackend`]). Nothing in this folder knows the options of an engine; the part that concerns devices
//! is passed as [`DeviceSettings`].

use std::fmt;
use std::sync::Arc;

use qwen_core::backend::{CapabilitySet, Limits};
use qwen_core::model::Model;
use qwen_core::model::plan::Plan;
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Stage};
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::quantize::Importances;
use qwen_core::{Backend, Config, Footprint, Precision, Result, memory};

use super::Device;
use crate::distributed::{self, JoinGroup, Loaded, Peers};
use crate::progress::{LoadObserver, LoadProgress, LoadStage};

/// Prompt tokens of a step by default. On the CPU a longer chunk gains little, and delays running answers.
pub(super) const MAX_NUM_BATCHED_TOKENS: usize = 512;

/// The engine's options that concern a device.
#[derive(Clone, Default)]
pub(crate) struct DeviceSettings {
    pub(crate) precision: Precision,
    /// Threads that compute on the CPU.
    pub(crate) threads: Option<usize>,
    /// The program's own pool for the CPU to compute on.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "only the CPU backend has threads"))]
    pub(crate) pool: Option<Arc<rayon::ThreadPool>>,
    #[cfg_attr(not(feature = "wgpu"), allow(dead_code, reason = "only the wgpu backend has capabilities"))]
    pub(crate) wgpu_capabilities: CapabilitySet,
    pub(crate) position: distributed::Position,
}

/// The capacity of a device, or of several that share a model.
pub(crate) enum Capacity {
    One(DeviceCapacity),
    /// In the order of the layers.
    Split(Vec<PartCapacity>),
}

impl Capacity {
    /// The number of prompt tokens of a step that suits the devices.
    pub(crate) fn max_num_batched_tokens(&self) -> usize {
        match self {
            Capacity::One(device) => device.max_num_batched_tokens,
            // A longer step would hold up running answers on the slowest of them.
            Capacity::Split(parts) => {
                let tokens = parts.iter().map(|part| part.capacity.max_num_batched_tokens);
                tokens.min().unwrap_or(MAX_NUM_BATCHED_TOKENS)
            }
        }
    }
}

/// A device's capacity for a model.
pub(crate) struct DeviceCapacity {
    pub(crate) footprint: Box<dyn Footprint>,
    /// The number of prompt tokens of a step that suits the device.
    pub(crate) max_num_batched_tokens: usize,
    /// Bytes that may be used, if known.
    pub(crate) available_bytes: Option<u64>,
    pub(crate) memory: Memory,
}

/// Which memory a device uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The host's, which devices share.
    Host,
    /// That of this device.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "only GPUs have their own"))]
    Own(Device),
}

/// A device of a split.
pub(crate) struct PartCapacity {
    pub(crate) device: Device,
    /// How many layers it gets, if the program says so.
    pub(crate) layers: Option<usize>,
    pub(crate) capacity: DeviceCapacity,
}

/// The model to load, or the part of it that this process holds.
pub(crate) struct LoadRequest<'a> {
    pub(crate) source: &'a dyn WeightSource,
    pub(crate) config: &'a Config,
    pub(crate) limits: &'a Limits,
    pub(crate) spec: &'a ModelSpec,
    /// The other processes that hold parts of the model.
    pub(crate) peers: Option<&'a Peers>,
    pub(crate) observer: &'a LoadObserver,
}

/// How far other parts of the model are loaded, in bytes of matrices as stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loading {
    /// Of the parts before this one.
    pub(crate) before: u64,
    /// Of all parts.
    pub(crate) total: u64,
}

/// A device that can be planned for and opened.
pub(crate) trait DeviceFactory: fmt::Debug {
    /// The device as a value; `None` for the program's own backend.
    fn device(&self) -> Option<Device>;

    /// Bytes that may be used now, if known.
    fn free_bytes(&self) -> Result<Option<u64>>;

    /// The device's capacity for a model.
    fn capacity(&self, settings: &DeviceSettings) -> Result<Capacity>;

    /// Open the device for what `plan` says that it holds.
    fn open(self: Box<Self>, settings: &DeviceSettings, plan: &Plan) -> Result<Box<dyn OpenedDevice>>;
}

/// A device that is open.
pub(crate) trait OpenedDevice {
    /// The name of the device.
    fn name(&self) -> String;

    /// Load a model, or the part of it that this process holds, and run it once.
    fn load(self: Box<Self>, request: LoadRequest<'_>) -> Result<Loaded>;

    /// Load some layers of a model that several devices of this process share.
    fn load_stage(self: Box<Self>, request: LoadRequest<'_>, loading: Loading) -> Result<Box<dyn Stage>>;

    /// Load a whole model, run `prompts`, and measure what its matrices are multiplied with.
    fn measure(self: Box<Self>, request: LoadRequest<'_>, prompts: &[&[u32]]) -> Result<Importances>;
}

/// A backend that the program provides.
pub(crate) struct CustomBackend<B>(pub(crate) B);

impl<B: Backend> fmt::Debug for CustomBackend<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CustomBackend").field(&self.0.info().name).finish()
    }
}

impl<B: Backend> DeviceFactory for CustomBackend<B> {
    fn device(&self) -> Option<Device> {
        None
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(self.0.info().memory_available)
    }

    fn capacity(&self, settings: &DeviceSettings) -> Result<Capacity> {
        Ok(Capacity::One(DeviceCapacity {
            footprint: self.0.footprint(),
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
            available_bytes: self.0.info().memory_available.or_else(|| host_bytes(settings)),
            memory: Memory::Host,
        }))
    }

    fn open(self: Box<Self>, _: &DeviceSettings, _: &Plan) -> Result<Box<dyn OpenedDevice>> {
        Ok(OpenedBackend::boxed(self.0))
    }
}

fn weights_of(observer: &LoadObserver) -> impl FnMut(u64, u64) -> Result<()> + '_ {
    |done, total| observer.report(LoadProgress { stage: LoadStage::Weights, done, total })
}

/// A runner of the model of the request, which is loaded on `backend`.
fn loaded<B: Backend>(
    mut backend: B,
    request: &LoadRequest<'_>,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<ModelRunner<B>> {
    let LoadRequest { source, config, limits, spec, .. } = *request;
    let model = Model::load(&mut backend, spec.clone(), limits, source, progress)?;
    Ok(ModelRunner::new(backend, model, RopeStages::new(config), limits.clone()))
}

/// This process's share of the host's memory.
pub(super) fn host_bytes(settings: &DeviceSettings) -> Option<u64> {
    let processes = settings.position.local_world_size.max(1) as u64;
    memory::available_memory().map(|memory| memory.available / processes)
}

/// A backend, and how it works together with those of other processes.
pub(super) struct OpenedBackend<B> {
    pub(super) backend: B,
    pub(super) join: JoinGroup<B>,
}

impl<B: Backend> OpenedBackend<B> {
    /// A backend without its own interconnect.
    pub(super) fn boxed(backend: B) -> Box<dyn OpenedDevice> {
        Box::new(OpenedBackend { backend, join: distributed::join_by_host })
    }
}

impl<B: Backend> OpenedDevice for OpenedBackend<B> {
    fn name(&self) -> String {
        self.backend.info().name
    }

    fn load(self: Box<Self>, request: LoadRequest<'_>) -> Result<Loaded> {
        let OpenedBackend { backend, join } = *self;
        let LoadRequest { spec, peers, observer, .. } = request;
        let by_heads = spec.shard.world_size > 1;
        let group = peers.map(|peers| join(&backend, peers, by_heads)).transpose()?;
        let mut runner = loaded(backend, &request, &mut weights_of(observer))?;
        observer.report(LoadProgress::of(LoadStage::WarmUp))?;
        if let Some(group) = group {
            runner = if by_heads { runner.with_group(group) } else { runner.with_neighbours(group) };
        }
        runner.warm_up()?;
        Ok(Loaded::new(runner, peers))
    }

    fn load_stage(self: Box<Self>, request: LoadRequest<'_>, loading: Loading) -> Result<Box<dyn Stage>> {
        let mut report = weights_of(request.observer);
        let mut report = |done: u64, _| report(loading.before.saturating_add(done), loading.total);
        Ok(Box::new(loaded(self.backend, &request, &mut report)?))
    }

    fn measure(self: Box<Self>, request: LoadRequest<'_>, prompts: &[&[u32]]) -> Result<Importances> {
        let observer = request.observer;
        let mut runner = loaded(self.backend, &request, &mut weights_of(observer))?;
        let tokens = |prompts: &[&[u32]]| prompts.iter().map(|prompt| prompt.len() as u64).sum();
        let total = tokens(prompts);
        Importances::measure(&mut runner, prompts, &mut |done| {
            let done = tokens(prompts.get(..done).unwrap_or(prompts));
            observer.report(LoadProgress { stage: LoadStage::Measuring, done, total })
        })
    }
}
