//! `config.json` of the Qwen2.5 family, in both key styles, and every way in which it can be wrong.

mod common;

use qwen_core::checkpoint::config::Yarn;
use qwen_core::{Config, Encoding, Error, RopeScaling};
use serde_json::{Value, json};

const INSTRUCT: &str = include_str!("data/config-0.5b-instruct.json");

/// The 0.5B Instruct file with keys replaced; `Value::Null` sets null, `REMOVE` takes the key away.
fn changed(changes: &[(&str, Value)]) -> String {
    let mut config: Value = serde_json::from_str(INSTRUCT).expect("the fixture is JSON");
    let map = config.as_object_mut().expect("the fixture is an object");
    for (key, value) in changes {
        match value {
            Value::String(text) if text == REMOVE => map.remove(*key),
            value => map.insert((*key).into(), value.clone()),
        };
    }
    config.to_string()
}

const REMOVE: &str = "<remove>";

fn parse(changes: &[(&str, Value)]) -> Config {
    Config::from_json("config.json", &changed(changes)).unwrap_or_else(|error| panic!("{changes:?}: {error}"))
}

fn refuse(changes: &[(&str, Value)]) -> Error {
    match Config::from_json("some/config.json", &changed(changes)) {
        Ok(config) => panic!("{changes:?} was accepted: {config:?}"),
        Err(error) => error,
    }
}

/// The key that an [`Error::InvalidConfig`] names.
fn refused_key(changes: &[(&str, Value)]) -> String {
    match refuse(changes) {
        Error::InvalidConfig { path, key, reason } => {
            assert_eq!(path.to_str(), Some("some/config.json"));
            assert!(!reason.is_empty());
            key
        }
        error => panic!("{changes:?}: {error}"),
    }
}

/// The message of an [`Error::Unsupported`].
fn unsupported(changes: &[(&str, Value)]) -> String {
    match refuse(changes) {
        error @ Error::Unsupported { .. } => error.to_string(),
        error => panic!("{changes:?}: {error}"),
    }
}

#[test]
fn a_published_file_is_read_field_by_field() {
    let config = parse(&[]);
    assert_eq!(config.hidden_size, 896);
    assert_eq!(config.intermediate_size, 4864);
    assert_eq!(config.num_hidden_layers, 24);
    assert_eq!(config.num_attention_heads, 14);
    assert_eq!(config.num_key_value_heads, 2);
    assert_eq!(config.head_dim, 64);
    assert_eq!(config.vocab_size, 151936);
    assert_eq!(config.max_position_embeddings, 32768);
    assert_eq!(config.rms_norm_eps, 1e-6);
    assert_eq!(config.rope_theta, 1e6);
    assert_eq!(config.rope_scaling, RopeScaling::None);
    assert_eq!(config.sliding_window, None);
    assert!(config.tie_word_embeddings);
    assert_eq!(config.bos_token_id, Some(151643));
    assert_eq!(config.eos_token_id, [151645]);
    assert_eq!(config.torch_dtype, Some(Encoding::Bf16));
}

#[test]
fn every_published_shape_has_its_published_number_of_parameters() {
    // hidden, layers, query heads, key and value heads, head_dim, intermediate, vocabulary, tied, parameters
    for (hidden, layers, heads, kv_heads, head_dim, inner, vocab, tied, parameters) in [
        (896, 24, 14, 2, 64, 4864, 151936, true, 494_032_768u64),
        (1536, 28, 12, 2, 128, 8960, 151936, true, 1_543_714_304),
        (2048, 36, 16, 2, 128, 11008, 151936, true, 3_085_938_688),
        (3584, 28, 28, 4, 128, 18944, 152064, false, 7_615_616_512),
        (5120, 48, 40, 8, 128, 13824, 152064, false, 14_770_033_664),
        (5120, 64, 40, 8, 128, 27648, 152064, false, 32_763_876_352),
        (8192, 80, 64, 8, 128, 29568, 152064, false, 72_706_203_648),
    ] {
        let config = parse(&[
            ("hidden_size", json!(hidden)),
            ("num_hidden_layers", json!(layers)),
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(kv_heads)),
            ("intermediate_size", json!(inner)),
            ("vocab_size", json!(vocab)),
            ("tie_word_embeddings", json!(tied)),
            // Instruct files state 70 layers here, whatever the model has.
            ("max_window_layers", json!(70)),
        ]);
        assert_eq!(config.head_dim, head_dim);
        assert_eq!(config.num_parameters(), parameters);
    }
    // The official quantised 72B files are padded to 232 groups of 128.
    assert_eq!(parse(&[("intermediate_size", json!(29696))]).intermediate_size, 29696);
}

#[test]
fn variants_differ_by_their_files_alone() {
    // positions, rope_theta, rms_norm_eps, eos, sliding_window as written
    for (positions, theta, eps, eos, window) in [
        (32768, json!(1000000.0), 1e-6, 151643, json!(32768)), // 0.5B base
        (131072, json!(1000000.0), 1e-6, 151643, json!(131072)), // 1.5B, 7B base
        (131072, json!(1000000.0), 1e-5, 151643, json!(131072)), // 14B, 32B, 72B base
        (32768, json!(1000000.0), 1e-6, 151645, json!(131072)), // their Instruct siblings: another eps
        (32768, json!(1000000), 1e-5, 151643, json!(null)),    // Coder 14B base
        (4096, json!(10000), 1e-6, 151645, json!(null)),       // Math 7B Instruct
        (4096, json!(10000.0), 1e-5, 151643, json!(4096)),     // Math 72B base
    ] {
        let config = parse(&[
            ("max_position_embeddings", json!(positions)),
            ("rope_theta", theta.clone()),
            ("rms_norm_eps", json!(eps)),
            ("eos_token_id", json!(eos)),
            ("sliding_window", window),
        ]);
        assert_eq!(config.max_context(), positions);
        assert_eq!(config.rope_theta, theta.as_f64().unwrap());
        assert_eq!(config.rms_norm_eps, eps as f32);
        assert_eq!(config.eos_token_id, [eos]);
        assert_eq!(config.sliding_window, None);
    }
}

#[test]
fn numbers_and_nulls_as_python_writes_them() {
    assert_eq!(parse(&[("hidden_size", json!(896.0))]).hidden_size, 896);
    assert_eq!(parse(&[("rope_theta", json!(10000))]).rope_theta, 10000.0);
    assert_eq!(parse(&[("eos_token_id", json!([151645, 151643.0]))]).eos_token_id, [151645, 151643]);
    assert!(parse(&[("eos_token_id", json!(null))]).eos_token_id.is_empty());
    assert_eq!(parse(&[("bos_token_id", json!(null))]).bos_token_id, None);
    assert_eq!(parse(&[("num_key_value_heads", json!(null))]).num_key_value_heads, 14);
    assert_eq!(parse(&[("head_dim", json!(128))]).head_dim, 128);
    assert_eq!(parse(&[("head_dim", json!(null))]).head_dim, 64);
    assert!(!parse(&[("tie_word_embeddings", json!(null))]).tie_word_embeddings);
    assert!(!parse(&[("tie_word_embeddings", json!(REMOVE))]).tie_word_embeddings);
    for key in ["quantization_config", "dual_chunk_attention_config", "rope_scaling", "layer_types", "sliding_window"] {
        assert_eq!(parse(&[(key, json!(null))]), parse(&[]), "{key}");
    }
    for (key, value, expected) in [
        ("torch_dtype", json!("float16"), Some(Encoding::F16)),
        ("torch_dtype", json!("torch.float32"), Some(Encoding::F32)),
        ("torch_dtype", json!("auto"), None),
        ("torch_dtype", json!(null), None),
        ("dtype", json!("float32"), Some(Encoding::F32)),
    ] {
        assert_eq!(parse(&[(key, value)]).torch_dtype, expected);
    }
}

#[test]
fn the_new_key_style_means_the_same() {
    let new = [
        ("rope_theta", json!(REMOVE)),
        ("rope_parameters", json!({"rope_theta": 1000000.0, "rope_type": "default"})),
        ("torch_dtype", json!(REMOVE)),
        ("dtype", json!("bfloat16")),
        ("sliding_window", json!(null)),
        ("layer_types", json!(vec!["full_attention"; 24])),
    ];
    assert_eq!(parse(&new), parse(&[]));
}

#[test]
fn yarn_in_all_its_spellings() {
    let yarn = json!({"factor": 4.0, "original_max_position_embeddings": 32768});
    let with = |pairs: &[(&str, Value)]| {
        let mut yarn = yarn.clone();
        pairs.iter().for_each(|(key, value)| yarn[*key] = value.clone());
        yarn
    };
    let expected = parse(&[]).with_yarn(4.0).expect("a factor that fits");
    assert_eq!(expected.rope_scaling, RopeScaling::Yarn(Yarn::new(4.0, 32768)));
    assert_eq!(expected.max_context(), 131072);
    for changes in [
        vec![("rope_scaling", with(&[("type", json!("yarn"))]))],
        vec![("rope_scaling", with(&[("rope_type", json!("yarn"))]))],
        vec![("rope_scaling", with(&[("type", json!("yarn")), ("rope_type", json!("yarn"))]))],
        vec![(
            "rope_scaling",
            with(&[("type", json!("yarn")), ("factor", json!(4)), ("attention_factor", json!(null))]),
        )],
        // Where the key is missing the original context is the one that the file states.
        vec![("rope_scaling", json!({"type": "yarn", "factor": 4.0}))],
        vec![
            ("rope_theta", json!(REMOVE)),
            ("rope_parameters", with(&[("rope_type", json!("yarn")), ("rope_theta", json!(1e6))])),
        ],
        // The card's snippet added to a file of the new style.
        vec![
            ("rope_theta", json!(REMOVE)),
            ("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e6})),
            ("rope_scaling", with(&[("type", json!("yarn"))])),
        ],
    ] {
        assert_eq!(parse(&changes), expected, "{changes:?}");
    }
    let optional = with(&[
        ("type", json!("yarn")),
        ("beta_fast", json!(64)),
        ("beta_slow", json!(2)),
        ("attention_factor", json!(1.5)),
        ("mscale", json!(0.7)),
        ("mscale_all_dim", json!(0.5)),
        ("truncate", json!(false)),
    ]);
    let RopeScaling::Yarn(yarn) = parse(&[("rope_scaling", optional)]).rope_scaling else { panic!("YaRN") };
    assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.truncate), (64.0, 2.0, false));
    assert_eq!((yarn.attention_factor, yarn.mscale, yarn.mscale_all_dim), (Some(1.5), Some(0.7), Some(0.5)));
}

#[test]
fn the_written_factor_holds_whatever_the_positions_imply() {
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    for positions in [32768, 65536, 131072] {
        let config = parse(&[("rope_scaling", yarn.clone()), ("max_position_embeddings", json!(positions))]);
        assert_eq!(config.max_context(), 131072);
    }
}

#[test]
fn yarn_is_switched_on_by_hand() {
    let twice = parse(&[]).with_yarn(2.0).and_then(|config| config.with_yarn(4.0)).expect("factors that fit");
    assert_eq!(twice.max_context(), 131072, "the factor is replaced, the original context is not");
    for factor in [0.5, -4.0, f64::NAN, f64::INFINITY, 1e9] {
        let error = parse(&[]).with_yarn(factor).expect_err("out of bounds");
        assert!(matches!(error, Error::InvalidArgument { .. }), "{factor}: {error}");
    }
    let zero = parse(&[]).with_rope_scaling(RopeScaling::Yarn(Yarn::new(4.0, 0)));
    assert!(matches!(zero, Err(Error::InvalidArgument { name: "original_max_position_embeddings", .. })));
}

#[test]
fn missing_and_malformed_keys_are_named() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "model_type",
    ] {
        assert_eq!(refused_key(&[(key, json!(REMOVE))]), key);
        assert_eq!(refused_key(&[(key, json!(null))]), key);
        assert_eq!(refused_key(&[(key, json!([1]))]), key);
        assert_eq!(refused_key(&[(key, json!({}))]), key);
    }
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-896)),
        ("hidden_size", json!(896.5)),
        ("hidden_size", json!("896")),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(1e300)),
        ("intermediate_size", json!(1u64 << 40)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(13)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(28)),
        ("head_dim", json!(0)),
        ("head_dim", json!(63)),
        ("head_dim", json!(u64::MAX)),
        ("vocab_size", json!(0)),
        ("max_position_embeddings", json!(0)),
        ("max_position_embeddings", json!(u64::MAX)),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(-1e-6)),
        ("rms_norm_eps", json!(1e-60)),
        ("rms_norm_eps", json!(1e6)),
        ("rope_theta", json!(1)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-10000)),
        ("rope_theta", json!("1e6")),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([151645, "x"])),
        ("eos_token_id", json!(1u64 << 32)),
        ("tie_word_embeddings", json!(1)),
        ("use_sliding_window", json!("no")),
        ("rope_scaling", json!("yarn")),
    ] {
        assert_eq!(refused_key(&[(key, value)]), key);
    }
    // 896 has an odd width in 128 heads of 7.
    assert_eq!(refused_key(&[("num_attention_heads", json!(128)), ("num_key_value_heads", json!(1))]), "head_dim");
}

#[test]
fn malformed_rope_keys_are_named_with_their_parent() {
    for (value, key) in [
        (json!({"type": "yarn"}), "factor"),
        (json!({"type": "yarn", "factor": null}), "factor"),
        (json!({"type": "yarn", "factor": 0.5}), "factor"),
        (json!({"type": "yarn", "factor": "4"}), "factor"),
        (json!({"type": "yarn", "factor": 1e300}), "factor"),
        (json!({"type": "yarn", "factor": 1e6}), "original_max_position_embeddings"),
        (
            json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}),
            "original_max_position_embeddings",
        ),
        (json!({"type": "yarn", "factor": 4, "beta_fast": 0}), "beta_fast"),
        (json!({"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32}), "beta_fast"),
        (json!({"type": "yarn", "factor": 4, "beta_slow": 0}), "beta_slow"),
        (json!({"type": "yarn", "factor": 4, "attention_factor": 0}), "attention_factor"),
        (json!({"type": "yarn", "factor": 4, "attention_factor": -1}), "attention_factor"),
        (json!({"type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": -1e9}), "mscale"),
        (json!({"type": "yarn", "factor": 4, "mscale": 1e307, "mscale_all_dim": 0.7}), "mscale"),
        (json!({"type": "yarn", "factor": 4, "attention_factor": 1e300}), "attention_factor"),
        (json!({"type": "yarn", "factor": 4, "truncate": 1}), "truncate"),
        (json!({"type": "yarn", "rope_type": "default", "factor": 4}), "rope_type"),
        (json!({"factor": 4}), "rope_type"),
        (json!({"type": 4}), "type"),
        (json!({"type": "yarn", "factor": 4, "rope_theta": 5000}), "rope_theta"),
    ] {
        assert_eq!(refused_key(&[("rope_scaling", value)]), format!("rope_scaling.{key}"));
    }
    let both = [
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 4})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2})),
    ];
    assert_eq!(refused_key(&both), "rope_scaling");
}

#[test]
fn other_models_are_refused_by_name() {
    for (key, value, named) in [
        ("model_type", json!("llama"), "\"llama\""),
        ("model_type", json!("qwen3"), "\"qwen3\""),
        ("model_type", json!("qwen2_moe"), "\"qwen2_moe\""),
        ("architectures", json!(["Qwen2ForRewardModel"]), "Qwen2ForRewardModel"),
        ("hidden_act", json!("gelu"), "\"gelu\""),
        ("dual_chunk_attention_config", json!({"chunk_size": 262144}), "dual_chunk_attention_config"),
        ("quantization_config", json!({}), "unnamed"),
        ("compression_config", json!({"quant_method": "compressed-tensors"}), "compressed-tensors"),
        ("use_mrope", json!(true), "use_mrope"),
        ("partial_rotary_factor", json!(0.5), "0.5"),
        ("rope_scaling", json!({"type": "linear", "factor": 2}), "\"linear\""),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2}), "\"dynamic\""),
        ("rope_scaling", json!({"type": "mrope", "mrope_section": [16, 24, 24]}), "\"mrope\""),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "sliding_attention"),
    ] {
        let message = unsupported(&[(key, value)]);
        assert!(message.contains(named) && message.contains(key) && message.contains("some/config.json"), "{message}");
    }
    assert_eq!(parse(&[("use_mrope", json!(false)), ("partial_rotary_factor", json!(1.0))]), parse(&[]));
}

/// Unused values are never a reason to refuse, and neither are the non-JSON numbers that Python writes.
#[test]
fn what_has_no_part_in_the_results_refuses_nothing() {
    for (key, value) in [
        ("bos_token_id", json!("<s>")),
        ("bos_token_id", json!(-1)),
        ("torch_dtype", json!(16)),
        ("sliding_window", json!("none")),
        ("max_window_layers", json!(-1)),
        ("initializer_range", json!("NaN")),
        ("architectures", json!(null)),
        ("some_other_key", json!({"deep": [1, 2]})),
    ] {
        let config = Config::from_json("config.json", &changed(&[(key, value.clone())]));
        assert!(config.is_ok(), "{key} {value}: {config:?}");
    }
    let text = changed(&[("initializer_range", json!(1.5)), ("note", json!("a \\ \" NaN, -Infinity"))]);
    for word in ["NaN", "Infinity", "-Infinity"] {
        let text = text.replace("1.5", word);
        assert!(text.contains(word));
        assert_eq!(Config::from_json("config.json", &text).expect(word), parse(&[]));
        let matters = changed(&[("rms_norm_eps", json!(1.5))]).replace("1.5", word);
        match Config::from_json("config.json", &matters) {
            Err(Error::InvalidConfig { key, reason, .. }) => {
                assert_eq!(key, "rms_norm_eps");
                assert!(reason.contains(word), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_sliding_window_is_refused_only_where_it_binds() {
    let on = ("use_sliding_window", json!(true));
    assert!(unsupported(&[on.clone(), ("sliding_window", json!(4096))]).contains("4096"));
    assert_eq!(parse(&[on.clone(), ("sliding_window", json!(null))]), parse(&[]));
    let wide = parse(&[on.clone(), ("sliding_window", json!(32768))]);
    assert_eq!(wide.sliding_window, Some(32768));
    let wide_again = wide.clone();
    assert!(matches!(wide.with_yarn(4.0), Err(Error::Unsupported { .. })), "stretched, the context exceeds the window");
    // The file's model has 24 layers, and `max_window_layers` 21.
    for layers in [24, 28, 1000] {
        let without = [on.clone(), ("sliding_window", json!(4096)), ("max_window_layers", json!(layers))];
        assert_eq!(parse(&without), parse(&[]), "{layers}: no layer has the window");
    }
    assert!(unsupported(&[on.clone(), ("sliding_window", json!(REMOVE))]).contains("4096"), "transformers' own value");
    let mut kinds = vec!["full_attention"; 24];
    kinds.push("sliding_attention");
    let beyond = [on.clone(), ("sliding_window", json!(4096)), ("layer_types", json!(kinds))];
    assert_eq!(parse(&beyond), parse(&[]), "there is no layer 24");
    kinds[3] = "sliding_attention";
    let sliding = |window: usize| [on.clone(), ("sliding_window", json!(window)), ("layer_types", json!(kinds))];
    assert!(unsupported(&sliding(4096)).contains("4096"));
    assert_eq!(parse(&sliding(32768)), wide_again, "wider than the context");
    let explicit = [on, ("sliding_window", json!(4096)), ("layer_types", json!(vec!["full_attention"; 24]))];
    assert_eq!(parse(&explicit), parse(&[]), "the newer key says that no layer slides");
}

#[test]
fn what_is_no_object_is_no_configuration() {
    let nested = "[".repeat(100_000);
    for text in [
        "",
        "{",
        "[]",
        "null",
        "3",
        "\"qwen2\"",
        "{\"model_type\": }",
        "{\"a\": nan}",
        "{\"a\": NaNs}",
        "{NaN: 1}x",
        "{\"a\": 1e999}",
        &nested,
    ] {
        let error = Config::from_json("some/config.json", text).expect_err("no configuration");
        assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
        assert!(error.to_string().starts_with("some/config.json: "), "{error}");
    }
    let error = Config::from_file("no/such/config.json").expect_err("no file");
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("config.json")), "{error}");
    let error = Config::from_file(env!("CARGO_MANIFEST_DIR")).expect_err("a folder");
    assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
    let folder = common::TempFolder::new().with("config.json", [0xff, 0xfe]);
    let error = Config::from_file(folder.path().join("config.json")).expect_err("not UTF-8");
    assert!(error.to_string().contains("UTF-8"), "{error}");
}
