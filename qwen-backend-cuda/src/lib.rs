//! The NVIDIA GPU kernels of qwen-rs. Building needs only Rust, and running only the GPU's driver: the kernels are compiled
//! to PTX beforehand, and the driver's library is opened at run time.
//!
//! [`CudaBackend`] implements [`qwen_core::Backend`]. From an operation to its arithmetic:
//!
//! - `backend.rs` has one short method an operation; a file an operation in `backend/` checks sizes, chooses a kernel and
//!   records the launch, and `backend/steps.rs` says what is recorded and run again;
//! - `launch.rs` builds a launch with its checks, `gpu.rs` queues it, copies through pinned memory, and keeps the faults
//!   that the driver reports;
//! - `driver.rs` is the interface to a driver: the real one (`driver/cuda.rs`), or an emulated GPU in tests;
//! - `kernel.rs`, `params.rs` and `geometry.rs` hold the kernels' names, parameters and block sizes; their sources are in
//!   `kernels/`, one file an operation, with kernels/params.cuh as the contract;
//! - `weight.rs`, `kv.rs` and `workspace.rs` define how matrices, K/V and the memory of a step lie on the GPU, and
//!   `footprint.rs` what they take, without a device; `sizes.rs` computes sizes in checked arithmetic;
//! - `nccl.rs` sums over GPUs ([`NcclGroup`]); [`ceilings`] measures a GPU's own limits.
//!
//! # Faults
//!
//! A fault of a kernel is found at the next wait, as a typed error that names the operations queued since the last one;
//! [`CudaOptions::wait_after_each_kernel`] names the kernel. The context of the GPU is lost with it, and all that this
//! process has on the GPU. After every backend on the GPU is dropped its context is released, and a new backend opens a
//! new one. CUDA's documentation promises that only for a fresh process: if the new context fails, too, restart the
//! process. NCCL keeps a GPU's context, so that after a fault a process that has summed over GPUs cannot use them again.

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
