//! Every wait of every kernel is needed, and the tests detect a missing one: each block or warp barrier and each wait
//! for copies is skipped in turn, and an operation has to fail without it, with the threads of a block in one order or
//! the other. (A shuffle is not such a wait: it has no value without the other lanes.) This test runs in its own
//! process, since a wait is skipped in all kernels that run.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{GPUS, Probe, kernels};
use qwen_core::Error;

/// Waits that the emulator does not need because of a preceding shuffle. A GPU needs them: a shuffle does not order
/// memory.
const FOR_A_GPU: [(&str, &str); 1] = [("attention_tile.cu", "warp_barrier();")];

/// The waits in the kernels' sources, as `FILE:LINE`, and the ones that only a GPU needs.
fn written() -> (Vec<String>, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let (mut found, mut for_a_gpu) = (Vec::new(), Vec::new());
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
                if FOR_A_GPU.contains(&(name.as_str(), code)) {
                    for_a_gpu.extend(found.last().cloned());
                }
            }
        }
    }
    (found, for_a_gpu)
}

#[test]
fn a_missing_wait_is_found() {
    let kernels = match kernels() {
        Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
        built => built.unwrap(),
    };
    // The probes that reach each wait, the quick ones first.
    let mut reached: BTreeMap<String, Vec<(Probe, usize)>> = BTreeMap::new();
    for probe in Probe::all() {
        for (gpu, named) in GPUS.iter().enumerate() {
            kernels.waits();
            assert_eq!(probe.run(gpu, false), Ok(()), "{probe:?} on {named:?}");
            kernels.waits().into_iter().for_each(|wait| reached.entry(wait).or_default().push((probe, gpu)));
        }
    }
    let (written, for_a_gpu) = written();
    let missed: Vec<&String> = written.iter().filter(|wait| !reached.contains_key(*wait)).collect();
    assert!(missed.is_empty(), "no probe reaches {missed:#?}");
    let mut unnoticed = Vec::new();
    for (wait, probes) in reached.into_iter().filter(|(wait, _)| !for_a_gpu.contains(wait)) {
        kernels.without(Some(&wait));
        let mut orders = probes.iter().flat_map(|(probe, gpu)| [false, true].map(|reverse| (*probe, *gpu, reverse)));
        match orders.find(|(probe, gpu, reverse)| probe.run(*gpu, *reverse).is_err()) {
            Some((probe, gpu, reverse)) => println!("{wait}: {probe:?}, {:?}, reverse: {reverse}", GPUS[gpu]),
            None => unnoticed.push(wait),
        }
    }
    kernels.without(None);
    assert!(unnoticed.is_empty(), "nothing fails without {unnoticed:#?}");
}
