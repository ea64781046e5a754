//! Where a model runs: a value chosen at run time, never a consequence of a feature.

#![cfg_attr(not(feature = "cpu"), allow(unused_variables))]

use std::fmt;
use std::str::FromStr;

use qwen_core::batch::Limits;
use qwen_core::checkpoint::Checkpoint;
use qwen_core::model::Model;
use qwen_core::model::spec::ModelSpec;
use qwen_core::rope::Rope;
use qwen_core::runner::{ModelRunner, Runner};
use qwen_core::{Backend, Config, Footprint, memory};

use crate::options::EngineOptions;

#[cfg(feature = "cpu")]
pub use qwen_backend_cpu::ceilings::{CeilingMeter, Ceilings};

/// A device to run a model on.
///
/// ```
/// use qwen::Device;
/// assert_eq!("cpu".parse(), Ok(Device::Cpu));
/// assert!("abacus".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The best device present that the model fits. [`crate::Engine::device`] says which it became.
    Auto,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => Ok(Device::Cpu),
            "auto" => Ok(Device::Auto),
            _ => Err(format!("there is no device `{name}` in this build: use `cpu` or `auto`")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Cpu => "cpu",
            Device::Auto => "auto",
        })
    }
}

/// A loaded model and the name of its device.
pub(crate) struct Loaded {
    pub(crate) runner: Box<dyn Runner>,
    pub(crate) device: String,
}

/// Where a model is planned and loaded: a [`Device`] by name, or a [`Backend`] that the program brings.
pub(crate) trait Place {
    /// What the parts of a model take here.
    fn footprint(&self) -> qwen_core::Result<Box<dyn Footprint>>;

    /// Bytes that may be taken here, where that is known.
    fn available_bytes(&self) -> Option<u64> {
        memory::available_memory().map(|memory| memory.available)
    }

    /// Load a model.
    fn load(
        self,
        checkpoint: &Checkpoint,
        config: &Config,
        limits: &Limits,
        options: &mut EngineOptions,
    ) -> qwen_core::Result<Loaded>;
}

/// A backend of the program's own.
pub(crate) struct Own<B>(pub(crate) B);

impl<B: Backend> Place for Own<B> {
    fn footprint(&self) -> qwen_core::Result<Box<dyn Footprint>> {
        Ok(self.0.footprint())
    }

    fn available_bytes(&self) -> Option<u64> {
        self.0.info().memory_available.or_else(|| memory::available_memory().map(|memory| memory.available))
    }

    fn load(
        self,
        checkpoint: &Checkpoint,
        config: &Config,
        limits: &Limits,
        options: &mut EngineOptions,
    ) -> qwen_core::Result<Loaded> {
        load_on(self.0, checkpoint, config, limits, options)
    }
}

impl Place for Device {
    fn footprint(&self) -> qwen_core::Result<Box<dyn Footprint>> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu | Device::Auto => Ok(Box::new(qwen_backend_cpu::CpuFootprint)),
            #[cfg(not(feature = "cpu"))]
            _ => Err(self.absent()),
        }
    }

    fn load(
        self,
        checkpoint: &Checkpoint,
        config: &Config,
        limits: &Limits,
        options: &mut EngineOptions,
    ) -> qwen_core::Result<Loaded> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu | Device::Auto => {
                let backend = qwen_backend_cpu::CpuBackend::new(options.cpu())?;
                load_on(backend, checkpoint, config, limits, options)
            }
            #[cfg(not(feature = "cpu"))]
            _ => Err(self.absent()),
        }
    }
}

#[cfg(feature = "cpu")]
impl Device {
    /// A meter of what this device could do at best with `threads` threads, one for each physical core when `None`: to
    /// put a model's speed in proportion. It takes a gigabyte of memory.
    ///
    /// # Errors
    /// When the memory is refused.
    pub fn ceiling_meter(self, threads: Option<usize>) -> crate::Result<CeilingMeter> {
        Ok(CeilingMeter::new(threads.unwrap_or_else(qwen_backend_cpu::physical_cores))?)
    }
}

#[cfg(not(feature = "cpu"))]
impl Device {
    fn absent(self) -> qwen_core::Error {
        qwen_core::Error::unsupported(format!("device `{self}`"), "this build has no device: turn a feature on")
    }
}

fn load_on<B: Backend>(
    mut backend: B,
    checkpoint: &Checkpoint,
    config: &Config,
    limits: &Limits,
    options: &mut EngineOptions,
) -> qwen_core::Result<Loaded> {
    let device = backend.info().name;
    let spec = ModelSpec::new(config);
    let model = Model::load(&mut backend, spec, limits, checkpoint, &mut |share| options.report(share))?;
    let runner = ModelRunner::new(backend, model, Rope::new(config), limits.clone());
    Ok(Loaded { runner: Box::new(runner), device })
}
