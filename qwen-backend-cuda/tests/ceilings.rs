//! The ceiling meter on the emulator: its figures mean nothing there, but its kernels run.

mod common;

use std::time::Duration;

use common::{HOPPER, TURING, kernels};
use qwen_backend_cuda::CudaOptions;
use qwen_backend_cuda::ceilings::CeilingMeter;
use qwen_backend_cuda::emulator::EmulatedGpu;
use qwen_core::Error;

#[test]
fn every_ceiling_is_measured() {
    let kernels = match kernels() {
        Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
        built => built.unwrap(),
    };
    for (major, minor) in [TURING, HOPPER] {
        let options = CudaOptions::new().emulated(EmulatedGpu::new(kernels).compute_capability(major, minor));
        let ceilings = CeilingMeter::new(&options).unwrap().measure(Duration::from_micros(1)).unwrap();
        assert!(ceilings.memory_bytes_per_second > 0.0 && ceilings.copy_bytes_per_second > Some(0.0), "{ceilings:?}");
        assert!(ceilings.f32_flops_per_second > 0.0, "{ceilings:?}");
        assert_eq!(ceilings.bf16_flops_per_second.is_some(), (major, minor) == HOPPER, "{ceilings:?}");
    }
}
