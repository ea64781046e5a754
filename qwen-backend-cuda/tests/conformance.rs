//! The conformance suite through the emulator: as a GPU without tensor cores for bf16 (7.5) and one with them (9.0), in
//! both precisions. Its operations also run with the threads of each block in reverse.

mod common;

use common::{HOPPER, TURING, backend};
use qwen_backend_cuda::CudaBackend;
use qwen_conformance::{Outcome, Suite, cases};
use qwen_core::Precision;

qwen_conformance::conformance_tests! {
    exact => || backend(TURING, Precision::Exact, false),
    fast_plain => Suite::new(|| backend(TURING, Precision::Fast, false)).fast_depends_on_the_batch(),
    fast_tensor => Suite::new(|| backend(HOPPER, Precision::Fast, false)).fast_depends_on_the_batch(),
}

/// All cases except those over whole models, which issue the same operations.
fn operations(suite: &Suite<CudaBackend>) {
    for case in cases().iter().filter(|case| !case.name.starts_with("model/") && !case.name.starts_with("parts/")) {
        match suite.outcome(case) {
            Outcome::Passed { .. } => {}
            Outcome::Skipped(reason) => eprintln!("skipped {}: {reason}", case.name),
            Outcome::Failed(failures) => panic!("{failures}"),
        }
    }
}

#[test]
fn exact_backwards() {
    operations(&Suite::new(|| backend(TURING, Precision::Exact, true)));
}

#[test]
fn fast_plain_backwards() {
    operations(&Suite::new(|| backend(TURING, Precision::Fast, true)).fast_depends_on_the_batch());
}

#[test]
fn fast_tensor_backwards() {
    operations(&Suite::new(|| backend(HOPPER, Precision::Fast, true)).fast_depends_on_the_batch());
}
