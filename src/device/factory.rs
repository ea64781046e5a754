//! What loading needs from any device: its capacity, and to open it and load weights.
//!
//! A [`DeviceFactory`] is a device that is not open yet: one of the kinds in this folder, or a backend that the program
//! provides ([`CustomBackend`]). Nothing in this folder knows the options of an engine; the part that concerns devices
//! is passed as [`DeviceSettings`].

use std::fmt;
use std::sync::Arc;

use qwen_core::backend::{CapabilitySet, Limits};
use qwen_core::model::Model;
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::ModelRunner;
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

/// A device's capacity for a model.
pub(crate) struct Capacity {
    pub(crate) footprint: Box<dyn Footprint>,
    /// The number of prompt tokens of a step that suits the device.
    pub(crate) max_num_batched_tokens: usize,
    /// Bytes that may be used, if known.
    pub(crate) available_bytes: Option<u64>,
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

/// A device that can be planned for and opened.
pub(crate) trait DeviceFactory: fmt::Debug {
    /// The device as a value; `None` for the program's own backend.
    fn device(&self) -> Option<Device>;

    /// Bytes that may be used now, if known.
    fn free_bytes(&self) -> Result<Option<u64>>;

    /// The device's capacity for a model.
    fn capacity(&self, settings: &DeviceSettings) -> Result<Capacity>;

    /// Open the device.
    fn open(self: Box<Self>, settings: &DeviceSettings) -> Result<Box<dyn OpenedDevice>>;
}

/// A device that is open.
pub(crate) trait OpenedDevice {
    /// The name of the device.
    fn name(&self) -> String;

    /// Load a model or a part of it, and run it once.
    fn load(self: Box<Self>, request: LoadRequest<'_>) -> Result<Loaded>;

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
        Ok(Capacity {
            footprint: self.0.footprint(),
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
            available_bytes: self.0.info().memory_available.or_else(|| host_bytes(settings)),
        })
    }

    fn open(self: Box<Self>, _: &DeviceSettings) -> Result<Box<dyn OpenedDevice>> {
        Ok(OpenedBackend::boxed(self.0))
    }
}

fn weights_of(observer: &LoadObserver) -> impl FnMut(u64, u64) -> Result<()> + '_ {
    |done, total| observer.report(LoadProgress { stage: LoadStage::Weights, done, total })
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
        let OpenedBackend { mut backend, join } = *self;
        let LoadRequest { source, config, limits, spec, peers, observer } = request;
        let by_heads = spec.shard.world_size > 1;
        let group = peers.map(|peers| join(&backend, peers, by_heads)).transpose()?;
        let model = Model::load(&mut backend, spec.clone(), limits, source, &mut weights_of(observer))?;
        observer.report(LoadProgress::of(LoadStage::WarmUp))?;
        let mut runner = ModelRunner::new(backend, model, RopeStages::new(config), limits.clone());
        if let Some(group) = group {
            runner = if by_heads { runner.with_group(group) } else { runner.with_neighbours(group) };
        }
        runner.warm_up()?;
        Ok(Loaded::new(runner, peers))
    }

    fn measure(self: Box<Self>, request: LoadRequest<'_>, prompts: &[&[u32]]) -> Result<Importances> {
        let mut backend = self.backend;
        let LoadRequest { source, config, limits, spec, observer, .. } = request;
        let model = Model::load(&mut backend, spec.clone(), limits, source, &mut weights_of(observer))?;
        let mut runner = ModelRunner::new(backend, model, RopeStages::new(config), limits.clone());
        let tokens = |prompts: &[&[u32]]| prompts.iter().map(|prompt| prompt.len() as u64).sum();
        let total = tokens(prompts);
        Importances::measure(&mut runner, prompts, &mut |done| {
            let done = tokens(prompts.get(..done).unwrap_or(prompts));
            observer.report(LoadProgress { stage: LoadStage::Measuring, done, total })
        })
    }
}
