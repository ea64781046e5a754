//! Large sizes through the emulator, each with the threads of a block in both orders: see `common/sizes.rs`.

mod common;

use common::sizes::{CHECKS, Check};
use common::{HOPPER, TURING, backend};
use qwen_core::{Error, Precision};

fn holds(check: Check) {
    for (capability, precision) in [(TURING, Precision::Exact), (TURING, Precision::Fast), (HOPPER, Precision::Fast)] {
        for reverse in [false, true] {
            let mut backend = match backend(capability, precision, reverse) {
                Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
                made => made.unwrap(),
            };
            let outcome = check(&mut backend);
            assert_eq!(outcome, Ok(()), "{capability:?}, {precision:?}, reverse: {reverse}");
        }
    }
}

#[test]
fn products_of_long_prompts() {
    CHECKS[..3].iter().for_each(|(_, check)| holds(*check));
}

#[test]
fn long_contexts() {
    CHECKS[3..].iter().for_each(|(_, check)| holds(*check));
}
