//! The CPU kernels of qwen-rs: SIMD chosen at run time, threads that claim small pieces.
//!
//! [`CpuBackend`] implements [`qwen_core::Backend`]. The path from an operation to its arithmetic:
//!
//! - `backend.rs` checks sizes and records the operation;
//! - `exec/` runs the recorded operations of a step on all threads;
//! - `kernels/` has each operation's arithmetic, written once over the vectors of `simd/`;
//! - `matrix/` and `kv.rs` define the memory layouts of weights and K/V, on which the speed of the kernels depends.
//!
//! Results are bit-identical with any number of threads, for any mix of sequences in a batch, and however a prompt is
//! cut into chunks. [`ceilings`] measures the best rates of the machine, to compare with.

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
