//! What a build with CUDA says on a machine without a driver: nothing panics, and the other devices work.
#![cfg(feature = "cuda")]

mod common;

use common::{demo, options};
use qwen::{CeilingMeter, Device};

/// Whether this machine has no card.
fn no_card() -> bool {
    let found = qwen::devices().iter().any(|entry| matches!(entry.device, Device::Cuda(_)));
    if found {
        println!("skipped: there is a card");
    }
    !found
}

#[test]
fn a_card_that_is_not_there_is_an_error() {
    if !no_card() {
        return;
    }
    let loaded = options().device(Device::Cuda(0)).load(demo()).map(|_| ());
    let planned = qwen::plan(demo(), &options().device(Device::Cuda(3))).map(|_| ());
    let measured = CeilingMeter::new(&Device::Cuda(0), None).map(|_| ());
    for outcome in [loaded, planned, measured] {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("CUDA is not supported: no NVIDIA driver was found"), "{error}");
    }
}

#[test]
fn why_there_is_no_card_is_told() {
    let told = qwen::absent_devices().into_iter().find(|(device, _)| *device == "cuda");
    assert_eq!(told.is_some(), no_card());
    if let Some((_, reason)) = told {
        assert!(reason.contains("no NVIDIA driver was found"), "{reason}");
    }
}

#[test]
#[cfg(feature = "cpu")]
fn auto_takes_what_is_there() {
    if !no_card() {
        return;
    }
    let engine = options().device(Device::Auto).context(256).load(demo()).unwrap();
    assert!(matches!(engine.placed_on(), Some(device) if !matches!(device, Device::Cuda(_))));
}
