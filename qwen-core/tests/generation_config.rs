//! `generation_config.json`: the published ones, the sparse ones and the wrong ones.

use qwen_core::{Error, GenerationConfig, Warning};

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
    assert_eq!(parse(r#"{"temperature": 1, "top_p": 1, "top_k": 50.0}"#), GenerationConfig::default());
}

/// A wrong value is an error, with its key, only for those who use it; its field has the default.
#[test]
fn bounds_hold_and_their_keys_are_named() {
    for (key, json) in [
        ("do_sample", r#"{"do_sample": 1}"#),
        ("temperature", r#"{"temperature": -0.1}"#),
        ("temperature", r#"{"temperature": 1e300}"#),
        ("temperature", r#"{"temperature": "0.7"}"#),
        ("temperature", r#"{"temperature": 0, "do_sample": true}"#),
        ("temperature", r#"{"temperature": 1e-60, "do_sample": true}"#),
        ("temperature", r#"{"temperature": NaN}"#),
        ("temperature", r#"{"temperature": Infinity}"#),
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
        let config = GenerationConfig::from_json("some/generation_config.json", json).expect(json);
        match config.check(key) {
            Err(Error::InvalidConfig { path, key: found, reason }) => {
                assert_eq!((path.to_str(), found.as_str()), (Some("some/generation_config.json"), key));
                assert!(reason.contains("in the request"), "{reason}");
            }
            other => panic!("{json}: {other:?}"),
        }
        for other in ["do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"] {
            assert!(other == key || config.check(other).is_ok(), "{json}: {other}");
        }
        let [Warning::InvalidValue { key: named, .. }] = &config.warnings()[..] else { panic!("{json}") };
        assert_eq!(named, key);
    }
    assert_eq!(parse(r#"{"temperature": 0}"#).temperature, 0.0, "greedy files may write it");
    assert_eq!(parse(r#"{"temperature": 0}"#).warnings(), []);
    assert_eq!(parse(r#"{"top_p": 0, "do_sample": true}"#).top_p, 0.0, "it keeps one token");
    assert!(matches!(GenerationConfig::from_json("g", "[]"), Err(Error::InvalidFile { .. })));
}

#[test]
fn keys_without_effect_are_named() {
    for (key, value) in [
        ("encoder_no_repeat_ngram_size", "1"),
        ("min_length", "4"),
        ("stop_strings", "[\"end\"]"),
        ("suppress_tokens", "[1, 2]"),
        ("bad_words_ids", "[[3]]"),
        ("num_beams", "4"),
        ("top_h", "0.9"),
        ("early_stopping", "true"),
        ("forced_bos_token_id", "7"),
        ("max_window_size", "6144"),
        ("Top_p", "0.8"),
    ] {
        let config = parse(&format!(r#"{{"do_sample": true, "{key}": {value}}}"#));
        let warnings = config.warnings();
        let [warning @ Warning::IgnoredKey { key: named, .. }] = &warnings[..] else { panic!("{key}: {warnings:?}") };
        assert_eq!(named, key);
        let sentence = warning.to_string();
        assert!(sentence.starts_with(&format!("generation_config.json: key `{key}` (")), "{sentence}");
    }
    // Neutral values, and keys that only Python uses.
    let silent = r#"{"transformers_version": "4.37.0", "_from_model_config": true, "bos_token_id": 1, "pad_token_id": 1,
        "use_cache": false, "output_scores": true, "num_beams": 1, "no_repeat_ngram_size": 0, "length_penalty": 1.0,
        "early_stopping": false, "suppress_tokens": null, "stop_strings": [], "typical_p": 1, "chat_format": "chatml"}"#;
    assert_eq!(parse(silent).warnings(), []);
}

#[test]
fn the_rarer_parameters_are_read_within_their_bounds() {
    let config = parse(
        r#"{"typical_p": 0.9, "epsilon_cutoff": 3e-4, "eta_cutoff": 0.002, "no_repeat_ngram_size": 3, "min_new_tokens": 4}"#,
    );
    assert_eq!((config.typical_p, config.epsilon_cutoff, config.eta_cutoff), (0.9, 3e-4, 0.002));
    assert_eq!((config.no_repeat_ngram_size, config.min_new_tokens), (3, 4));
    assert_eq!(config.warnings(), []);
    for (field, value) in [
        ("typical_p", "0"),
        ("epsilon_cutoff", "1"),
        ("eta_cutoff", "-1"),
        ("no_repeat_ngram_size", "-3"),
        ("min_new_tokens", "\"a\""),
    ] {
        let config = parse(&format!(r#"{{"{field}": {value}}}"#));
        assert!(config.check(field).unwrap_err().to_string().contains(field), "{field}");
        assert_eq!(config.warnings().len(), 1);
    }
}
