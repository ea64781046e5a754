//! The backend of `examples/custom_backend.rs`, which depends only on `qwen`, passes the conformance suite and runs an
//! engine.

mod common;
#[allow(dead_code)]
#[path = "../examples/custom_backend.rs"]
mod custom_backend;

use custom_backend::RowMajor;
use qwen::{Engine, GenerateOptions, Precision};

qwen_conformance::conformance_tests! { row_major => || Ok(RowMajor::with_all_cores()) }

#[test]
fn an_engine_on_it_answers_as_on_the_cpu() {
    let answer = |engine: &Engine| {
        let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(48));
        chat.send("Hello! What is 3 + 4?").unwrap().text().unwrap()
    };
    let options = || common::options().context(256).precision(Precision::Exact);
    let own = options().load_with_backend(RowMajor::with_all_cores(), common::demo()).unwrap();
    assert!(own.device_name().starts_with("row-major"), "{}", own.device_name());
    // It holds bf16 weights as f32, and says so before it loads.
    let cpu = options().load(common::demo()).unwrap();
    assert!(own.plan().weight_bytes > cpu.plan().weight_bytes * 3 / 2);
    assert_eq!(answer(&own), answer(&cpu));
}
