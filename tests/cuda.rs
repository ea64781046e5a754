//! A build with CUDA on a machine without a driver: nothing panics, and the other devices work. Also engines on the
//! first card, if `QWEN_CUDA_CARD=1` allows it; `tools/gpu-check` sets that.
#![cfg(feature = "cuda")]

mod common;

use common::{demo, options};
use qwen::bench_support::ceiling_meter;
use qwen::{Device, Engine, Error, GenerateOptions};

const CARD: Device = Device::Cuda(0);

/// Whether the card may be used. If it may, nothing is skipped.
fn may_use_card() -> bool {
    let may = std::env::var("QWEN_CUDA_CARD").as_deref() == Ok("1");
    if !may {
        println!("skipped: QWEN_CUDA_CARD=1 is not set");
    }
    may
}

/// A greedy answer of the demo checkpoint.
fn answer(engine: &Engine) -> String {
    engine.chat().options(GenerateOptions::new().greedy()).send("What is 3 + 4?").unwrap().text().unwrap()
}

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
    let measured = ceiling_meter(&Device::Cuda(0), &options()).map(|_| ());
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
    assert!(matches!(engine.device(), Some(device) if !matches!(device, Device::Cuda(_))));
}

#[test]
#[cfg(feature = "cpu")]
fn the_card_answers_as_the_processor_does() {
    if may_use_card() {
        let [on_card, on_cpu] = [CARD, Device::Cpu]
            .map(|device| answer(&options().device(device).precision(qwen::Precision::Exact).load(demo()).unwrap()));
        assert_eq!(on_card, on_cpu);
    }
}

/// The context stays open, so that leaks within it show.
#[test]
fn twenty_engines_come_and_go_and_the_card_has_its_memory_back() {
    if !may_use_card() {
        return;
    }
    let load = || options().device(CARD).load(demo()).unwrap();
    let stays = load();
    let expected = answer(&stays);
    let cycle = || assert_eq!(answer(&load()), expected);
    cycle();
    let before = CARD.free_bytes().unwrap().unwrap();
    (0..20).for_each(|_| cycle());
    let after = CARD.free_bytes().unwrap().unwrap();
    assert!(after + (16 << 20) >= before, "{before} bytes were free before 20 cycles, {after} are now");
}

#[test]
fn an_engine_that_is_out_of_memory_says_so_and_the_next_one_loads() {
    if !may_use_card() {
        return;
    }
    // The plan is given more memory than there is: the card refuses.
    let options = || options().device(CARD).context(2048);
    let most = options().memory_budget(u64::MAX).batch(1 << 20).load(demo());
    assert!(matches!(most, Err(Error::Model(qwen::core::Error::OutOfMemory { .. }))), "{:?}", most.err());
    answer(&options().load(demo()).unwrap());
}
