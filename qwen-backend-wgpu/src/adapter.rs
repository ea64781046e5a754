//! The adapters of this machine: what they are, what they offer, and which one a choice selects.

use std::fmt;

use qwen_core::{Error, Result};

use qwen_core::backend::{AdapterChoice, CapabilitySet};

/// A GPU, or a software adapter, as described by its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// Its index in [`adapters`].
    pub index: usize,
    /// The name that the driver gives.
    pub name: String,
    /// The API behind it: `vulkan`, `metal` or `dx12`.
    pub api: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// The driver with its version.
    pub driver: String,
    /// Bytes of its largest memory, if the API reports it.
    pub memory: Option<u64>,
    /// The largest storage buffer binding of a kernel.
    pub max_binding_bytes: u64,
    /// The largest buffer.
    pub max_buffer_bytes: u64,
    /// Bytes of workgroup memory of a kernel.
    pub max_workgroup_bytes: u32,
    /// The most storage buffers of a kernel.
    pub max_storage_buffers: u32,
    /// Features that kernels can use: `f16`, `subgroups`, `cooperative-matrices`, `timestamps`, `integer-dots`.
    pub features: Vec<&'static str>,
    /// The most threads that run in lockstep: a power of two; 32 if the API does not say.
    pub(crate) subgroup: u32,
    /// Whether kernels can multiply and add four signed bytes at once: a feature of the language.
    pub(crate) integer_dots: bool,
    /// Its cooperative matrices, if kernels can use them.
    pub(crate) cooperative: Option<Cooperative>,
}

/// Cooperative matrices of f16 that are summed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cooperative {
    /// Rows, columns and depth of a matrix.
    pub(crate) size: u32,
    /// Threads of a subgroup: the same for all subgroups of this adapter.
    pub(crate) subgroup: u32,
}

impl Cooperative {
    const FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        .union(wgpu::Features::SHADER_F16)
        .union(wgpu::Features::SUBGROUP);

    /// The largest matrices that `adapter` offers. Kernels are compiled for one subgroup size, so it must not vary.
    fn of(adapter: &wgpu::Adapter) -> Option<Self> {
        let info = adapter.get_info();
        let subgroup = (info.subgroup_min_size == info.subgroup_max_size).then_some(info.subgroup_max_size)?;
        let sizes = adapter.cooperative_matrix_properties().into_iter().filter_map(|offered| {
            let square = offered.m_size == offered.n_size && offered.n_size == offered.k_size;
            let types = (offered.ab_type, offered.cr_type);
            let usable = types == (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
            (square && usable && [8, 16].contains(&offered.m_size)).then_some(offered.m_size)
        });
        let limits = adapter.limits();
        let fits = adapter.features().contains(Self::FEATURES)
            && 4 * subgroup <= limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
            && limits.max_storage_buffers_per_shader_stage >= 9;
        sizes.max().filter(|_| fits).map(|size| Cooperative { size, subgroup })
    }
}

impl AdapterInfo {
    /// The adapter that `choice` selects. It is not opened.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no such adapter, with the adapters that were found.
    pub fn of(choice: &AdapterChoice) -> Result<Self> {
        Ok(choose(choice)?.1)
    }

    /// Whether it shares the CPU's memory, so that the limits of the process apply to it too.
    pub fn shares_host_memory(&self) -> bool {
        matches!(self.kind, "integrated" | "software")
    }

    /// Whether it computes on the CPU: such an adapter is used only if it is named.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }
}

#[cfg(test)]
impl AdapterInfo {
    /// A device without a driver, with WebGPU's default limits and 1 GiB: its buffers are in host memory.
    pub(crate) fn idle() -> Self {
        let limits = wgpu::Limits::defaults();
        AdapterInfo {
            index: 0,
            name: "idle".into(),
            api: "noop".into(),
            kind: "other",
            driver: String::new(),
            memory: Some(1 << 30),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            features: Vec::new(),
            subgroup: 32,
            integer_dots: true,
            cooperative: None,
        }
    }
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}, {})", self.name, self.api, self.kind, self.driver)
    }
}

/// The adapters of this machine, in a fixed order. None is opened.
///
/// ```
/// for adapter in qwen_backend_wgpu::adapters() {
///     println!("{}: {adapter}", adapter.index);
/// }
/// ```
pub fn adapters() -> Vec<AdapterInfo> {
    enumerate().into_iter().map(|(info, _)| info).collect()
}

/// The adapters that are GPUs, best first: discrete before integrated before others, then by memory. None is opened.
///
/// ```
/// assert!(qwen_backend_wgpu::hardware_adapters().iter().all(|adapter| !adapter.is_software()));
/// ```
pub fn hardware_adapters() -> Vec<AdapterInfo> {
    ranked(adapters())
}

fn instance() -> wgpu::Instance {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

/// The adapters, each with its description.
fn enumerate() -> Vec<(AdapterInfo, wgpu::Adapter)> {
    let instance = instance();
    let language = instance.wgsl_language_features();
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let described = |(index, adapter)| (describe(index, &adapter, &language), adapter);
    found.into_iter().enumerate().map(described).collect()
}

fn describe(index: usize, adapter: &wgpu::Adapter, language: &wgpu::WgslLanguageFeatures) -> AdapterInfo {
    let (info, limits, offered) = (adapter.get_info(), adapter.limits(), adapter.features());
    let integer_dots = language.contains(wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct);
    let known = [
        (wgpu::Features::SHADER_F16, "f16"),
        (wgpu::Features::SUBGROUP, "subgroups"),
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative-matrices"),
        (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
    ];
    AdapterInfo {
        index,
        api: format!("{:?}", info.backend).to_lowercase(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        },
        driver: [info.driver, info.driver_info].join(" ").trim().to_string(),
        name: info.name,
        memory: memory(adapter),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        subgroup: if info.subgroup_max_size.is_power_of_two() { info.subgroup_max_size } else { 32 },
        cooperative: Cooperative::of(adapter),
        features: known
            .iter()
            .filter(|(feature, _)| offered.contains(*feature))
            .map(|(_, name)| *name)
            .chain(integer_dots.then_some("integer-dots"))
            .collect(),
        integer_dots,
    }
}

/// Bytes of the largest heap of the device's own memory. Vulkan reports it, WebGPU does not.
#[cfg(not(target_vendor = "apple"))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handle is only used to query properties while the adapter exists, and not kept.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device belongs to this instance.
    let properties = unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    let heaps = &properties.memory_heaps[..properties.memory_heap_count as usize];
    // Bit 0 of a heap's flags: DEVICE_LOCAL.
    heaps.iter().filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size).max()
}

#[cfg(target_vendor = "apple")]
fn memory(_adapter: &wgpu::Adapter) -> Option<u64> {
    None
}

/// The adapter that `choice` selects, and its description.
pub(crate) fn choose(choice: &AdapterChoice) -> Result<(wgpu::Adapter, AdapterInfo)> {
    let found = enumerate();
    let listed = || match found.is_empty() {
        true => "no driver offers one".into(),
        false => found.iter().map(|(info, _)| format!("{}: {info}", info.index)).collect::<Vec<_>>().join("; "),
    };
    let chosen = match choice {
        AdapterChoice::Best => {
            ranked(found.iter().map(|(info, _)| info.clone()).collect()).first().map(|info| info.index)
        }
        AdapterChoice::Index(index) => Some(*index),
        AdapterChoice::Name(name) => {
            let name = name.to_lowercase();
            found.iter().find(|(info, _)| info.name.to_lowercase().contains(&name)).map(|(info, _)| info.index)
        }
        _ => None,
    };
    let what = match choice {
        AdapterChoice::Best => "a wgpu device".to_string(),
        AdapterChoice::Index(index) => format!("wgpu device {index}"),
        AdapterChoice::Name(name) => format!("a wgpu device named `{name}`"),
        other => format!("a wgpu device chosen by `{other}`"),
    };
    let reason = || match choice {
        AdapterChoice::Best => format!("no hardware adapter was found; name a software one to use it ({})", listed()),
        _ => format!("there is no such adapter ({})", listed()),
    };
    match chosen.and_then(|index| found.iter().find(|(info, _)| info.index == index)) {
        Some((info, adapter)) => Ok((adapter.clone(), info.clone())),
        None => Err(Error::unsupported(what, reason())),
    }
}

/// The GPUs among `adapters`, best first.
fn ranked(mut adapters: Vec<AdapterInfo>) -> Vec<AdapterInfo> {
    let rank = |info: &AdapterInfo| match info.kind {
        "discrete" => 3,
        "integrated" => 2,
        "virtual" => 1,
        _ => 0,
    };
    adapters.retain(|info| !info.is_software());
    // Stable: equal adapters keep their order.
    adapters.sort_by_key(|info| std::cmp::Reverse((rank(info), info.memory)));
    adapters
}

/// The limits and features with which a device of `adapter` is opened.
pub(crate) fn capabilities(adapter: &wgpu::Adapter, set: CapabilitySet) -> (wgpu::Limits, wgpu::Features) {
    let (limits, features) = limits_and_features(adapter.limits(), adapter.features(), set);
    match Cooperative::of(adapter) {
        Some(_) if set == CapabilitySet::Best => (limits, features | Cooperative::FEATURES),
        _ => (limits, features),
    }
}

/// The part of what an adapter offers that a set of capabilities uses.
pub(crate) fn limits_and_features(
    offered: wgpu::Limits,
    features: wgpu::Features,
    set: CapabilitySet,
) -> (wgpu::Limits, wgpu::Features) {
    let minimal = wgpu::Limits::defaults().using_alignment(offered.clone());
    match set {
        CapabilitySet::Tiny => {
            (wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..minimal }, wgpu::Features::empty())
        }
        CapabilitySet::Minimal => (minimal, wgpu::Features::empty()),
        // The default set, and what `Best` shares with it.
        _ => (offered, features & wgpu::Features::PIPELINE_CACHE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, kind: &'static str, memory: u64) -> AdapterInfo {
        AdapterInfo {
            index,
            name: format!("adapter {index}"),
            api: "vulkan".into(),
            kind,
            driver: "driver 1".into(),
            memory: Some(memory),
            max_binding_bytes: 1 << 30,
            max_buffer_bytes: 1 << 30,
            max_workgroup_bytes: 1 << 15,
            max_storage_buffers: 8,
            features: Vec::new(),
            subgroup: 32,
            integer_dots: true,
            cooperative: None,
        }
    }

    #[test]
    fn adapters_are_ranked_by_kind_and_memory_and_never_software() {
        let software = adapter(0, "software", 100);
        let (integrated, small, large) =
            (adapter(1, "integrated", 64), adapter(2, "discrete", 8), adapter(3, "discrete", 24));
        let order = |adapters: &[&AdapterInfo]| -> Vec<usize> {
            ranked(adapters.iter().copied().cloned().collect()).iter().map(|info| info.index).collect()
        };
        assert!(order(&[&software]).is_empty());
        assert_eq!(order(&[&software, &integrated, &small, &large]), [3, 2, 1]);
        assert_eq!(order(&[&adapter(4, "discrete", 24), &large]), [4, 3]);
    }

    #[test]
    fn an_absent_adapter_is_named_with_what_was_found() {
        let error = choose(&AdapterChoice::Name("no such adapter".into())).unwrap_err().to_string();
        assert!(error.contains("no such adapter") && error.contains("there is no such adapter"), "{error}");
        assert!(choose(&AdapterChoice::Index(1000)).is_err());
    }
}
