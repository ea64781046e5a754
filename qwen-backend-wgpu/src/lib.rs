//! The GPU kernels of qwen-rs as WGSL compute shaders, through wgpu: Vulkan, Metal and DX12.
//!
//! [`WgpuBackend`] implements [`qwen_core::Backend`]. From an operation to its arithmetic:
//!
//! - `backend.rs` lists the operations; each is in a file of `ops/`, which checks sizes and chooses a kernel;
//! - `executor.rs` has the state of a backend and queues kernels; a step of single tokens whose shape was seen before
//!   is queued as a whole;
//! - `runtime/` is the device layer below: memory, pipelines, staging buffers for host writes, and the faults that the
//!   driver reports;
//! - `shader.rs` composes the WGSL of `shaders/`, one file per kernel;
//! - `weight.rs` and `kv.rs` define the memory layout of matrices and K/V, split to fit the binding limit, and
//!   `workspace.rs` holds the other memory that kernels need;
//! - `footprint.rs` computes how much memory all of that takes, without a device, from the sizes in `geometry.rs`;
//!   [`ceilings`] measures the best rates of a device.

mod adapter;
mod backend;
pub mod ceilings;
mod executor;
mod footprint;
mod geometry;
mod kv;
mod ops;
mod options;
mod runtime;
mod shader;
mod stats;
#[cfg(test)]
mod tests;
mod weight;
mod workspace;

pub use adapter::{AdapterInfo, adapters, hardware_adapters};
pub use executor::{WgpuBackend, WgpuBuffer, WgpuIndices, WgpuKv, WgpuWeight};
pub use footprint::WgpuFootprint;
pub use options::WgpuOptions;
pub use qwen_core::backend::{AdapterChoice, CapabilitySet};
#[doc(hidden)]
pub use stats::WgpuStats;
