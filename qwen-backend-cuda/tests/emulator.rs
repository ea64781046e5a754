//! Every wait of every kernel is needed, and the tests find out when one is missing: each barrier of a block or a warp and
//! each wait for copies is passed over in turn, and an operation has to fail for it, with the threads of a block in one
//! order or the other. (Shuffles are no waits of this kind: without the other lanes they have no value.) In a process of
//! its own, since a wait is passed over in all kernels that run.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{CARDS, Probe, kernels};
use qwen_core::Error;

/// Waits that shuffles before them make unneeded here: a card asks for them, since a shuffle orders no memory.
const FOR_A_CARD: [(&str, &str); 1] = [("attention_tile.cu", "warp_barrier();")];

/// Where the sources of the kernels wait, as `FILE:LINE`: a call each, the definitions left out. And those of them that
/// only a card needs.
fn written() -> (Vec<String>, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let (mut found, mut for_a_card) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        for (index, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default().trim();
            if ["barrier();", "warp_barrier();"].contains(&code) || code.starts_with("await_copies<") {
                found.push(format!("{name}:{}", index + 1));
                if FOR_A_CARD.contains(&(name.as_str(), code)) {
                    for_a_card.extend(found.last().cloned());
                }
            }
        }
    }
    (found, for_a_card)
}

#[test]
fn a_missing_wait_is_found() {
    let kernels = match kernels() {
        Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
        built => built.unwrap(),
    };
    // Which probes come to each wait, the quick ones first.
    let mut reached: BTreeMap<String, Vec<(Probe, usize)>> = BTreeMap::new();
    for probe in Probe::all() {
        for (card, named) in CARDS.iter().enumerate() {
            kernels.waits();
            assert_eq!(probe.run(card, false), Ok(()), "{probe:?} on {named:?}");
            kernels.waits().into_iter().for_each(|wait| reached.entry(wait).or_default().push((probe, card)));
        }
    }
    let (written, for_a_card) = written();
    let missed: Vec<&String> = written.iter().filter(|wait| !reached.contains_key(*wait)).collect();
    assert!(missed.is_empty(), "nothing comes to {missed:#?}");
    let mut unnoticed = Vec::new();
    for (wait, probes) in reached.into_iter().filter(|(wait, _)| !for_a_card.contains(wait)) {
        kernels.without(Some(&wait));
        let mut orders = probes.iter().flat_map(|(probe, card)| [false, true].map(|reverse| (*probe, *card, reverse)));
        match orders.find(|(probe, card, reverse)| probe.run(*card, *reverse).is_err()) {
            Some((probe, card, reverse)) => println!("{wait}: {probe:?}, {:?}, reverse: {reverse}", CARDS[card]),
            None => unnoticed.push(wait),
        }
    }
    kernels.without(None);
    assert!(unnoticed.is_empty(), "nothing fails without {unnoticed:#?}");
}
