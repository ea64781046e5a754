//! `generation_config.json`: the published ones, the sparse ones and the wrong ones.

use qwen_core::{Error, GenerationConfig};

fn parse(json: &str) -> GenerationConfig {
    GenerationConfig::from_json("generation_config.json", json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

#[test]
fn the_instruct_models_values() {
    let config = parse(
        r#"{"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0"}"#,
    );
    assert!(config.do_sample);
    assert_eq!((config.temperature, config.top_p, config.top_k), (0.7, 0.8, 20));
    assert_eq!(config.repetition_penalty, 1.05);
    assert_eq!(config.eos_token_id, [151645, 151643]);
    assert_eq!(config.max_new_tokens, None);
}

#[test]
fn the_base_models_are_greedy() {
    let config =
        parse(r#"{"bos_token_id": 151643, "do_sample": false, "eos_token_id": 151643, "max_new_tokens": 2048}"#);
    let expected = GenerationConfig::default();
    assert_eq!(config.eos_token_id, [151643]);
    assert_eq!(config.max_new_tokens, Some(2048));
    assert_eq!((config.do_sample, config.temperature, config.top_k), (false, expected.temperature, expected.top_k));
}

#[test]
fn nulls_and_absent_keys_are_the_defaults() {
    let nulls = r#"{"do_sample": null, "temperature": null, "top_p": null, "top_k": null, "min_p": null,
        "repetition_penalty": null, "eos_token_id": null, "max_new_tokens": null, "max_length": null}"#;
    assert_eq!(parse("{}"), GenerationConfig::default());
    assert_eq!(parse(nulls), GenerationConfig::default());
    assert_eq!(parse(r#"{"temperature": 1, "top_p": 1, "top_k": 50.0, "unknown": [1]}"#), GenerationConfig::default());
}

#[test]
fn bounds_hold_and_their_keys_are_named() {
    for (key, json) in [
        ("do_sample", r#"{"do_sample": 1}"#),
        ("temperature", r#"{"temperature": -0.1}"#),
        ("temperature", r#"{"temperature": 1e300}"#),
        ("temperature", r#"{"temperature": "0.7"}"#),
        ("temperature", r#"{"temperature": 0, "do_sample": true}"#),
        ("temperature", r#"{"temperature": 1e-60, "do_sample": true}"#),
        ("top_p", r#"{"top_p": 1.1}"#),
        ("top_p", r#"{"top_p": -0.1}"#),
        ("top_k", r#"{"top_k": -1}"#),
        ("top_k", r#"{"top_k": 2.5}"#),
        ("min_p", r#"{"min_p": 2}"#),
        ("repetition_penalty", r#"{"repetition_penalty": 0}"#),
        ("repetition_penalty", r#"{"repetition_penalty": -1}"#),
        ("eos_token_id", r#"{"eos_token_id": [-1]}"#),
        ("eos_token_id", r#"{"eos_token_id": {}}"#),
        ("max_new_tokens", r#"{"max_new_tokens": -5}"#),
        ("max_length", r#"{"max_length": true}"#),
    ] {
        match GenerationConfig::from_json("some/generation_config.json", json) {
            Err(Error::InvalidConfig { path, key: found, .. }) => {
                assert_eq!((path.to_str(), found.as_str()), (Some("some/generation_config.json"), key));
            }
            other => panic!("{json}: {other:?}"),
        }
    }
    assert_eq!(parse(r#"{"temperature": 0}"#).temperature, 0.0, "greedy files may write it");
    assert!(matches!(GenerationConfig::from_json("g", "[]"), Err(Error::InvalidFile { .. })));
}
