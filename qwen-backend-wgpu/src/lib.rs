//! The GPU kernels of qwen-rs as WGSL compute shaders, through wgpu: Vulkan, Metal and DX12.
//!
//! [`WgpuBackend`] implements [`qwen_core::Backend`]. From an operation to its arithmetic:
//!
//! - `backend.rs` lists the operations; each lies in a file of `ops/`, which checks sizes and chooses a kernel;
//! - `executor.rs` has the state of a backend and queues kernels; a step of tokens whose shape was seen before is queued
//!   as a whole;
//! - `runtime/` is the device below: its memory, its pipelines, the buffers that the host writes through, and the faults
//!   that the driver reports;
//! - `shader.rs` composes the WGSL of `shaders/`, one file a kernel;
//! - `weight.rs` and `kv.rs` say how matrices and K/V lie in memory, split to the limits of a binding, and `workspace.rs`
//!   holds what kernels need beside them;
//! - `footprint.rs` says what all of that takes, without a device, by the sizes of `geometry.rs`; [`ceilings`] measures
//!   what a device could do at best.

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
