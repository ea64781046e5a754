//! Whole checkpoints against recorded results, through the emulator: the short prompts. Of block formats every case
//! runs by default, with tensor cores in Fast; as another GPU, and in Exact, the tests whose names say so.

mod common;

use common::{HOPPER, TURING, backend};
use qwen_conformance::goldens::{Goldens, folder};
use qwen_core::{Encoding, Error, Precision};

/// Run the prompts of up to `longest` tokens: the emulator is slow.
fn run(capability: (u32, u32), precision: Precision, longest: usize) {
    let Some(folder) = folder() else { return };
    run_cases(&Goldens::open(folder).unwrap(), capability, precision, longest, false, None);
}

/// The same for the cases in block formats.
fn run_blocks(capability: (u32, u32), precision: Precision, reverse: bool) {
    let Some(folder) = folder() else { return };
    let blocks = |format: &str| !["bf16", "f16", "f32"].iter().any(|plain| format.ends_with(plain));
    run_cases(&Goldens::open_formats(folder, blocks).unwrap(), capability, precision, 80, reverse, None);
}

/// The same for the cases in these formats, with K/V in blocks of signed bytes.
fn run_kv_in_q8_0(capability: (u32, u32), precision: Precision, longest: usize, formats: impl Fn(&str) -> bool) {
    let Some(folder) = folder() else { return };
    let goldens = Goldens::open_formats(folder, formats).unwrap();
    run_cases(&goldens, capability, precision, longest, false, Some(Encoding::Q8_0));
}

fn run_cases(
    goldens: &Goldens,
    capability: (u32, u32),
    precision: Precision,
    longest: usize,
    reverse: bool,
    kv_encoding: Option<Encoding>,
) {
    for case in goldens.cases() {
        if case.prompt_lengths.iter().all(|length| *length > longest) {
            println!("{capability:?} {} skipped: its prompts are longer than {longest} tokens", case.name);
            continue;
        }
        let backend = match backend(capability, precision, reverse) {
            Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
            made => made.unwrap(),
        };
        let result = goldens.run_with(case, backend, longest, kv_encoding).unwrap();
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

#[test]
fn blocks_fast_tensor() {
    run_blocks(HOPPER, Precision::Fast, false);
}

#[test]
fn blocks_exact() {
    run_blocks(TURING, Precision::Exact, false);
}

#[test]
fn blocks_fast_plain() {
    run_blocks(TURING, Precision::Fast, false);
}

#[test]
fn blocks_fast_tensor_backwards() {
    run_blocks(HOPPER, Precision::Fast, true);
}

#[test]
fn blocks_exact_backwards() {
    run_blocks(TURING, Precision::Exact, true);
}

#[test]
fn kv_in_q8_0_exact() {
    run_kv_in_q8_0(TURING, Precision::Exact, 40, |format| format == "f16");
}

#[test]
fn kv_in_q8_0_fast_tensor() {
    run_kv_in_q8_0(HOPPER, Precision::Fast, 80, |format| format == "f16");
}

#[test]
fn kv_in_q8_0_fast_plain() {
    run_kv_in_q8_0(TURING, Precision::Fast, 40, |_| true);
}
