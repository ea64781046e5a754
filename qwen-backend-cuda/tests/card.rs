//! What needs an NVIDIA card: the conformance suite, whole checkpoints, memory. Skipped, with the reason, unless
//! `QWEN_CUDA_CARD=1` says that the first card may be used; `tools/gpu-check` does.

use qwen_backend_cuda::{CudaBackend, CudaOptions, free_bytes};
use qwen_core::backend::{MatrixPart, WeightRole, WeightView};
use qwen_core::conformance::Suite;
use qwen_core::conformance::goldens::{Goldens, folder};
use qwen_core::{Backend, Encoding, Error, Precision, Result};

/// A backend on the first card.
fn card(precision: Precision) -> Result<CudaBackend> {
    match std::env::var("QWEN_CUDA_CARD").as_deref() {
        Ok("1") => CudaBackend::new(CudaOptions::new().precision(precision)),
        _ => Err(Error::unsupported("a card", "QWEN_CUDA_CARD=1 is not set")),
    }
}

/// The same for tests outside of the suite.
fn card_or_skip() -> Option<CudaBackend> {
    card(Precision::Fast).inspect_err(|error| println!("skipped: {error}")).ok()
}

qwen_core::conformance_tests! {
    exact => || card(Precision::Exact),
    fast => Suite::new(|| card(Precision::Fast)).fast_depends_on_the_batch(),
}

fn goldens(precision: Precision) {
    let Some(folder) = folder() else { return };
    let goldens = Goldens::open(folder).unwrap();
    for case in goldens.cases() {
        let backend = match card(precision) {
            Ok(backend) => backend,
            Err(error) => return println!("skipped: {error}"),
        };
        let result = goldens.run(case, backend, usize::MAX).unwrap();
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

/// Twenty engines' worth of arrays and graphs come and go: the card has its memory back.
#[test]
fn faults_memory_comes_back() {
    let cycle = |mut backend: CudaBackend| {
        let (rows, cols) = (1 << 15, 1 << 12);
        let stored = vec![0; 2 * rows * cols];
        let parts = [MatrixPart::whole(Encoding::Bf16, rows, cols, &stored)];
        let w = backend.load(&WeightView { name: "w", role: WeightRole::Linear, parts: &parts }).unwrap();
        let (x, mut out) = (backend.alloc(8 * cols).unwrap(), backend.alloc(8 * rows).unwrap());
        backend.linear(&x, &w, None, &mut out, 8).unwrap();
        backend.synchronize().unwrap();
    };
    let Some(first) = card_or_skip() else { return };
    cycle(first);
    let before = free_bytes(0).unwrap();
    for _ in 0..20 {
        cycle(card(Precision::Fast).unwrap());
    }
    let after = free_bytes(0).unwrap();
    assert!(after + (16 << 20) >= before, "{before} bytes were free before 20 cycles, {after} are now");
}

#[test]
fn faults_out_of_memory_leaves_the_backend_usable() {
    let Some(mut backend) = card_or_skip() else { return };
    let error = backend.alloc(free_bytes(0).unwrap() as usize / 2).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    let mut x = backend.alloc(4).unwrap();
    backend.write(&mut x, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    let mut read = [0.0; 4];
    backend.read(&x, &mut read).unwrap();
    assert_eq!(read, [1.0, 2.0, 3.0, 4.0]);
}
