//! Recorded steps have the bits of eager ones, through the emulator.

mod common;

use common::{HOPPER, kernels};
use qwen_backend_cuda::emulator::EmulatedGpu;
use qwen_backend_cuda::{CudaBackend, CudaOptions};

#[path = "common/recorded.rs"]
mod recorded;

#[test]
fn recorded_steps_have_the_bits_of_eager_ones() {
    let kernels = match kernels() {
        Err(error @ qwen_core::Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
        built => built.unwrap(),
    };
    recorded::recorded_steps_have_the_bits_of_eager_ones(|precision, eager| {
        let gpu = EmulatedGpu::new(kernels).compute_capability(HOPPER.0, HOPPER.1);
        CudaBackend::new(CudaOptions::new().emulated(gpu).precision(precision).wait_after_each_kernel(eager))
    });
}
