//! The CPU kernels of qwen-rs: SIMD chosen at run time, threads that claim small pieces.
//!
//! [`CpuBackend`] implements [`qwen_core::Backend`]. The way from an operation to its arithmetic:
//!
//! - `backend.rs` checks sizes and records the operation;
//! - `exec.rs` runs what a step recorded, in one go on all threads;
//! - `kernels/` has each operation's arithmetic once, over the vectors of `simd/`;
//! - `matrix.rs` and `kv.rs` say how weights and K/V lie in memory, which is what the kernels are fast by.
//!
//! Results are the same bits with any number of threads, for any mix of sequences in a batch, and however a prompt is
//! cut into chunks. [`ceilings`] measures what the machine could do at best, to compare with.

#[cfg(target_endian = "big")]
compile_error!("weights are kept as files have them, little-endian");

mod backend;
pub mod ceilings;
mod error;
mod exec;
mod footprint;
mod formats;
mod host;
mod inputs;
mod kernels;
mod kv;
mod matrix;
mod memory;
mod options;
mod recorder;
mod simd;

pub use backend::{CpuBackend, CpuBuffer, CpuIndices, CpuKv, CpuWeight};
pub use footprint::CpuFootprint;
pub use host::physical_cores;
pub use options::CpuOptions;
pub use simd::Isa;
