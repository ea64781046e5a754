//! Tests that need an NVIDIA GPU: the conformance suite, whole checkpoints, graphs, memory. Skipped, with the reason,
//! unless `QWEN_CUDA_CARD=1` allows using the first GPU, as `tools/gpu-check` sets it.

use qwen_backend_cuda::{CudaBackend, CudaOptions, free_bytes};
use qwen_conformance::Suite;
use qwen_conformance::goldens::{Goldens, folder};
use qwen_core::{Backend, Error, Precision, Result};

#[path = "common/recorded.rs"]
mod recorded;

/// Whether the first GPU may be used. If it may, no test is skipped.
fn may_use_card() -> bool {
    let may = std::env::var("QWEN_CUDA_CARD").as_deref() == Ok("1");
    if !may {
        println!("skipped: QWEN_CUDA_CARD=1 is not set");
    }
    may
}

/// A backend on the first GPU.
fn gpu(precision: Precision) -> CudaBackend {
    CudaBackend::new(CudaOptions::new().precision(precision)).expect("a GPU")
}

/// The same for the suite, which skips a backend that is not supported.
fn suite(precision: Precision) -> Result<CudaBackend> {
    match may_use_card() {
        true => Ok(gpu(precision)),
        false => Err(Error::unsupported("a GPU", "QWEN_CUDA_CARD=1 is not set")),
    }
}

qwen_conformance::conformance_tests! {
    exact => || suite(Precision::Exact),
    fast => Suite::new(|| suite(Precision::Fast)).fast_depends_on_the_batch(),
}

fn goldens(precision: Precision) {
    if !may_use_card() {
        return;
    }
    let goldens = Goldens::open_formats(folder().expect("QWEN_GOLDEN names the goldens"), |_| true).unwrap();
    for case in goldens.cases() {
        let result = goldens.run(case, gpu(precision), usize::MAX).unwrap();
        println!("{result}");
        assert!(result.holds(), "{result}");
    }
}

#[test]
fn goldens_exact() {
    goldens(Precision::Exact);
}

#[test]
fn goldens_fast() {
    goldens(Precision::Fast);
}

#[test]
fn recorded_steps_have_the_bits_of_eager_ones() {
    if may_use_card() {
        recorded::recorded_steps_have_the_bits_of_eager_ones(|precision, eager| {
            CudaBackend::new(CudaOptions::new().precision(precision).wait_after_each_kernel(eager))
        });
    }
}

#[test]
fn faults_out_of_memory_leaves_the_backend_usable() {
    if !may_use_card() {
        return;
    }
    let mut backend = gpu(Precision::Fast);
    let error = backend.alloc(free_bytes(0).unwrap() as usize / 2).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    let mut x = backend.alloc(4).unwrap();
    backend.write(&mut x, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    let mut read = [0.0; 4];
    backend.read(&x, &mut read).unwrap();
    assert_eq!(read, [1.0, 2.0, 3.0, 4.0]);
}
