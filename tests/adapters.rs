//! Low-rank adapters against transformers with peft, made by `tools/adapter_fixtures.py`.
#![cfg(feature = "cpu")]

mod common;

use std::path::{Path, PathBuf};

use common::options;
use qwen::{Engine, GenerateOptions, Precision};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    adapter: String,
    prompt: Vec<u32>,
    /// After the last two tokens of the prompt.
    logits: Vec<Vec<f64>>,
    greedy: Vec<u32>,
    margins: Vec<f64>,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn folder(name: &str) -> PathBuf {
    data().join("adapters").join(name)
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(data().join("adapters/cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn engine(precision: Precision) -> Engine {
    let options = options().precision(precision).context(128).batch(8).allow_padding_tokens(true);
    options.load(data().join("golden/tiny-bf16")).unwrap()
}

fn greedy() -> GenerateOptions {
    GenerateOptions::new().greedy().ignore_eos(true)
}

#[test]
fn answers_are_those_of_peft() {
    for precision in [Precision::Exact, Precision::Fast] {
        let engine = engine(precision);
        for Case { adapter: name, prompt, greedy: expected, margins, .. } in cases() {
            let adapter = engine.load_adapter(folder(&name)).unwrap();
            let options = greedy().adapter(&adapter).max_new_tokens(expected.len());
            let found = engine.generate_ids(prompt, &options).unwrap().collect::<qwen::Result<Vec<_>>>().unwrap();
            // In Fast, as far as nothing hangs on a rounding.
            let sure = match precision {
                Precision::Exact => expected.len(),
                _ => margins.iter().take_while(|margin| **margin > 0.05).count(),
            };
            assert_eq!(found[..sure], expected[..sure], "{name}");
        }
    }
}
