//! The GPU kernels of qwen-rs as WGSL compute shaders, through wgpu: Vulkan, Metal and DX12.
//!
//! [`WgpuBackend`] implements [`qwen_core::Backend`]. The way from an operation to its arithmetic:
//!
//! - `backend.rs` checks sizes and chooses a kernel;
//! - `record.rs` queues it, and `staging.rs` has the buffers that the host writes through; a step of tokens whose shape
//!   was seen before is queued as a whole;
//! - `gpu.rs` keeps the device and the faults that the driver reports, `pipelines.rs` its pipelines and bind groups,
//!   `params.rs` the places of kernels' parameters;
//! - `shader.rs` puts the WGSL of `shaders/` together, one file a kernel;
//! - `weight.rs` and `kv.rs` say how matrices and K/V lie in memory, split to the limits of a binding;
//! - `footprint.rs` says what that takes, without a device; [`ceilings`] measures what a device could do at best.

mod adapter;
mod backend;
pub mod ceilings;
mod footprint;
mod gpu;
mod kv;
mod options;
mod params;
mod pipeline_cache;
mod pipelines;
mod record;
mod shader;
mod staging;
mod stats;
#[cfg(test)]
mod tests;
mod weight;

pub use adapter::{AdapterInfo, adapters, hardware_adapters};
pub use backend::{WgpuBackend, WgpuBuffer, WgpuIndices, WgpuKv, WgpuWeight};
pub use footprint::WgpuFootprint;
pub use options::{AdapterChoice, CapabilitySet, WgpuOptions};
pub use stats::WgpuStats;
