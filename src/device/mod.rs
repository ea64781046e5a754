//! Devices: which there are, how they are named, and which one a model is loaded on.
//!
//! A [`Device`] is a value that the program passes; it does not depend on features: every build can name all of them,
//! and one that the build lacks is refused when a model is planned or loaded. Each kind of device has a file here that
//! is compiled with the feature of its name, and is wired up in this one: `cpu.rs`, `cuda.rs`, `wgpu.rs`. Their common
//! interface is in `factory.rs`; `auto.rs` resolves [`Device::Auto`] for a model.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use qwen_core::backend::AdapterChoice;

use factory::DeviceFactory;
use qwen_core::model::plan::Plan;
pub use split::{Split, SplitPart};

pub(crate) mod auto;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod factory;
mod split;
#[cfg(feature = "wgpu")]
mod wgpu;

/// A device to run a model on. As text: `cpu`, `auto`, `cuda` (the first GPU), `cuda:ORDINAL`, `wgpu`, `wgpu:INDEX` and
/// `wgpu:NAME`; and several devices as `split:DEVICE=LAYERS,DEVICE=LAYERS` or `split:DEVICE,DEVICE`. A build without the feature of a device refuses it when a model is planned or loaded, by name.
///
/// ```
/// use qwen::Device;
/// assert_eq!("cpu".parse(), Ok(Device::Cpu));
/// assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
/// assert!("abacus".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The best hardware GPU that the build has a backend for and whose memory holds the model, else the CPU, else as many
    /// layers as fit on GPUs and the rest on the CPU. Never a software adapter. [`crate::Engine::device`] is the chosen
    /// device, [`crate::Engine::selection_reason`] says why, and what a [`Device::Split`] would take where the CPU was
    /// chosen.
    Auto,
    /// The NVIDIA GPU with this ordinal. Needs the feature `cuda`.
    Cuda(usize),
    /// A GPU through Vulkan, Metal or DX12. Needs the feature `wgpu`.
    Wgpu(AdapterChoice),
    /// Several devices of this machine, which hold consecutive layers of the model: `docs/devices.md`.
    ///
    /// ```
    /// use qwen::{Device, EngineOptions, Split};
    /// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// // For example `Device::Wgpu(AdapterChoice::Best)` in place of the first one.
    /// let split = Split::new().layers(Device::Cpu, 2).fill(Device::Cpu);
    /// let engine = EngineOptions::new().device(Device::Split(split)).load(model)?;
    /// assert_eq!(engine.device().map(|device| device.to_string()), Some("split:cpu=2,cpu=4".into()));
    /// for part in &engine.plan().parts {
    ///     println!("{part}");
    /// }
    /// println!("{}", engine.chat().send("What is 3 + 4?")?.text()?);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    Split(Split),
}

impl Device {
    /// Bytes of the device's memory that may be used now; `None` if unknown, as for GPUs through wgpu. For an NVIDIA
    /// GPU a context is created to find out; the figure excludes the memory of that context.
    ///
    /// # Errors
    /// When the build or the machine has no such device.
    ///
    /// ```
    /// let bytes = qwen::Device::Cpu.free_bytes()?;
    /// # let _ = bytes;
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn free_bytes(&self) -> crate::Result<Option<u64>> {
        Ok(self.factory()?.free_bytes()?)
    }

    /// The device, to be planned for and opened. [`Device::Auto`] is not one but a choice among them.
    pub(crate) fn factory(&self) -> qwen_core::Result<Box<dyn DeviceFactory>> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu => Ok(Box::new(cpu::Cpu)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Ok(Box::new(cuda::Cuda { ordinal: *ordinal })),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(adapter) => Ok(Box::new(wgpu::Wgpu { adapter: adapter.clone() })),
            Device::Split(split) => Ok(Box::new(split.factory()?)),
            _ => Err(self.unsupported()),
        }
    }

    /// The device with the layers of a plan that was made for it.
    pub(crate) fn placed(self, plan: &Plan) -> Device {
        match self {
            Device::Split(split) => split.placed(plan),
            device => device,
        }
    }

    /// The device, or the first one of several.
    pub(crate) fn first(&self) -> &Device {
        match self {
            Device::Split(split) => split.parts().first().map_or(self, |part| &part.device),
            device => device,
        }
    }

    /// The error of a device that this build does not have.
    pub(crate) fn unsupported(&self) -> qwen_core::Error {
        let feature = match self {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Wgpu(_) => "wgpu",
            Device::Auto | Device::Split(_) => "cpu, cuda or wgpu",
        };
        let reason = format!("this build is without the feature {feature} of the crate qwen-rs");
        qwen_core::Error::unsupported(format!("device `{self}`"), reason)
    }
}

/// A kind of device, as its file describes it.
struct Kind {
    /// The devices of the kind on this machine.
    entries: fn() -> Vec<DeviceEntry>,
    /// The kind's name and why this machine has none of it; `None` if it has one.
    absent: fn() -> Option<(&'static str, String)>,
    /// The hardware GPUs of the kind, best first.
    gpus: fn() -> Vec<Gpu>,
}

/// A hardware GPU of this machine.
#[derive(Debug, Clone)]
struct Gpu {
    device: Device,
    name: String,
    /// If unknown, every plan would seem to fit.
    has_known_memory: bool,
}

/// The kinds of devices of this build. If two of them offer the same GPU, the earlier one has the faster kernels.
const KINDS: &[Kind] = &[
    #[cfg(feature = "cpu")]
    cpu::KIND,
    #[cfg(feature = "cuda")]
    cuda::KIND,
    #[cfg(feature = "wgpu")]
    wgpu::KIND,
];

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no device `{name}`; devices are `cpu`, `auto`, `cuda`, `cuda:ORDINAL`, `wgpu`, `wgpu:INDEX`, `wgpu:NAME`, \
     and several of them `split:DEVICE,DEVICE` or `split:DEVICE=LAYERS,DEVICE=LAYERS`"
)]
pub struct ParseDeviceError {
    name: String,
}

impl From<ParseDeviceError> for crate::Error {
    fn from(error: ParseDeviceError) -> Self {
        qwen_core::Error::argument("device", error.to_string()).into()
    }
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(name: &str) -> Result<Self, ParseDeviceError> {
        let (kind, choice) = name.split_once(':').map_or((name, None), |(kind, choice)| (kind, Some(choice)));
        // Only digits: `parse` would take a sign, too.
        let ordinal = || choice.filter(|choice| choice.bytes().all(|digit| digit.is_ascii_digit()))?.parse().ok();
        let device = match (kind, choice) {
            ("cpu", None) => Some(Device::Cpu),
            ("auto", None) => Some(Device::Auto),
            ("cuda", None) => Some(Device::Cuda(0)),
            ("cuda", Some(_)) => ordinal().map(Device::Cuda),
            ("split", Some(parts)) => Split::parse(parts).map(Device::Split),
            ("wgpu", None) => Some(Device::Wgpu(AdapterChoice::Best)),
            ("wgpu", Some(choice)) if !choice.is_empty() => choice.parse().ok().map(Device::Wgpu),
            _ => None,
        };
        device.ok_or_else(|| ParseDeviceError { name: name.into() })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Auto => f.write_str("auto"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Wgpu(AdapterChoice::Best) => f.write_str("wgpu"),
            Device::Wgpu(choice) => write!(f, "wgpu:{choice}"),
            Device::Split(split) => write!(f, "split:{split}"),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A device of this machine that this build can run on, as data: to print, serialise, or choose by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceEntry {
    /// What to pass to [`crate::EngineOptions::device`].
    pub device: Device,
    /// What the system or the driver calls it.
    pub name: String,
    /// `processor`, `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// The API to a GPU and its driver with its version.
    pub driver: Option<String>,
    /// Bytes of its memory; for the CPU, those that this process may use now.
    pub memory_bytes: Option<u64>,
    /// The limits of the device, by name.
    pub limits: BTreeMap<&'static str, u64>,
    /// Instruction sets of the CPU, or features of a GPU that kernels could use.
    pub features: Vec<String>,
}

/// The devices of this machine that this build can run on: the processor, NVIDIA GPUs, then GPUs through wgpu in a fixed
/// order, software ones included. None is opened.
///
/// ```
/// for entry in qwen::devices() {
///     println!("{}: {}", entry.device, entry.name);
/// }
/// ```
#[must_use]
pub fn devices() -> Vec<DeviceEntry> {
    KINDS.iter().flat_map(|kind| (kind.entries)()).collect()
}

/// The kinds of devices that this build supports and this machine lacks, each with the reason.
///
/// ```
/// for (device, reason) in qwen::absent_devices() {
///     println!("{device}: {reason}");
/// }
/// ```
#[must_use]
pub fn absent_devices() -> Vec<(&'static str, String)> {
    KINDS.iter().filter_map(|kind| (kind.absent)()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_parsed() {
        let names =
            ["cpu", "auto", "wgpu", "wgpu:0", "wgpu:17", "wgpu:Intel(R) Arc A770: 16 GB", "wgpu:llvmpipe", "cuda:0"];
        let splits = [
            "split:wgpu=12,cpu=12",
            "split:cuda:0,cuda:1,cpu",
            "split:wgpu:Arc A770: 16 GB=3,cpu",
            "split:cpu,wgpu:0=7",
        ];
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for name in names.into_iter().chain(splits) {
            assert_eq!(name.parse::<Device>().map(|device| device.to_string()), Ok(name.into()));
        }
        let no_splits = [
            "split",
            "split:",
            "split:cpu",
            "split:cpu,",
            "split:cpu=,cpu",
            "split:cpu=x,cpu",
            "split:cpu=+1,cpu",
            "split:cpu=0,cpu",
            "split:cpu,auto",
            "split:cpu,split:cpu,cpu",
            "split:cpu;wgpu",
            "split:cpu=99999999999999999999,cpu",
            "split:gpu,cpu",
        ];
        for name in ["", "CPU", "gpu", "wgpu:", "wgpux", "wgpu0", "cuda:", "cuda0", "cuda:+1", "cuda:x"]
            .into_iter()
            .chain(no_splits)
        {
            let error = name.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains("`auto`"), "{error}");
        }
    }

    #[test]
    fn a_device_that_the_build_lacks_names_its_feature() {
        for (device, has_it, feature) in [
            (Device::Cpu, cfg!(feature = "cpu"), "cpu"),
            (Device::Cuda(0), cfg!(feature = "cuda"), "cuda"),
            (Device::Wgpu(AdapterChoice::Best), cfg!(feature = "wgpu"), "wgpu"),
        ] {
            let error = device.factory().err().map(|error| error.to_string());
            assert_eq!(error.is_none(), has_it);
            assert!(error.is_none_or(|error| error.contains(&format!("the feature {feature} "))));
        }
    }

    #[test]
    fn devices_are_listed_as_data() {
        let devices = devices();
        assert_eq!(devices.iter().any(|entry| entry.device == Device::Cpu), cfg!(feature = "cpu"));
        let json = serde_json::to_value(&devices).unwrap();
        for (entry, json) in devices.iter().zip(json.as_array().unwrap()) {
            assert_eq!(json["device"], entry.device.to_string());
            assert_eq!(entry.device.to_string().parse(), Ok(entry.device.clone()));
        }
    }
}
