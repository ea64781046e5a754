//! Whole checkpoints on every instruction set and in both precisions against recorded results of transformers. The
//! printed table is the one in docs/numerics.md.

use std::path::Path;

use qwen_backend_cpu::{CpuBackend, CpuOptions, Isa};
use qwen_conformance::goldens::{Goldens, folder};
use qwen_core::{Error, Precision};

fn run(folder: &Path, precision: Precision) {
    let goldens = Goldens::open(folder).expect("a golden suite");
    assert!(!goldens.cases().is_empty(), "no cases in {}", folder.display());
    let mut failed = Vec::new();
    for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Neon] {
        // Plain loops take the long prompts too long; the conformance suite covers their lengths.
        let longest = if isa == Isa::Scalar { 300 } else { usize::MAX };
        for case in goldens.cases().iter().filter(|case| case.prompt_lengths.iter().any(|len| *len <= longest)) {
            let options = CpuOptions::new().isa(isa).precision(precision).threads(2);
            let result = match CpuBackend::new(options) {
                Ok(backend) => goldens.run(case, backend, longest),
                Err(Error::Unsupported { what, reason }) => {
                    eprintln!("SKIPPED: {what}: {reason}");
                    break;
                }
                Err(error) => panic!("{error}"),
            };
            let result = result.unwrap_or_else(|error| panic!("{isa:?} {}: {error}", case.name));
            eprintln!("{isa:?} {result}");
            if !result.holds() {
                failed.push(format!("{isa:?} {result}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden")
}

#[test]
fn fixture_exact() {
    run(&fixture(), Precision::Exact);
}

#[test]
fn fixture_fast() {
    run(&fixture(), Precision::Fast);
}

#[test]
fn full_suite_exact() {
    if let Some(folder) = folder() {
        run(&folder, Precision::Exact);
    }
}

#[test]
fn full_suite_fast() {
    if let Some(folder) = folder() {
        run(&folder, Precision::Fast);
    }
}
