//! Beam search against transformers' beams, made by `tools/beam_fixtures.py`.
#![cfg(feature = "cpu")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{demo_engine, golden, options};
use qwen::{Beam, BeamOptions, Engine, ErrorKind, FinishReason, GenerateOptions, Precision, StoppedBy};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    prompt: Vec<u32>,
    options: BeamOptions,
    sequences: Vec<Vec<u32>>,
    scores: Vec<f64>,
}

/// The ids of a beam as transformers has them, with the stop token.
fn sequence(beam: &Beam) -> Vec<u32> {
    let stop = beam.stopped_by.as_ref().map(|stop| match stop {
        StoppedBy::Token(id) => *id,
        other => panic!("{other:?}"),
    });
    assert_eq!(beam.finish_reason, if stop.is_some() { FinishReason::Stop } else { FinishReason::Length });
    beam.ids.iter().copied().chain(stop).collect()
}

#[test]
fn beams_are_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/data/beams.json")).unwrap();
    let mut by_checkpoint: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in serde_json::from_str::<Vec<Case>>(&text).unwrap() {
        by_checkpoint.entry(case.checkpoint.clone()).or_default().push(case);
    }
    let suite = golden();
    for (checkpoint, cases) in by_checkpoint {
        let folder = match (checkpoint.strip_prefix("golden/"), &suite) {
            (Some(name), Some(suite)) => suite.join(name),
            (Some(_), None) => continue,
            (None, _) => root.join(&checkpoint),
        };
        // Fewer sequences than beams: a step takes several rounds. transformers knows no padding of the vocabulary.
        for batch in [1, 8] {
            let options = options().precision(Precision::Exact).context(128).allow_padding_tokens(true);
            let engine = options.batch(batch).load(&folder).unwrap();
            for Case { prompt, options, sequences, scores, .. } in &cases {
                let found = engine.beam_search_ids(prompt, &options.clone().ignore_eos(true)).unwrap();
                let ids: Vec<_> = found.iter().map(sequence).collect();
                assert_eq!(&ids, sequences, "{checkpoint}: {options:?}");
                for (beam, score) in found.iter().zip(scores) {
                    assert!(
                        (beam.score - score).abs() < 1e-4 * score.abs().max(1.0),
                        "{} {score}: {options:?}",
                        beam.score
                    );
                }
            }
        }
    }
}

#[test]
fn a_beam_is_the_answer_of_its_log_probability() {
    let engine = demo_engine();
    let prompt = "Anna is 31 years old and";
    let options = BeamOptions::new(3).num_return_sequences(3).max_new_tokens(10);
    let found = engine.beam_search(prompt, &options).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let prompt_ids = tokenizer.encode_prompt(prompt, 100).unwrap();
    assert_eq!(found, engine.beam_search_ids(&prompt_ids, &options).unwrap());
    let scores = engine.score_ids(&prompt_ids, &found.iter().map(sequence).collect::<Vec<_>>()).unwrap();
    for (beam, score) in found.iter().zip(&scores) {
        assert!((beam.logprob - score.logprob).abs() < 1e-9, "{} {}", beam.logprob, score.logprob);
        assert!((beam.score - score.mean_logprob()).abs() < 1e-9);
        assert_eq!(beam.text, tokenizer.decode(&beam.ids, true));
    }
    // A step computes a token for each beam: all before it is in the cache.
    let before = engine.stats().computed_tokens;
    engine.beam_search_ids(&[&prompt_ids[1..], &prompt_ids].concat(), &options).unwrap();
    let computed = engine.stats().computed_tokens - before;
    assert!(computed <= (2 * prompt_ids.len() - 1 + 3 * 9) as u64, "{computed}");
    // The best of three is no less likely than what one beam finds, and that is greedy decoding.
    let one = engine.beam_search(prompt, &BeamOptions::new(1).max_new_tokens(10)).unwrap().remove(0);
    let greedy = engine.generate(prompt, &GenerateOptions::new().greedy().max_new_tokens(10)).unwrap();
    assert_eq!(one.text, greedy.text().unwrap());
}

#[test]
fn a_search_fills_the_context_and_is_refused_beyond() {
    let engine: Engine = options().context(12).load(common::demo()).unwrap();
    let options = BeamOptions::new(2).ignore_eos(true);
    let found = engine.beam_search_ids(&[40; 9], &options.clone().max_new_tokens(50)).unwrap().remove(0);
    assert_eq!((found.ids.len(), found.finish_reason), (3, FinishReason::ContextFull));
    let exact = engine.beam_search_ids(&[40; 9], &options.clone().max_new_tokens(3)).unwrap().remove(0);
    assert_eq!((exact.ids, exact.finish_reason), (found.ids, FinishReason::Length));
    let refused = |prompt: &[u32], options: BeamOptions| engine.beam_search_ids(prompt, &options).unwrap_err();
    assert_eq!(refused(&[40; 12], options.clone()).kind(), ErrorKind::PromptTooLong);
    for (prompt, options, name) in [
        (&[40][..], BeamOptions::new(0), "num_beams"),
        (&[40], BeamOptions::new(2).num_return_sequences(3), "num_return_sequences"),
        (&[40], BeamOptions::new(2).num_return_sequences(0), "num_return_sequences"),
        (&[40], BeamOptions::new(2).length_penalty(f64::NAN), "length_penalty"),
        (&[40], BeamOptions::new(2).max_new_tokens(0), "max_new_tokens"),
        (&[u32::MAX], BeamOptions::new(2), "4294967295"),
    ] {
        let error = refused(prompt, options).to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(engine.beam_search("", &BeamOptions::new(2)).is_err());
    // As many beams as there are tokens, and more.
    let wide =
        engine.beam_search_ids(&[40], &BeamOptions::new(3000).max_new_tokens(1).num_return_sequences(3000)).unwrap();
    assert!(wide.len() <= 3000 && wide.windows(2).all(|two| two[0].score >= two[1].score));
}
