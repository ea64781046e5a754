//! The processor: the device of the feature `cpu`.

use std::collections::BTreeMap;

use qwen_backend_cpu::{CpuBackend, CpuFootprint, CpuOptions, Isa, physical_cores};
use qwen_core::model::plan::Plan;
use qwen_core::{Result, memory};

use super::factory::{
    Capacity, DeviceCapacity, DeviceFactory, DeviceSettings, MAX_NUM_BATCHED_TOKENS, Memory, OpenedBackend,
    OpenedDevice, host_bytes,
};
use super::{Device, DeviceEntry, Kind};

pub(super) const KIND: Kind = Kind { entries, absent: || None, gpus: Vec::new };

fn entries() -> Vec<DeviceEntry> {
    vec![DeviceEntry {
        device: Device::Cpu,
        name: format!("cpu ({})", Isa::best()),
        kind: "processor",
        driver: None,
        memory_bytes: memory::available_memory().map(|memory| memory.available),
        limits: BTreeMap::from([("physical_cores", physical_cores() as u64)]),
        features: Isa::available().iter().map(ToString::to_string).collect(),
    }]
}

/// The processor, before a backend is made for it.
#[derive(Debug)]
pub(super) struct Cpu;

impl DeviceFactory for Cpu {
    fn device(&self) -> Option<Device> {
        Some(Device::Cpu)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(memory::available_memory().map(|memory| memory.available))
    }

    fn capacity(&self, settings: &DeviceSettings) -> Result<Capacity> {
        Ok(Capacity::One(DeviceCapacity {
            footprint: Box::new(CpuFootprint),
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
            available_bytes: host_bytes(settings),
            memory: Memory::Host,
        }))
    }

    fn open(self: Box<Self>, settings: &DeviceSettings, _: &Plan) -> Result<Box<dyn OpenedDevice>> {
        let mut options = CpuOptions::new().precision(settings.precision);
        // The processes of a machine share its cores.
        let processes = settings.position.local_world_size;
        let share = (processes > 1).then(|| (physical_cores() / processes).max(1));
        options.threads = settings.threads.or(share);
        options.pool = settings.pool.clone();
        Ok(OpenedBackend::boxed(CpuBackend::new(options)?))
    }
}
