//! How much memory a load takes and frees. The only test in its program, since it examines the memory of the whole
//! process.
#![cfg(feature = "cpu")]

mod common;

use common::{Folder, Shape, options, write_checkpoint};
use qwen::{Engine, GenerateOptions, memory};

fn answer(engine: &Engine) {
    let options = GenerateOptions::new().max_new_tokens(24).ignore_eos(true);
    let tokens = engine.generate_ids([1, 2, 3], &options).unwrap();
    assert_eq!(tokens.map(Result::unwrap).count(), 24);
}

#[test]
fn dropping_an_engine_gives_its_memory_back() {
    let folder = Folder::new("cycles");
    // About 40 MB of weights.
    let shape = Shape { hidden: 512, inner: 2048, layers: 4, heads: 8, kv_heads: 2, vocab: 4000, tied: false };
    write_checkpoint(&folder.0, shape, |_, _| {});
    let cycle = |device: &str| {
        let engine = options().device(device.parse().unwrap()).context(1024).load(&folder.0).unwrap();
        answer(&engine);
        engine.plan().weight_bytes
    };
    // The whole model on one backend, and its layers on two.
    let devices = ["cpu", "split:cpu=1,cpu"];
    let weights = devices.map(cycle)[0];
    let Some(before) = memory::resident_bytes() else { return eprintln!("skipped: resident memory is unknown here") };
    for device in devices.into_iter().cycle().take(20) {
        cycle(device);
    }
    let after = memory::resident_bytes().unwrap();
    assert!(after < before + weights, "20 cycles: {before} bytes before, {after} after, {weights} of weights");
}
