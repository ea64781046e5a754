//! NVIDIA GPUs: the devices of the feature `cuda`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use qwen_backend_cuda::{CudaBackend, CudaFootprint, CudaOptions, DeviceProperties, device, devices, free_bytes};
use qwen_core::Result;
use qwen_core::model::plan::Plan;

use super::factory::{Capacity, DeviceCapacity, DeviceFactory, DeviceSettings, Memory, OpenedBackend, OpenedDevice};
use super::{Device, DeviceEntry, Gpu, Kind};
use crate::distributed;

pub(super) const KIND: Kind = Kind { entries, absent, gpus };

/// Prompt tokens of a step by default. Fewer leave parts of a large GPU idle.
const MAX_NUM_BATCHED_TOKENS: usize = 2048;

/// What the driver uses itself while a model runs: compiled kernels, recorded steps, partly used pages.
const RESERVED_BYTES: u64 = 256 << 20;
/// The same with the buffers of sums over several GPUs.
const RESERVED_BYTES_WITH_PEERS: u64 = 768 << 20;

fn entries() -> Vec<DeviceEntry> {
    let entry = |gpu: DeviceProperties| DeviceEntry {
        device: Device::Cuda(gpu.ordinal),
        name: gpu.name,
        kind: "discrete",
        driver: Some(format!("CUDA {}.{}", gpu.driver.0, gpu.driver.1)),
        memory_bytes: Some(gpu.memory),
        limits: BTreeMap::from([("multiprocessors", gpu.multiprocessors.into())]),
        features: vec![format!("compute capability {}.{}", gpu.compute_capability.0, gpu.compute_capability.1)],
    };
    devices().unwrap_or_default().into_iter().map(entry).collect()
}

fn absent() -> Option<(&'static str, String)> {
    devices().err().map(|error| ("cuda", error.to_string()))
}

fn gpus() -> Vec<Gpu> {
    let mut gpus = devices().unwrap_or_default();
    gpus.sort_by_key(|gpu| Reverse((gpu.memory, gpu.compute_capability)));
    let gpu = |gpu: DeviceProperties| Gpu { device: Device::Cuda(gpu.ordinal), name: gpu.name, has_known_memory: true };
    gpus.into_iter().map(gpu).collect()
}

/// A GPU that is not open yet.
#[derive(Debug)]
pub(super) struct Cuda {
    /// The first GPU that the processes of this machine take.
    pub(super) ordinal: usize,
}

impl Cuda {
    /// The GPU of this process.
    fn ordinal(&self, settings: &DeviceSettings) -> Result<usize> {
        distributed::gpu_of(self.ordinal, settings.position, devices()?.len())
    }
}

impl DeviceFactory for Cuda {
    fn device(&self) -> Option<Device> {
        Some(Device::Cuda(self.ordinal))
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        free_bytes(self.ordinal).map(Some)
    }

    fn capacity(&self, settings: &DeviceSettings) -> Result<Capacity> {
        let ordinal = self.ordinal(settings)?;
        let gpu = device(ordinal)?;
        let is_alone = settings.position.world_size == 1;
        let reserved = if is_alone { RESERVED_BYTES } else { RESERVED_BYTES_WITH_PEERS };
        Ok(Capacity::One(DeviceCapacity {
            footprint: Box::new(CudaFootprint::on(&gpu, settings.precision)),
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
            available_bytes: Some(free_bytes(ordinal)?.saturating_sub(reserved)),
            memory: Memory::Own(Device::Cuda(ordinal)),
        }))
    }

    fn open(self: Box<Self>, settings: &DeviceSettings, _: &Plan) -> Result<Box<dyn OpenedDevice>> {
        let options = CudaOptions::new().ordinal(self.ordinal(settings)?).precision(settings.precision);
        Ok(Box::new(OpenedBackend { backend: CudaBackend::new(options)?, join: distributed::join_by_nccl }))
    }
}
