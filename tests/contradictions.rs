//! Models whose files contradict each other, through the facade: what works, what gives a warning, what is refused.
#![cfg(feature = "cpu")]

mod common;

use std::path::Path;

use common::{Folder, SMALL, Shape, demo, options, write_checkpoint};
use qwen::core::Error as ModelError;
use qwen::{Engine, Error, GenerateOptions, Warning};
use serde_json::{Value, json};

/// The demo model's greedy answer to `Hello!`.
const ANSWER: &str = "Hello! How can I help you?";

/// A copy of the demo model.
fn copy(name: &str) -> Folder {
    let folder = Folder::new(name);
    for file in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(demo().join(file), folder.0.join(file)).unwrap();
    }
    folder
}

/// A copy of the demo model with these keys in its generation_config.json, loaded.
fn with_generation(name: &str, keys: Value) -> Engine {
    let folder = copy(name);
    edit(&folder.0, "generation_config.json", keys);
    options().load(&folder.0).unwrap()
}

fn edit(folder: &Path, file: &str, keys: Value) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    keys.as_object().unwrap().iter().for_each(|(key, value)| json[key] = value.clone());
    std::fs::write(path, json.to_string()).unwrap();
}

fn hello(engine: &Engine, options: GenerateOptions) -> Result<String, Error> {
    engine.chat().options(options).send("Hello!")?.text()
}

#[test]
fn a_model_whose_files_name_another_end_stops_where_its_template_ends_a_turn() {
    let folder = copy("base-fine-tune");
    edit(&folder.0, "config.json", json!({"eos_token_id": 1520}));
    edit(&folder.0, "generation_config.json", json!({"eos_token_id": 1520}));
    edit(&folder.0, "tokenizer_config.json", json!({"eos_token": "<|endoftext|>"}));
    let engine = options().load(&folder.0).unwrap();
    assert_eq!(engine.stop_token_ids(), [1520, 1522]);
    assert_eq!(hello(&engine, GenerateOptions::new().max_new_tokens(40)).unwrap(), ANSWER);
    // A template that writes nothing after an answer, one that writes words, and one that refuses, add no token.
    for template in [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }} END <|im_start|>{% endfor %}",
        "{% if messages|length == 2 %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}",
    ] {
        edit(&folder.0, "tokenizer_config.json", json!({"chat_template": template}));
        assert_eq!(options().load(&folder.0).unwrap().stop_token_ids(), [1520], "{template}");
    }
    for template in [
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}\n <|im_end|>{% endfor %}<|im_start|>assistant ",
        "{% for m in messages %}{{ m.content + '<|im' + '_end|>' }}{% endfor %}",
        "{% if tools %}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% endif %}",
    ] {
        edit(&folder.0, "tokenizer_config.json", json!({"chat_template": template}));
        assert_eq!(options().load(&folder.0).unwrap().stop_token_ids(), [1520, 1522], "{template}");
    }
}

#[test]
fn every_key_of_generation_config_has_effect_or_is_named() {
    let engine = with_generation("max-length", json!({"max_length": 25, "max_new_tokens": null}));
    // The prompt has 22 tokens.
    assert_eq!(hello(&engine, GenerateOptions::new()).unwrap(), "Hello! How");
    let noise = json!({"do_sample": true, "temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.9});
    let engine = with_generation("min-p", noise);
    for seed in 0..4 {
        assert_eq!(hello(&engine, GenerateOptions::new().seed(seed)).unwrap(), ANSWER);
    }
    assert_eq!(engine.warnings(), []);
    let engine = with_generation("ignored", json!({"suppress_tokens": [1], "stop_strings": ["you"]}));
    let keys: Vec<&str> = engine
        .warnings()
        .iter()
        .map(|warning| match warning {
            Warning::IgnoredKey { key, .. } => key.as_str(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(keys, ["suppress_tokens", "stop_strings"]);
    assert_eq!(engine.plan().warnings, engine.warnings());
    let ids = |engine: &Engine, options: GenerateOptions| -> Vec<u32> {
        let options = options.ignore_eos(true).max_new_tokens(12);
        engine.generate_ids([1, 2, 3], &options).unwrap().collect::<qwen::Result<_>>().unwrap()
    };
    let once = with_generation("n-gram", json!({"no_repeat_ngram_size": 1}));
    let mut distinct = ids(&once, GenerateOptions::new());
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 12, "each token once");
    let few = GenerateOptions::new().allowed_token_ids([40, 41]);
    assert_eq!(ids(&once, few.no_repeat_ngram_size(0)).len(), 12, "a request's own value goes first");
    assert_eq!(hello(&engine, GenerateOptions::new()).unwrap(), ANSWER);
}

#[test]
fn values_that_are_not_in_use_refuse_nothing() {
    for (name, keys) in [
        ("top-p", json!({"top_p": 0.0})),
        ("top-p-7", json!({"top_p": 7.0})),
        ("top-k", json!({"top_k": -1})),
        ("all", json!({"top_k": "x", "top_p": -1, "min_p": 9, "temperature": -3})),
        ("one-token", json!({"do_sample": true, "temperature": 5.0, "top_p": 0.0})),
        ("length", json!({"max_length": -1})),
    ] {
        assert_eq!(hello(&with_generation(name, keys), GenerateOptions::new()).unwrap(), ANSWER, "{name}");
    }
}

#[test]
fn values_in_use_are_refused_unless_the_program_sets_them() {
    type Set = fn(GenerateOptions) -> GenerateOptions;
    let sampled = |key: &str, value: Value| json!({"do_sample": true, "temperature": 0.01, key: value});
    let cases: [(&str, Value, Set); 8] = [
        ("top_k", sampled("top_k", json!(-1)), |options| options.top_k(20)),
        ("top_p", sampled("top_p", json!(7)), |options| options.top_p(0.8)),
        ("min_p", sampled("min_p", json!("x")), |options| options.min_p(0.1)),
        ("temperature", sampled("temperature", json!(0)), |options| options.temperature(0.01)),
        ("do_sample", json!({"do_sample": "yes"}), |options| options.temperature(0.0)),
        ("repetition_penalty", json!({"repetition_penalty": -1}), |options| options.repetition_penalty(1.0)),
        ("max_new_tokens", json!({"max_new_tokens": -1}), |options| options.max_new_tokens(40)),
        ("eos_token_id", json!({"eos_token_id": "<|im_end|>"}), |options| options.stop_token_ids([1522])),
    ];
    for (key, keys, set) in cases {
        let engine = with_generation(key, keys);
        assert!(matches!(engine.warnings(), [Warning::InvalidValue { key: named, .. }] if named == key));
        match hello(&engine, GenerateOptions::new()) {
            Err(Error::Model(ModelError::InvalidConfig { path, key: named, .. })) => {
                assert!(path.ends_with("generation_config.json"));
                assert_eq!(named, key);
            }
            other => panic!("{key}: {other:?}"),
        }
        assert_eq!(hello(&engine, set(GenerateOptions::new())).unwrap(), ANSWER, "{key}");
    }
    // A file that is not JSON.
    let folder = copy("no-json");
    std::fs::write(folder.0.join("generation_config.json"), "404: Not Found").unwrap();
    let engine = options().load(&folder.0).unwrap();
    assert!(matches!(engine.warnings(), [Warning::UnreadableFile { .. }]));
    assert!(matches!(hello(&engine, GenerateOptions::new()), Err(Error::Model(ModelError::InvalidFile { .. }))));
    let own = GenerateOptions::new().greedy().max_new_tokens(40).stop_token_ids([1522]);
    assert_eq!(hello(&engine, own).unwrap(), ANSWER);
}

#[test]
fn python_numbers_that_do_not_matter_change_nothing() {
    let folder = copy("nan");
    for file in ["config.json", "generation_config.json"] {
        let text = std::fs::read_to_string(folder.0.join(file)).unwrap();
        let text = text.replacen('{', "{\"initializer_range\": NaN, \"_note\": -Infinity,", 1);
        std::fs::write(folder.0.join(file), text.replace("\"initializer_range\": 0.02,", "")).unwrap();
    }
    let engine = options().load(&folder.0).unwrap();
    assert_eq!(hello(&engine, GenerateOptions::new()).unwrap(), ANSWER);
}

#[test]
fn a_head_that_differs_is_the_head_of_the_model() {
    let logits = |folder: &Path| {
        let engine = options().context(64).load(folder).unwrap();
        let rows = engine.logits(&[1, 2, 3]).unwrap();
        (rows, engine)
    };
    let folder = Folder::new("untied");
    write_checkpoint(&folder.0, Shape { tied: false, ..SMALL }, |_, _| {});
    let (untied, engine) = logits(&folder.0);
    assert_eq!(engine.warnings(), []);
    edit(&folder.0, "config.json", json!({"tie_word_embeddings": true}));
    let (found, engine) = logits(&folder.0);
    assert!(matches!(engine.warnings(), [Warning::UntiedHead { .. }]), "{:?}", engine.warnings());
    assert_eq!(found, untied);
}
