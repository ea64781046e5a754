//! The reference backend against recorded results of transformers: all other backends are compared with it.

use std::path::Path;
use std::time::Instant;

use qwen_conformance::goldens::{Goldens, folder};
use qwen_core::Encoding;
use qwen_core::backend::reference::Reference;

/// Prompts of 3,000 tokens take the reference up to eight seconds each; unoptimised, minutes.
const LONGEST: usize = if cfg!(debug_assertions) { 70 } else { 1 << 20 };

fn run(goldens: &Goldens) {
    run_with(goldens, None);
}

fn run_with(goldens: &Goldens, kv_encoding: Option<Encoding>) {
    assert!(!goldens.cases().is_empty(), "no cases in {goldens:?}");
    // The CPU backend runs the long prompts with each way of storing K/V.
    let longest = if kv_encoding.is_some() { LONGEST.min(300) } else { LONGEST };
    let mut failed = Vec::new();
    for case in goldens.cases() {
        if case.prompt_lengths.iter().all(|len| *len > longest) {
            eprintln!("{:<28} not run: too long for the reference here", case.name);
            continue;
        }
        let start = Instant::now();
        let result = goldens.run_with(case, Reference::new(), longest, kv_encoding);
        let result = result.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        eprintln!("{result}  {:.1?}", start.elapsed());
        if !result.holds() {
            failed.push(result.to_string());
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The case in the repository.
fn in_repository() -> Goldens {
    Goldens::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden")).expect("a golden suite")
}

#[test]
fn fixture() {
    run(&in_repository());
}

/// The full suite, if there is one.
#[test]
fn full_suite() {
    if let Some(folder) = folder() {
        run(&Goldens::open(folder).expect("a golden suite"));
    }
}

/// The cases of GGUF files, computed from their own blocks.
#[test]
fn gguf() {
    if let Some(folder) = folder() {
        let goldens = Goldens::open_formats(folder, |format| format.starts_with("gguf")).expect("a golden suite");
        assert!(goldens.cases().len() >= 20, "{} cases", goldens.cases().len());
        run(&goldens);
    }
}

/// GPTQ and AWQ checkpoints, without conversion.
#[test]
fn gptq_and_awq() {
    if let Some(folder) = folder() {
        let formats = |format: &str| format.starts_with("gptq") || format == "awq";
        let goldens = Goldens::open_formats(folder, formats).expect("a golden suite");
        assert_eq!(goldens.cases().len(), 6);
        run(&goldens);
    }
}

/// K/V in blocks of signed bytes, over every format.
#[test]
fn kv_in_q8_0() {
    if let Some(folder) = folder() {
        run_with(&Goldens::open_formats(folder, |_| true).expect("a golden suite"), Some(Encoding::Q8_0));
    }
}

#[test]
fn fixture_with_kv_in_q8_0() {
    run_with(&in_repository(), Some(Encoding::Q8_0));
}
