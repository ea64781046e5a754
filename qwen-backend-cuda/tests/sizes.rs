//! Every kernel runs, with the threads of a block in both orders, and its results are checked.

mod common;

use common::{GPUS, Probe, kernels};
use qwen_core::Error;

#[test]
fn every_kernel_runs_in_both_orders() {
    let kernels = match kernels() {
        Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
        built => built.unwrap(),
    };
    for reverse in [false, true] {
        kernels.launched();
        for probe in Probe::all() {
            for (gpu, named) in GPUS.iter().enumerate() {
                assert_eq!(probe.run(gpu, reverse), Ok(()), "{probe:?} on {named:?}, reverse: {reverse}");
            }
        }
        let launched = kernels.launched();
        let idle: Vec<String> = kernels.names().into_iter().filter(|name| !launched.contains(name)).collect();
        assert!(idle.is_empty(), "these never ran, reverse: {reverse}: {idle:#?}");
    }
}
