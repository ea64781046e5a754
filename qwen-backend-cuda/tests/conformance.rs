//! The conformance suite through the emulator: as a card without tensor cores for bf16 (7.5) and one with them (9.0), in
//! both precisions, and in Exact with the threads of each block backwards, too.

mod common;

use common::backend;
use qwen_core::Precision;
use qwen_core::conformance::Suite;

const TURING: (u32, u32) = (7, 5);
const HOPPER: (u32, u32) = (9, 0);

qwen_core::conformance_tests! {
    exact => || backend(TURING, Precision::Exact, false),
    exact_reverse => || backend(TURING, Precision::Exact, true),
    fast_plain => Suite::new(|| backend(TURING, Precision::Fast, false)).fast_depends_on_the_batch(),
    fast_tensor => Suite::new(|| backend(HOPPER, Precision::Fast, false)).fast_depends_on_the_batch(),
    fast_tensor_reverse => Suite::new(|| backend(HOPPER, Precision::Fast, true)).fast_depends_on_the_batch(),
}
