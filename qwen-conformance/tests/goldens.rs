//! The reference backend against recorded results of transformers: it is what all other backends are compared with.

use std::path::Path;
use std::time::Instant;

use qwen_conformance::goldens::{GoldenCase, Goldens, folder};
use qwen_core::backend::reference::Reference;

/// Prompts of 3,000 tokens take the reference up to eight seconds each; unoptimised, minutes.
const LONGEST: usize = if cfg!(debug_assertions) { 70 } else { 1 << 20 };

fn run(folder: &Path, cases: impl Fn(&Goldens) -> &[GoldenCase]) {
    let goldens = Goldens::open(folder).expect("a golden suite");
    assert!(!cases(&goldens).is_empty(), "no cases in {}", folder.display());
    let mut failed = Vec::new();
    for case in cases(&goldens) {
        if case.prompt_lengths.iter().all(|len| *len > LONGEST) {
            eprintln!("{:<28} not run: too long for an unoptimised reference", case.name);
            continue;
        }
        let start = Instant::now();
        let result = goldens.run(case, Reference::new(), LONGEST);
        let result = result.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        eprintln!("{result}  {:.1?}", start.elapsed());
        if !result.holds() {
            failed.push(result.to_string());
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The case that lies in the repository.
#[test]
fn fixture() {
    run(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden"), Goldens::cases);
}

/// The full suite, where there is one.
#[test]
fn full_suite() {
    if let Some(folder) = folder() {
        run(&folder, Goldens::cases);
    }
}

/// GPTQ and AWQ checkpoints, as their files are.
#[test]
fn quantised() {
    if let Some(folder) = folder() {
        run(&folder, Goldens::quantised);
    }
}
