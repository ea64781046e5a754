//! GPUs through Vulkan, Metal or DX12: the devices of the feature `wgpu`.

use std::collections::BTreeMap;

use qwen_backend_wgpu::{
    AdapterChoice, AdapterInfo, WgpuBackend, WgpuFootprint, WgpuOptions, adapters, hardware_adapters,
};
use qwen_core::Result;
use qwen_core::model::plan::Plan;

use super::factory::{
    Capacity, DeviceCapacity, DeviceFactory, DeviceSettings, MAX_NUM_BATCHED_TOKENS, Memory, OpenedBackend,
    OpenedDevice, host_bytes,
};
use super::{Device, DeviceEntry, Gpu, Kind};

pub(super) const KIND: Kind = Kind { entries, absent, gpus };

fn entries() -> Vec<DeviceEntry> {
    let entry = |adapter: AdapterInfo| DeviceEntry {
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
    };
    adapters().into_iter().map(entry).collect()
}

fn absent() -> Option<(&'static str, String)> {
    adapters().is_empty().then(|| ("wgpu", "no driver offers an adapter".to_string()))
}

fn gpus() -> Vec<Gpu> {
    let gpu = |adapter: AdapterInfo| Gpu {
        device: Device::Wgpu(AdapterChoice::Index(adapter.index)),
        // For a GPU that shares the host's memory, its size is known as for the CPU.
        has_known_memory: adapter.memory.is_some() || adapter.shares_host_memory(),
        name: adapter.name,
    };
    hardware_adapters().into_iter().map(gpu).collect()
}

/// An adapter that is not open yet.
#[derive(Debug)]
pub(super) struct Wgpu {
    pub(super) adapter: AdapterChoice,
}

impl DeviceFactory for Wgpu {
    fn device(&self) -> Option<Device> {
        Some(Device::Wgpu(self.adapter.clone()))
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn capacity(&self, settings: &DeviceSettings) -> Result<Capacity> {
        let info = AdapterInfo::of(&self.adapter)?;
        let (memory, host) = match info.shares_host_memory() {
            true => (Memory::Host, host_bytes(settings)),
            // Named by its index, since one adapter has many names.
            false => (Memory::Own(Device::Wgpu(AdapterChoice::Index(info.index))), None),
        };
        Ok(Capacity::One(DeviceCapacity {
            footprint: Box::new(WgpuFootprint::on(&info, settings.wgpu_capabilities)),
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
            available_bytes: info.memory.into_iter().chain(host).min(),
            memory,
        }))
    }

    fn open(self: Box<Self>, settings: &DeviceSettings, _: &Plan) -> Result<Box<dyn OpenedDevice>> {
        let options = WgpuOptions::new()
            .adapter(self.adapter)
            .precision(settings.precision)
            .capabilities(settings.wgpu_capabilities);
        Ok(OpenedBackend::boxed(WgpuBackend::new(options)?))
    }
}
