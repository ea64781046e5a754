//! The NVIDIA GPU kernels of qwen-rs. Building needs only Rust, and running only the GPU's driver: the kernels are compiled
//! to PTX beforehand, and the driver's library is opened at run time.
//!
//! [`CudaBackend`] implements [`qwen_core::Backend`]. From an operation to its arithmetic:
//!
//! - `backend.rs` has one short method per operation; a file per operation in `backend/` checks sizes, chooses a kernel
//!   and records the launch; `backend/steps.rs` records and replays steps;
//! - `launch.rs` builds and checks a launch; `gpu.rs` queues it, copies through pinned memory, and keeps the faults
//!   that the driver reports;
//! - `driver.rs` is the interface to a driver: the real one (`driver/cuda.rs`), or an emulated GPU in tests;
//! - `kernel.rs`, `params.rs` and `geometry.rs` hold the kernels' names, parameters and block sizes; their sources are
//!   in `kernels/`, with kernels/params.cuh as the common interface;
//! - `weight.rs`, `kv.rs` and `workspace.rs` define the layout of matrices, K/V and workspace on the GPU, and
//!   `footprint.rs` computes their sizes without a device; `sizes.rs` has the checked size arithmetic;
//! - `nccl.rs` sums over GPUs ([`NcclGroup`]); [`ceilings`] measures a GPU's own limits.
//!
//! # Faults
//!
//! A fault of a kernel is found at the next wait, as a typed error that names the operations queued since the last one;
//! [`CudaOptions::wait_after_each_kernel`] names the kernel. It loses the GPU's context and everything that this
//! process has on the GPU. Once every backend on the GPU is dropped, its context is released, and a new backend opens a
//! new one. CUDA's documentation guarantees recovery only for a new process: if the new context fails too, restart the
//! process. NCCL keeps a GPU's context, so after a fault a process that has summed over GPUs cannot use them again.

mod backend;
pub mod ceilings;
mod device;
mod driver;
mod footprint;
mod geometry;
mod gpu;
mod kernel;
mod kv;
mod launch;
mod lock;
mod modules;
mod nccl;
mod options;
mod params;
mod sizes;
#[cfg(test)]
mod tests;
mod weight;
mod workspace;

pub use backend::{CudaBackend, CudaBuffer, CudaIndices, CudaKv, CudaWeight};
pub use device::DeviceProperties;
pub use driver::machine::{device, devices, free_bytes};
pub use footprint::CudaFootprint;
pub use nccl::{NcclGroup, nccl_present};
pub use options::CudaOptions;

/// The kernels on the CPU, for tests.
#[cfg(feature = "emulator")]
pub mod emulator {
    pub use crate::driver::emulated::EmulatedGpu;
    pub use crate::driver::library::Kernels;
}
