//! The stages of sampling against transformers' processors and published definitions, number by number:
//! `tools/sampling_fixtures.py` made the cases.

use qwen_core::engine::sampling::{Sampler, SamplingParams, Workspace, logprobs};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixtures {
    stop_token_ids: Vec<u32>,
    cases: Vec<Case>,
    logprobs: Vec<Row>,
}

/// Log-probabilities in float64.
#[derive(Deserialize)]
struct Row {
    logits: Vec<f32>,
    logprobs: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    params: SamplingParams,
    logits: Vec<f32>,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    /// The logits after all stages, `None` for tokens that are out.
    left: Vec<Option<f64>>,
}

fn fixtures() -> Fixtures {
    serde_json::from_str(include_str!("data/sampling.json")).expect("valid fixtures")
}

#[test]
fn every_stage_and_order_gives_the_numbers_of_its_definition() {
    let Fixtures { stop_token_ids, cases, .. } = fixtures();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut workspace = Workspace::default();
    let mut failures = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let tokens = [case.prompt.as_slice(), &case.answer].concat();
        let sampler = Sampler::new(case.params.clone(), &case.prompt).expect("valid parameters");
        let mut found = case.logits.clone();
        sampler.stop_token_ids(&stop_token_ids).process(&tokens, &mut found, &mut workspace).expect("a token is left");
        let agrees = |(found, expected): (&f32, &Option<f64>)| match expected {
            None => *found == f32::NEG_INFINITY,
            Some(expected) => (f64::from(*found) - expected).abs() <= 1e-5 * expected.abs().max(0.01),
        };
        if !found.iter().zip(&case.left).all(agrees) {
            failures.push(format!("case {number}, {:?}:\n{found:?}\n{:?}", case.params, case.left));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn a_drawn_token_is_one_that_is_left() {
    let Fixtures { stop_token_ids, cases, .. } = fixtures();
    let mut workspace = Workspace::default();
    for case in &cases {
        let tokens = [case.prompt.as_slice(), &case.answer].concat();
        let mut drawn = vec![false; case.left.len()];
        for seed in 0..300 {
            let sampler = Sampler::new(case.params.clone().seed(seed), &case.prompt).expect("valid parameters");
            let mut sampler = sampler.stop_token_ids(&stop_token_ids);
            let id = sampler.sample(&tokens, &mut case.logits.clone(), &mut workspace).expect("a token is left");
            assert!(case.left[id as usize].is_some(), "{id} in {:?}", case.params);
            drawn[id as usize] = true;
        }
        // What is probable is drawn sooner or later.
        let max = case.left.iter().flatten().copied().fold(f64::MIN, f64::max);
        let total: f64 = case.left.iter().flatten().map(|logit| (logit - max).exp()).sum();
        for (id, logit) in case.left.iter().enumerate() {
            let probability = logit.map_or(0.0, |logit| (logit - max).exp() / total);
            assert!(probability < 0.05 || drawn[id], "{id} in {:?}", case.params);
        }
    }
}

#[test]
fn log_probabilities_are_those_of_float64() {
    for Row { logits, logprobs: expected } in fixtures().logprobs {
        for (id, expected) in expected.iter().enumerate() {
            let found = logprobs(&logits, id as u32, 5).expect("finite logits");
            assert!((found.logprob - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found:?}, {expected}");
        }
        let mut best = expected.clone();
        best.sort_by(|a, b| b.total_cmp(a));
        let found = logprobs(&logits, 0, 5).expect("finite logits");
        assert!(found.top.iter().zip(best).all(|(found, best)| (found.logprob - best).abs() < 1e-11));
    }
}
