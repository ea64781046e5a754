//! Every wait of every kernel is needed, and the suite finds out when one is missing: each barrier, exchange and wait for
//! copies is passed over in turn, and an operation has to fail for it, with the threads of a block in one order or the
//! other. In a process of its own, since a wait is passed over in all kernels that run.

mod common;

use std::collections::BTreeMap;

use common::{HOPPER, TURING, backend, kernels};
use qwen_backend_cuda::CudaBackend;
use qwen_core::conformance::{Case, Outcome, Suite, cases};
use qwen_core::{Error, Precision};

/// What reaches every kernel in little time.
const CASES: &[&str] = &[
    "linear/bf16",
    "linear/f16",
    "linear/f32",
    "rms_norm/plain",
    "rms_norm/add",
    "attention/every_geometry",
    "attention/ragged_batches",
    "attention/contexts",
    "argmax/valid_columns",
    "argmax/ties",
];

const CARDS: [((u32, u32), Precision); 3] =
    [(TURING, Precision::Exact), (TURING, Precision::Fast), (HOPPER, Precision::Fast)];

fn outcome(case: &Case<CudaBackend>, card: usize, reverse: bool) -> Outcome {
    let (capability, precision) = CARDS[card];
    let suite = Suite::new(move || backend(capability, precision, reverse)).fast_depends_on_the_batch();
    suite.outcome(case)
}

#[test]
fn a_missing_wait_is_found() {
    let kernels = match kernels() {
        Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
        built => built.unwrap(),
    };
    let cases: Vec<_> = cases().into_iter().filter(|case| CASES.contains(&case.name)).collect();
    assert_eq!(cases.len(), CASES.len());
    // Which cases come to each wait.
    let mut reached: BTreeMap<String, Vec<(&Case<CudaBackend>, usize)>> = BTreeMap::new();
    for case in &cases {
        for card in 0..CARDS.len() {
            kernels.waits();
            assert!(matches!(outcome(case, card, false), Outcome::Passed { .. }), "{}", case.name);
            kernels.waits().into_iter().for_each(|wait| reached.entry(wait).or_default().push((case, card)));
        }
    }
    let mut unnoticed = Vec::new();
    for (wait, cases) in reached {
        kernels.without(Some(&wait));
        let failing = [false, true].into_iter().find_map(|reverse| {
            let fails = |(case, card): &&(&Case<_>, usize)| matches!(outcome(case, *card, reverse), Outcome::Failed(_));
            cases.iter().find(fails).map(|(case, card)| (case.name, *card, reverse))
        });
        match failing {
            Some((case, card, reverse)) => println!("{wait}: {case}, {:?}, reverse: {reverse}", CARDS[card]),
            None => unnoticed.push(wait),
        }
    }
    kernels.without(None);
    assert!(unnoticed.is_empty(), "nothing fails without {unnoticed:#?}");
}
