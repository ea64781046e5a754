//! Whole checkpoints on every instruction set and in both precisions against recorded results of transformers. The
//! printed table is the one in docs/numerics.md.

use std::path::Path;

use qwen_backend_cpu::{CpuBackend, CpuOptions, Isa};
use qwen_conformance::goldens::{Goldens, folder};
use qwen_core::{Encoding, Error, Precision};

fn run(goldens: &Goldens, precision: Precision) {
    run_with(goldens, precision, None);
}

fn run_with(goldens: &Goldens, precision: Precision, kv_encoding: Option<Encoding>) {
    assert!(!goldens.cases().is_empty(), "no cases in {goldens:?}");
    let mut failed = Vec::new();
    for isa in Isa::ALL {
        // Plain loops are too slow for the long prompts; the conformance suite covers their lengths.
        let longest = if isa == Isa::Scalar { 300 } else { usize::MAX };
        for case in goldens.cases().iter().filter(|case| case.prompt_lengths.iter().any(|len| *len <= longest)) {
            let options = CpuOptions::new().isa(isa).precision(precision).threads(2);
            let result = match CpuBackend::new(options) {
                Ok(backend) => goldens.run_with(case, backend, longest, kv_encoding),
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

fn fixture() -> Goldens {
    Goldens::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden")).expect("a golden suite")
}

/// All cases of the suite whose formats begin with one of these.
fn formats(prefixes: &[&str], precision: Precision) {
    if let Some(folder) = folder() {
        let named = |format: &str| prefixes.iter().any(|prefix| format.starts_with(prefix));
        run(&Goldens::open_formats(folder, named).expect("a golden suite"), precision);
    }
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
        run(&Goldens::open(folder).expect("a golden suite"), Precision::Exact);
    }
}

#[test]
fn full_suite_fast() {
    if let Some(folder) = folder() {
        run(&Goldens::open(folder).expect("a golden suite"), Precision::Fast);
    }
}

#[test]
fn gguf_exact() {
    formats(&["gguf"], Precision::Exact);
}

#[test]
fn gguf_fast() {
    formats(&["gguf"], Precision::Fast);
}

#[test]
fn gptq_and_awq_exact() {
    formats(&["gptq", "awq"], Precision::Exact);
}

#[test]
fn gptq_and_awq_fast() {
    formats(&["gptq", "awq"], Precision::Fast);
}

/// Every case with K/V in blocks of signed bytes.
fn kv_in_q8_0(precision: Precision) {
    run_with(&fixture(), precision, Some(Encoding::Q8_0));
    if let Some(folder) = folder() {
        let all = Goldens::open_formats(folder, |_| true).expect("a golden suite");
        run_with(&all, precision, Some(Encoding::Q8_0));
    }
}

#[test]
fn kv_in_q8_0_exact() {
    kv_in_q8_0(Precision::Exact);
}

#[test]
fn kv_in_q8_0_fast() {
    kv_in_q8_0(Precision::Fast);
}
