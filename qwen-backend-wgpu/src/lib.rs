//! The GPU kernels of qwen-rs as WGSL compute shaders, through wgpu: Vulkan, Metal and DX12.
//!
//! [`WgpuBackend`] implements [`qwen_core::Backend`]. The way from an operation to its arithmetic:
//!
//! - `backend.rs` checks sizes and chooses a kernel;
//! - `record.rs` queues it; a step whose shape was seen before is queued as a whole;
//! - `gpu.rs` keeps the device, its pipelines and bind groups, and the faults that the driver reports;
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
mod pipeline_cache;
mod record;
mod shader;
mod stats;
#[cfg(test)]
mod tests;
mod weight;

pub use adapter::{AdapterInfo, adapters, hardware_adapters};
pub use backend::{WgpuBackend, WgpuBuffer, WgpuIndices, WgpuKv, WgpuWeight};
pub use footprint::WgpuFootprint;
pub use options::{AdapterChoice, CapabilitySet, WgpuOptions};
pub use stats::WgpuStats;
