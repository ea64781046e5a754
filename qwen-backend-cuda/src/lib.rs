//! The NVIDIA GPU kernels of qwen-rs. A build needs Rust alone, and a program needs the card's driver alone: the
//! kernels are compiled to PTX beforehand, and the driver is looked for when the program runs.
//!
//! [`CudaBackend`] implements [`qwen_core::Backend`]. The way from an operation to its arithmetic:
//!
//! - `backend.rs` checks sizes and chooses a kernel; `backend/steps.rs` records what a step runs;
//! - `gpu.rs` queues it, copies through pinned memory, and keeps the faults that the driver reports;
//! - `driver.rs` is what is asked of a driver: the card's own (`driver/card.rs`), or the processor in tests;
//! - `kernel.rs`, `params.rs` and `geometry.rs` say what the kernels are called, take and how large their blocks are;
//!   their sources lie in `kernels/`, one file an operation, with kernels/params.cuh as the contract;
//! - `weight.rs`, `kv.rs` and `records.rs` say how matrices, K/V and the records of attention lie in memory,
//!   `footprint.rs` what that takes, without a device;
//! - [`ceilings`] measures what a card could do at best, and [`NcclGroup`] sums over cards.
//!
//! # When a card faults
//!
//! A fault of a kernel is found at the next wait, as a typed error that names the operations queued since the last one;
//! [`CudaOptions::wait_after_each_kernel`] names the kernel. It takes the context of the card with it, and with it all
//! that this process has on the card. Once every backend on the card is dropped its context is released, and a new
//! backend opens a new one. CUDA's documentation promises that for a fresh process alone: where the new context fails,
//! too, the process has to be started again. NCCL keeps a card's context for itself, so that after a fault a process that
//! has summed over cards cannot go on with them.

mod backend;
mod card_info;
pub mod ceilings;
mod driver;
mod footprint;
mod geometry;
mod gpu;
mod kernel;
mod kv;
mod modules;
mod nccl;
mod options;
mod params;
mod records;
#[cfg(test)]
mod tests;
mod weight;

pub use backend::{CudaBackend, CudaBuffer, CudaIndices, CudaKv, CudaWeight};
pub use card_info::{CardInfo, cards, free_bytes};
pub use footprint::CudaFootprint;
pub use nccl::{NcclGroup, nccl_present};
pub use options::CudaOptions;

/// The kernels on the processor, for tests.
#[cfg(feature = "emulator")]
pub mod emulator {
    pub use crate::driver::emulated::EmulatedCard;
    pub use crate::driver::library::Kernels;
}
