//! A real pretrained model in Qwen2 form against the answers that transformers gave: `QWEN_REAL_CHECKPOINT` names its
//! folder and `QWEN_GOLDEN` the folder with real.json. Without either the test prints a message and checks nothing.
#![cfg(feature = "cpu")]

mod common;

use std::path::PathBuf;

use qwen::{Engine, EngineOptions, GenerateOptions, Precision};
use serde_json::Value;

fn real() -> Option<(PathBuf, Value)> {
    let found = std::env::var_os("QWEN_REAL_CHECKPOINT").zip(std::env::var_os("QWEN_GOLDEN"));
    let Some((model, golden)) = found else {
        eprintln!("SKIPPED: no real checkpoint; QWEN_REAL_CHECKPOINT and QWEN_GOLDEN name it and its answers");
        return None;
    };
    let answers = std::fs::read(PathBuf::from(golden).join("real.json")).expect("real.json");
    Some((model.into(), serde_json::from_slice(&answers).expect("real.json is JSON")))
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Mean negative log-likelihood of each token after the first.
fn mean_nll(engine: &Engine, ids: &[u32]) -> f64 {
    let vocab_size = engine.config().vocab_size;
    let logits = engine.logits(ids).unwrap();
    let nll = logits.chunks_exact(vocab_size).zip(&ids[1..]).map(|(row, id)| {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
        sum.ln() - f64::from(row[*id as usize] - max)
    });
    nll.sum::<f64>() / (ids.len() - 1) as f64
}

#[test]
fn greedy_answers_and_perplexity_are_those_of_transformers() {
    let Some((model, golden)) = real() else { return };
    // Below this margin either token is accepted: fast rounds its products, exact differs only in the last bits.
    for (precision, margin_bound, perplexity_bound) in [(Precision::Exact, 1e-3, 1e-4), (Precision::Fast, 0.25, 2e-3)] {
        let engine = EngineOptions::new().precision(precision).context(2048).max_num_logits(64).load(&model).unwrap();
        let options = GenerateOptions::new().greedy().ignore_eos(true).max_new_tokens(64);
        let (mut compared, mut total) = (0, 0);
        for prompt in golden["prompts"].as_array().unwrap() {
            let (expected, margins) = (ids(&prompt["tokens"]), prompt["margins"].as_array().unwrap());
            let found: Vec<u32> =
                engine.generate_ids(ids(&prompt["ids"]), &options).unwrap().collect::<qwen::Result<_>>().unwrap();
            total += expected.len();
            for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let margin = margins[n].as_f64().unwrap();
                if margin < margin_bound && found != expected {
                    break;
                }
                assert_eq!(found, expected, "{precision:?}: {} token {n}, margin {margin}", prompt["name"]);
                compared += 1;
            }
        }
        let list = ids(&golden["perplexity"]["ids"]);
        let nll = mean_nll(&engine, &list);
        let expected = golden["perplexity"]["mean_nll"].as_f64().unwrap();
        let difference = (nll - expected).exp() - 1.0;
        println!(
            "{precision:?}: {compared} of {total} greedy tokens compared and equal; perplexity {:.4}, {:+.5} % off",
            nll.exp(),
            100.0 * difference
        );
        assert!(difference.abs() < perplexity_bound, "{precision:?}: perplexity off by {difference}");
    }
}
