//! Whole checkpoints against recorded results, through the emulator: the short prompts.

mod common;

use common::{HOPPER, TURING, backend};
use qwen_conformance::goldens::{Goldens, folder};
use qwen_core::{Error, Precision};

/// Run the prompts of up to `longest` tokens: the emulator is slow.
fn run(capability: (u32, u32), precision: Precision, longest: usize) {
    let Some(folder) = folder() else { return };
    let goldens = Goldens::open(folder).unwrap();
    for case in goldens.cases() {
        if case.prompt_lengths.iter().all(|length| *length > longest) {
            println!("{capability:?} {} skipped: its prompts are longer than {longest} tokens", case.name);
            continue;
        }
        let backend = match backend(capability, precision, false) {
            Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
            made => made.unwrap(),
        };
        let result = goldens.run(case, backend, longest).unwrap();
        println!("{capability:?} {result}");
        assert!(result.holds(), "{result}");
    }
}

#[test]
fn exact() {
    run(TURING, Precision::Exact, 40);
}

#[test]
fn fast_plain() {
    run(TURING, Precision::Fast, 40);
}

#[test]
fn fast_tensor() {
    // Long enough for the kernels of long prompts.
    run(HOPPER, Precision::Fast, 130);
}
