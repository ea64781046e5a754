//! What the tests run on: the kernels on the processor.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod sizes;

use std::path::Path;
use std::sync::OnceLock;

use qwen_backend_cuda::emulator::{EmulatedCard, Kernels};
use qwen_backend_cuda::{CudaBackend, CudaOptions};
use qwen_core::{Error, Precision, Result};

/// A card without tensor cores for bf16, and one with them.
pub(crate) const TURING: (u32, u32) = (7, 5);
pub(crate) const HOPPER: (u32, u32) = (9, 0);

/// The kernels, compiled once. Without a compiler the tests skip, each with this reason.
pub(crate) fn kernels() -> Result<&'static Kernels> {
    static KERNELS: OnceLock<Result<Kernels>> = OnceLock::new();
    let built = KERNELS.get_or_init(|| Kernels::build(Path::new(env!("CARGO_TARGET_TMPDIR"))));
    built.as_ref().map_err(|error| match error {
        Error::Unsupported { what, reason } => Error::unsupported(what, reason),
        other => Error::EngineStopped { reason: other.to_string() },
    })
}

/// A backend on an emulated card.
pub(crate) fn backend(capability: (u32, u32), precision: Precision, reverse: bool) -> Result<CudaBackend> {
    let card = EmulatedCard::new(kernels()?).compute_capability(capability.0, capability.1).reverse(reverse);
    CudaBackend::new(CudaOptions::new().emulated(card).precision(precision))
}
