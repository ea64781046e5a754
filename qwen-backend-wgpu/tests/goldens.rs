//! Whole checkpoints against recorded results, on every set of capabilities. Prompts of 3,000 tokens take many minutes
//! in software: they run only with the largest set, and in the exact precision only if `QWEN_LONG_GOLDENS` is set.

mod common;

use std::path::PathBuf;

use common::{backend, best};
use qwen_backend_wgpu::CapabilitySet;
use qwen_conformance::goldens::{Goldens, folder};
use qwen_core::{Encoding, Precision, Result};

/// Cases with 16- and 32-bit weights.
fn run(capabilities: CapabilitySet, precision: Precision, longest: usize) {
    run_with(capabilities, precision, longest, None, Goldens::open);
}

/// Cases with weights in blocks: GGUF, GPTQ and AWQ.
fn run_blocks(capabilities: CapabilitySet, precision: Precision, longest: usize) {
    let blocks = |format: &str| ["gguf", "gptq", "awq"].iter().any(|prefix| format.starts_with(prefix));
    run_with(capabilities, precision, longest, None, |folder| Goldens::open_formats(folder, blocks));
}

/// Cases in these formats with K/V in blocks of signed bytes.
fn run_kv_in_q8_0(capabilities: CapabilitySet, precision: Precision, formats: impl Fn(&str) -> bool) {
    run_with(capabilities, precision, 200, Some(Encoding::Q8_0), |folder| Goldens::open_formats(folder, formats));
}

fn is_plain(format: &str) -> bool {
    ["bf16", "f16", "f32"].contains(&format)
}

fn run_with(
    capabilities: CapabilitySet,
    precision: Precision,
    longest: usize,
    kv_encoding: Option<Encoding>,
    open: impl FnOnce(PathBuf) -> Result<Goldens>,
) {
    if let Err(error) = backend(capabilities, precision) {
        return println!("skipped: {error}");
    }
    let Some(folder) = folder() else { return };
    let goldens = open(folder).unwrap();
    for case in goldens.cases() {
        if case.prompt_lengths.iter().all(|length| *length > longest) {
            println!("{capabilities:?} {} skipped: its prompts are longer than {longest} tokens", case.name);
            continue;
        }
        let result = goldens.run_with(case, backend(capabilities, precision).unwrap(), longest, kv_encoding).unwrap();
        println!("{capabilities:?} {result}");
        assert!(result.holds(), "{result}");
    }
}

#[test]
fn default_exact() {
    let runs_long = std::env::var_os("QWEN_LONG_GOLDENS").is_some();
    run(CapabilitySet::Default, Precision::Exact, if runs_long { usize::MAX } else { 600 });
}

#[test]
fn default_fast() {
    run(CapabilitySet::Default, Precision::Fast, usize::MAX);
}

#[test]
fn minimal_exact() {
    run(CapabilitySet::Minimal, Precision::Exact, 200);
}

#[test]
fn minimal_fast() {
    run(CapabilitySet::Minimal, Precision::Fast, 200);
}

#[test]
fn tiny_exact() {
    run(CapabilitySet::Tiny, Precision::Exact, 200);
}

#[test]
fn tiny_fast() {
    run(CapabilitySet::Tiny, Precision::Fast, 200);
}

#[test]
fn best_fast() {
    match best(Precision::Fast) {
        Ok(_) => run(CapabilitySet::Best, Precision::Fast, usize::MAX),
        Err(error) => println!("skipped: {error}"),
    }
}

#[test]
fn blocks_default_exact() {
    run_blocks(CapabilitySet::Default, Precision::Exact, 200);
}

#[test]
fn blocks_default_fast() {
    run_blocks(CapabilitySet::Default, Precision::Fast, 600);
}

#[test]
fn blocks_minimal_exact() {
    run_blocks(CapabilitySet::Minimal, Precision::Exact, 200);
}

#[test]
fn blocks_minimal_fast() {
    run_blocks(CapabilitySet::Minimal, Precision::Fast, 200);
}

#[test]
fn blocks_tiny_exact() {
    run_blocks(CapabilitySet::Tiny, Precision::Exact, 200);
}

#[test]
fn blocks_tiny_fast() {
    run_blocks(CapabilitySet::Tiny, Precision::Fast, 200);
}

#[test]
fn blocks_best_fast() {
    match best(Precision::Fast) {
        Ok(_) => run_blocks(CapabilitySet::Best, Precision::Fast, 600),
        Err(error) => println!("skipped: {error}"),
    }
}

#[test]
fn kv_in_q8_0_default_exact() {
    run_kv_in_q8_0(CapabilitySet::Default, Precision::Exact, is_plain);
}

#[test]
fn kv_in_q8_0_default_fast() {
    run_kv_in_q8_0(CapabilitySet::Default, Precision::Fast, is_plain);
}

/// Weights in blocks as well.
#[test]
fn kv_in_q8_0_minimal_exact() {
    run_kv_in_q8_0(CapabilitySet::Minimal, Precision::Exact, |_| true);
}

#[test]
fn kv_in_q8_0_minimal_fast() {
    run_kv_in_q8_0(CapabilitySet::Minimal, Precision::Fast, |_| true);
}

#[test]
fn kv_in_q8_0_tiny_exact() {
    run_kv_in_q8_0(CapabilitySet::Tiny, Precision::Exact, is_plain);
}

#[test]
fn kv_in_q8_0_tiny_fast() {
    run_kv_in_q8_0(CapabilitySet::Tiny, Precision::Fast, is_plain);
}

#[test]
fn kv_in_q8_0_best_fast() {
    match best(Precision::Fast) {
        Ok(_) => run_kv_in_q8_0(CapabilitySet::Best, Precision::Fast, |format| format == "f16"),
        Err(error) => println!("skipped: {error}"),
    }
}
