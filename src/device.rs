//! Devices: a value chosen at run time, never a consequence of a feature.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

#[cfg(feature = "wgpu")]
use qwen_backend_wgpu::AdapterChoice;

/// A device to run a model on. As text: `cpu`, `auto`; with the feature `cuda` also `cuda` (the first card) and
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
    /// a software adapter. [`crate::Engine::device`] says which it became, [`crate::Engine::device_reason`] why.
    Auto,
    /// The NVIDIA card with this ordinal.
    #[cfg(feature = "cuda")]
    Cuda(usize),
    /// A GPU through Vulkan, Metal or DX12.
    #[cfg(feature = "wgpu")]
    Wgpu(AdapterChoice),
}

impl Device {
    /// Bytes of its memory that may be taken now, where that is known. A card is opened to be asked, so that what its
    /// context takes is not among them; of other GPUs the memory's size alone is known, and nothing here.
    ///
    /// # Errors
    /// When the build has no such device, or the machine.
    ///
    /// ```
    /// let bytes = qwen::Device::Cpu.free_bytes()?;
    /// # let _ = bytes;
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn free_bytes(&self) -> crate::Result<Option<u64>> {
        match self {
            #[cfg(feature = "cpu")]
            Device::Cpu => Ok(qwen_core::memory::available_memory().map(|memory| memory.available)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Ok(Some(qwen_backend_cuda::free_bytes(*ordinal)?)),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(_) => Ok(None),
            _ => Err(self.absent().into()),
        }
    }

    pub(crate) fn absent(&self) -> qwen_core::Error {
        let reason = format!("this build has {}; features of the crate add others", known());
        qwen_core::Error::unsupported(format!("device `{self}`"), reason)
    }
}

/// How the devices of this build are named.
fn known() -> String {
    let names = [
        (cfg!(feature = "cpu"), "`cpu`"),
        (cfg!(feature = "cuda"), "`cuda`, `cuda:ORDINAL`"),
        (cfg!(feature = "wgpu"), "`wgpu`, `wgpu:INDEX`, `wgpu:NAME`"),
    ];
    let names: Vec<&str> = names.into_iter().filter_map(|(built, name)| built.then_some(name)).collect();
    if names.is_empty() { "no device".into() } else { format!("{} and `auto`", names.join(", ")) }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => return Ok(Device::Cpu),
            "auto" => return Ok(Device::Auto),
            _ => {}
        }
        #[cfg(feature = "cuda")]
        match name.strip_prefix("cuda") {
            Some("") => return Ok(Device::Cuda(0)),
            Some(rest) => {
                // Digits alone: `parse` would take a sign, too.
                let digits = rest.strip_prefix(':').filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
                if let Some(ordinal) = digits.and_then(|digits| digits.parse().ok()) {
                    return Ok(Device::Cuda(ordinal));
                }
            }
            None => {}
        }
        #[cfg(feature = "wgpu")]
        match name.strip_prefix("wgpu") {
            Some("") => return Ok(Device::Wgpu(AdapterChoice::Best)),
            Some(rest) if rest.len() > 1 && rest.starts_with(':') => {
                let Ok(choice) = rest[1..].parse();
                return Ok(Device::Wgpu(choice));
            }
            _ => {}
        }
        Err(format!("there is no device `{name}` in this build, which has {}", known()))
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
    /// Bytes of its memory; of the processor's those that this process may take now.
    pub memory_bytes: Option<u64>,
    /// What it is limited to, by name.
    pub limits: BTreeMap<&'static str, u64>,
    /// Instruction sets of the processor, features of a GPU that kernels could use.
    pub features: Vec<String>,
}

/// The devices of this machine that this build can run on: the processor, NVIDIA cards, then GPUs in a fixed order,
/// software ones included. None is opened.
///
/// ```
/// for entry in qwen::devices() {
///     println!("{}: {}", entry.device, entry.name);
/// }
/// ```
pub fn devices() -> Vec<DeviceEntry> {
    let devices = std::iter::empty();
    #[cfg(feature = "cpu")]
    let devices = devices.chain([DeviceEntry {
        device: Device::Cpu,
        name: format!("cpu ({})", qwen_backend_cpu::Isa::best()),
        kind: "processor",
        driver: None,
        memory_bytes: qwen_core::memory::available_memory().map(|memory| memory.available),
        limits: BTreeMap::from([("physical_cores", qwen_backend_cpu::physical_cores() as u64)]),
        features: qwen_backend_cpu::Isa::available().iter().map(ToString::to_string).collect(),
    }]);
    #[cfg(feature = "cuda")]
    let devices = devices.chain(qwen_backend_cuda::devices().unwrap_or_default().into_iter().map(|card| DeviceEntry {
        device: Device::Cuda(card.ordinal),
        name: card.name,
        kind: "discrete",
        driver: Some(format!("CUDA {}.{}", card.driver.0, card.driver.1)),
        memory_bytes: Some(card.memory),
        limits: BTreeMap::from([("multiprocessors", card.multiprocessors.into())]),
        features: vec![format!("compute capability {}.{}", card.compute_capability.0, card.compute_capability.1)],
    }));
    #[cfg(feature = "wgpu")]
    let devices = devices.chain(qwen_backend_wgpu::adapters().into_iter().map(|adapter| DeviceEntry {
        device: Device::Wgpu(AdapterChoice::Index(adapter.index)),
        kind: adapter.kind,
        driver: Some(format!("{}, {}", adapter.api, adapter.driver)),
        memory_bytes: adapter.memory,
        limits: BTreeMap::from([
            ("max_binding_bytes", adapter.max_binding_bytes),
            ("max_buffer_bytes", adapter.max_buffer_bytes),
            ("max_workgroup_bytes", adapter.max_workgroup_bytes.into()),
            ("max_storage_buffers", adapter.max_storage_buffers.into()),
        ]),
        features: adapter.features.iter().map(ToString::to_string).collect(),
        name: adapter.name,
    }));
    devices.collect()
}

/// The kinds of devices that this build could run on, had this machine any: each with why it has none.
///
/// ```
/// for (device, reason) in qwen::absent_devices() {
///     println!("{device}: {reason}");
/// }
/// ```
pub fn absent_devices() -> Vec<(&'static str, String)> {
    let absent = std::iter::empty();
    #[cfg(feature = "cuda")]
    let absent = absent.chain(qwen_backend_cuda::devices().err().map(|error| ("cuda", error.to_string())));
    #[cfg(feature = "wgpu")]
    let absent = absent
        .chain(qwen_backend_wgpu::adapters().is_empty().then(|| ("wgpu", "no driver offers an adapter".to_string())));
    absent.collect()
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
