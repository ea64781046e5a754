//! Devices: which there are, how they are named, and which of them a model is loaded on.
//!
//! A [`Device`] is a value that the program passes, never a consequence of a feature. Each kind of device has a file here
//! that is compiled with the feature of its name, and is wired up in this one: `cpu.rs`, `cuda.rs`, `wgpu.rs`. What they
//! have in common is in `factory.rs`; `auto.rs` decides what [`Device::Auto`] means for a model.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

#[cfg(feature = "wgpu")]
use qwen_backend_wgpu::AdapterChoice;

use factory::DeviceFactory;

pub(crate) mod auto;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod factory;
#[cfg(feature = "wgpu")]
mod wgpu;

/// A device to run a model on. As text: `cpu`, `auto`; with the feature `cuda` also `cuda` (the first GPU) and
/// `cuda:ORDINAL`; with the feature `wgpu` also `wgpu`, `wgpu:INDEX` and `wgpu:NAME`.
///
/// ```
/// use qwen::Device;
/// assert_eq!("cpu".parse(), Ok(Device::Cpu));
/// assert!("abacus".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The best hardware GPU that the build has a backend for and whose memory the model fits, else the processor. Never
    /// a software adapter. [`crate::Engine::device`] is the device that was chosen, [`crate::Engine::selection_reason`]
    /// says why.
    Auto,
    /// The NVIDIA GPU with this ordinal.
    #[cfg(feature = "cuda")]
    Cuda(usize),
    /// A GPU through Vulkan, Metal or DX12.
    #[cfg(feature = "wgpu")]
    Wgpu(AdapterChoice),
}

impl Device {
    /// Bytes of the device's memory that may be taken now; `None` where that is not known, as for GPUs through wgpu. An
    /// NVIDIA GPU is opened to be asked, so the figure leaves out what its context takes.
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
            _ => Err(self.unsupported()),
        }
    }

    /// The error of a device that this build does not have.
    pub(crate) fn unsupported(&self) -> qwen_core::Error {
        let reason = format!("this build has {}; features of the crate add others", known_names());
        qwen_core::Error::unsupported(format!("device `{self}`"), reason)
    }
}

/// A kind of device, as its file describes it.
struct Kind {
    /// How devices of the kind are named, for errors.
    names: &'static str,
    parse: fn(&str) -> Option<Device>,
    /// The devices of the kind on this machine.
    entries: fn() -> Vec<DeviceEntry>,
    /// The kind's name and why this machine has none of it; `None` where it has one.
    absent: fn() -> Option<(&'static str, String)>,
    /// The hardware GPUs of the kind, best first.
    gpus: fn() -> Vec<Gpu>,
}

/// A hardware GPU of this machine.
#[derive(Debug, Clone)]
struct Gpu {
    device: Device,
    name: String,
    /// If it is not known, every plan would seem to fit.
    has_known_memory: bool,
}

/// The kinds of devices of this build. A GPU that two of them offer runs faster kernels through the earlier one.
const KINDS: &[Kind] = &[
    #[cfg(feature = "cpu")]
    cpu::KIND,
    #[cfg(feature = "cuda")]
    cuda::KIND,
    #[cfg(feature = "wgpu")]
    wgpu::KIND,
];

/// How the devices of this build are named.
fn known_names() -> String {
    match KINDS {
        [] => "no device".into(),
        kinds => format!("{} and `auto`", kinds.iter().map(|kind| kind.names).collect::<Vec<_>>().join(", ")),
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => Ok(Device::Cpu),
            "auto" => Ok(Device::Auto),
            _ => KINDS
                .iter()
                .find_map(|kind| (kind.parse)(name))
                .ok_or_else(|| format!("there is no device `{name}` in this build, which has {}", known_names())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Auto => f.write_str("auto"),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(AdapterChoice::Best) => f.write_str("wgpu"),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(choice) => write!(f, "wgpu:{choice}"),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A device of this machine that this build can run on. As data: print it, serialise it, choose by it.
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
    /// Bytes of its memory; for the processor those that this process may take now.
    pub memory_bytes: Option<u64>,
    /// The limits of the device, by name.
    pub limits: BTreeMap<&'static str, u64>,
    /// Instruction sets of the processor, features of a GPU that kernels could use.
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
pub fn absent_devices() -> Vec<(&'static str, String)> {
    KINDS.iter().filter_map(|kind| (kind.absent)()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_parsed() {
        let mut names = vec!["cpu", "auto"];
        if cfg!(feature = "wgpu") {
            names.extend(["wgpu", "wgpu:0", "wgpu:17", "wgpu:Intel(R) Arc A770: 16 GB", "wgpu:llvmpipe"]);
        }
        if cfg!(feature = "cuda") {
            names.extend(["cuda:0", "cuda:7"]);
            assert_eq!("cuda".parse::<Device>(), "cuda:0".parse());
        }
        for name in names {
            assert_eq!(name.parse::<Device>().map(|device| device.to_string()), Ok(name.into()));
        }
        for name in ["", "CPU", "gpu", "wgpu:", "wgpux", "wgpu0", "cuda:", "cuda0", "cuda:+1", "cuda:x"] {
            let error = name.parse::<Device>().unwrap_err();
            assert!(error.contains(&format!("`{name}`")) && error.contains("`auto`"), "{error}");
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
