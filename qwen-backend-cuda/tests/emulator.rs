//! Every wait of every kernel is needed, and the tests find out when one is missing: each barrier, exchange and wait
//! for copies is passed over in turn, and an operation has to fail for it, with the threads of a block in one order or
//! the other. In a process of its own, since a wait is passed over in all kernels that run.

mod common;

use std::collections::BTreeMap;

use common::sizes::CHECKS;
use common::{HOPPER, TURING, backend, kernels};
use qwen_core::conformance::{Outcome, Suite, cases};
use qwen_core::{Error, Precision};

/// Cases of the suite that reach every kernel in little time.
const CASES: [&str; 9] = [
    "linear/bf16",
    "linear/f16",
    "linear/f32",
    "rms_norm/plain",
    "attention/every_geometry",
    "attention/ragged_batches",
    "attention/contexts",
    "argmax/valid_columns",
    "argmax/ties",
];

const CARDS: [((u32, u32), Precision); 3] =
    [(TURING, Precision::Exact), (TURING, Precision::Fast), (HOPPER, Precision::Fast)];

/// One of the suite's cases, or of the checks of large sizes.
#[derive(Debug, Clone, Copy)]
enum Probe {
    Case(&'static str),
    Check(usize),
}

/// Whether a probe finds nothing wrong on a card.
fn passes(probe: Probe, card: usize, reverse: bool) -> bool {
    let (capability, precision) = CARDS[card];
    let make = move || backend(capability, precision, reverse);
    match probe {
        Probe::Case(name) => {
            let suite = Suite::new(make).fast_depends_on_the_batch();
            let case = cases().into_iter().find(|case| case.name == name).unwrap();
            matches!(suite.outcome(&case), Outcome::Passed { .. })
        }
        Probe::Check(index) => (CHECKS[index].1)(&mut make().unwrap()).is_ok(),
    }
}

#[test]
fn a_missing_wait_is_found() {
    let kernels = match kernels() {
        Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
        built => built.unwrap(),
    };
    // Which probes come to each wait, the quick ones first.
    let probes = CASES.into_iter().map(Probe::Case).chain((0..CHECKS.len()).map(Probe::Check));
    let mut reached: BTreeMap<String, Vec<(Probe, usize)>> = BTreeMap::new();
    for probe in probes {
        for (card, named) in CARDS.iter().enumerate() {
            kernels.waits();
            assert!(passes(probe, card, false), "{probe:?} on {named:?}");
            kernels.waits().into_iter().for_each(|wait| reached.entry(wait).or_default().push((probe, card)));
        }
    }
    let mut unnoticed = Vec::new();
    for (wait, probes) in reached {
        kernels.without(Some(&wait));
        let orders = probes.iter().flat_map(|(probe, card)| [false, true].map(|reverse| (*probe, *card, reverse)));
        let failing = orders.clone().find(|(probe, card, reverse)| !passes(*probe, *card, *reverse));
        match failing {
            Some((probe, card, reverse)) => println!("{wait}: {probe:?}, {:?}, reverse: {reverse}", CARDS[card]),
            None => unnoticed.push(wait),
        }
    }
    kernels.without(None);
    assert!(unnoticed.is_empty(), "nothing fails without {unnoticed:#?}");
}
