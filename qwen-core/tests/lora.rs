//! Adapters that are read, and all those that are refused, each by the name of what is wrong with it.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qwen_core::checkpoint::{LoraCheckpoint, LoraConfig};
use qwen_core::{Config, Error, ErrorKind};
use serde_json::{Value, json};

fn model() -> Config {
    let json = r#"{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "rope_theta": 1e6, "tie_word_embeddings": true}"#;
    Config::from_json("config.json", json).unwrap()
}

/// A folder with an adapter, deleted at the end.
struct Adapter(PathBuf);

impl Drop for Adapter {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Tensors = Vec<(String, &'static str, Vec<usize>)>;

impl Adapter {
    fn new(name: &str, config: &Value, tensors: &Tensors) -> Self {
        let folder = std::env::temp_dir().join(format!("qwen-core-lora-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
        for (name, dtype, shape) in tensors {
            let (start, bytes) = (data.len(), if *dtype == "F32" { 4 } else { 2 });
            data.resize(start + bytes * shape.iter().product::<usize>(), 0);
            header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
        }
        let header = serde_json::to_vec(&header).unwrap();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
        Adapter(folder)
    }

    fn open(&self) -> Result<LoraCheckpoint, Error> {
        LoraCheckpoint::open(&self.0, &model())
    }
}

fn config() -> Value {
    json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]})
}

fn with(key: &str, value: Value) -> Value {
    let mut config = config();
    config[key] = value;
    config
}

/// Both halves for the modules of `config`.
fn tensors() -> Tensors {
    let mut tensors = Vec::new();
    for layer in 0..2 {
        for (module, rows) in [("q_proj", 64), ("v_proj", 32)] {
            let name = |half| format!("base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight");
            tensors.push((name("A"), "F32", vec![4, 64]));
            tensors.push((name("B"), "BF16", vec![rows, 4]));
        }
    }
    tensors
}

#[test]
fn an_adapter_is_read_with_its_scales() {
    let adapter = Adapter::new("good", &config(), &tensors());
    let opened = adapter.open().unwrap();
    assert_eq!((opened.rank(), opened.modules().count()), (4, 4));
    let module = opened.module("model.layers.1.self_attn.v_proj").unwrap().unwrap();
    assert_eq!((module.rank, module.scale, module.a.to_f32().len(), module.b.to_f32().len()), (4, 2.0, 256, 128));
    assert!(opened.module("model.layers.1.self_attn.k_proj").unwrap().is_none());
    assert_eq!(opened.digest().unwrap(), adapter.open().unwrap().digest().unwrap());
    let other = Adapter::new("other", &with("lora_alpha", json!(9)), &tensors());
    assert_ne!(opened.digest().unwrap(), other.open().unwrap().digest().unwrap());
    // As a model without a head is saved, and from an older version.
    let bare: Tensors = tensors()
        .into_iter()
        .map(|(name, dtype, shape)| (name.replacen("model.model.", "model.", 1), dtype, shape))
        .collect();
    assert_eq!(Adapter::new("bare", &config(), &bare).open().unwrap().modules().count(), 4);
}

#[test]
fn scales_follow_patterns_and_rslora() {
    let q = "model.layers.0.self_attn.q_proj";
    let scale = |config: Value, module: &str| {
        let config = LoraConfig::from_json("adapter_config.json", &config.to_string()).unwrap();
        (config.rank(module), config.scale(module))
    };
    assert_eq!(scale(config(), q), (4, 2.0));
    assert_eq!(scale(with("use_rslora", json!(true)), q), (4, 4.0));
    let mut patterns = with("rank_pattern", json!({"q_proj": 16, r"layers\.1\..*": 2}));
    patterns["alpha_pattern"] = json!({"layers.0.self_attn.q_proj": 32, "proj": 1});
    assert_eq!(scale(patterns.clone(), q), (16, 2.0));
    assert_eq!(scale(patterns.clone(), "model.layers.1.self_attn.v_proj"), (2, 4.0));
    // A key matches whole parts of a name only.
    assert_eq!(scale(patterns, "model.layers.11.self_attn.v_proj"), (4, 2.0));
}

#[test]
fn what_is_not_a_plain_adapter_is_refused_by_its_key() {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("alora_invocation_tokens", json!([1, 2])),
        ("layer_replication", json!([[0, 2]])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("trainable_token_indices", json!([7])),
        ("target_parameters", json!(["mlp.experts"])),
        ("use_qalora", json!(true)),
        ("arrow_config", json!({"top_k": 2})),
        ("some_future_flag", json!(true)),
        ("some_future_config", json!({"a": 1})),
    ] {
        let error = Adapter::new("key", &with(key, value.clone()), &tensors()).open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{key}: {value}: {error}");
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
    for (key, value) in [
        ("init_lora_weights", json!(true)),
        ("init_lora_weights", json!("gaussian")),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!([])),
        ("use_dora", json!(false)),
        ("some_future_number", json!(16)),
        ("some_future_config", Value::Null),
    ] {
        Adapter::new("harmless", &with(key, value), &tensors()).open().unwrap();
    }
}

#[test]
fn malformed_configurations_are_refused() {
    for (key, value) in [
        ("r", json!(0)),
        ("r", Value::Null),
        ("lora_alpha", json!("much")),
        ("target_modules", Value::Null),
        ("target_modules", json!(7)),
        ("target_modules", json!([1])),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"(": 4})),
        ("peft_type", Value::Null),
    ] {
        let error = Adapter::new("malformed", &with(key, value.clone()), &tensors()).open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{key}: {value}: {error}");
        assert!(error.to_string().contains("adapter_config.json"), "{error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let q_a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors();
        change(&mut tensors);
        Adapter::new("tensors", &config(), &tensors).open().unwrap_err()
    };
    let at = |tensors: &Tensors, name: &str| tensors.iter().position(|tensor| tensor.0 == name).unwrap();
    let error = changed(&|tensors| drop(tensors.remove(at(tensors, q_a))));
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == q_a), "{error}");
    let error = changed(&|tensors| tensors.retain(|tensor| !tensor.0.contains("layers.1.self_attn.v_proj")));
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name.contains("v_proj.lora_A")), "{error}");
    for shape in [vec![4, 63], vec![3, 64], vec![64, 4], vec![256]] {
        let error = changed(&|tensors| {
            let index = at(tensors, q_a);
            tensors[index].2 = shape.clone();
        });
        assert!(matches!(&error, Error::InvalidTensor { name, .. } if name == q_a), "{error}");
    }
    let rename = |to: &str| {
        let to = to.to_owned();
        changed(&move |tensors| {
            let index = at(tensors, q_a);
            tensors[index].0 = to.clone();
        })
    };
    for (name, reason) in [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.lm_head.lora_A.weight", "head"),
        ("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", "2 layers"),
        ("base_model.model.model.layers.0.self_attn.q_proj.weight", "low-rank"),
        ("base_model.model.model.layers.0.input_layernorm.lora_A.weight", "projection"),
    ] {
        let error = rename(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains(reason), "{error}");
    }
    // A module that the configuration does not target: peft would leave it out.
    let error = rename("base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight");
    assert!(error.to_string().contains("does not target"), "{error}");
    // The same module by two names.
    let error = changed(&|tensors| {
        let mut again = tensors[at(tensors, q_a)].clone();
        again.0 = again.0.replacen("base_model.model.", "", 1);
        tensors.push(again);
    });
    assert!(error.to_string().contains("two names"), "{error}");
}

#[test]
fn targets_are_names_endings_expressions_or_all() {
    for targets in [
        json!(["q_proj", "v_proj"]),
        json!(["self_attn.q_proj", "v_proj"]),
        json!(r".*self_attn\.(q|v)_proj"),
        json!(r"model\.layers\.\d+\.self_attn\.[qv]_proj"),
        // A look-ahead is not understood: the tensors tell.
        json!(r"(?!.*visual).*(?:q_proj|v_proj)"),
    ] {
        Adapter::new("targets", &with("target_modules", targets.clone()), &tensors()).open().unwrap();
    }
    // Whole names only, as Python's fullmatch.
    for targets in [json!("q_proj|v_proj"), json!(["proj"]), json!("all-linear"), json!(["q_proj"])] {
        let error = Adapter::new("targets", &with("target_modules", targets.clone()), &tensors()).open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidModel, "{targets}: {error}");
    }
    let first: Tensors = tensors().into_iter().filter(|tensor| tensor.0.contains("layers.0.")).collect();
    for layers in [json!([0]), json!(0)] {
        let adapter = Adapter::new("layers", &with("layers_to_transform", layers), &first).open().unwrap();
        assert_eq!(adapter.modules().count(), 2);
    }
    assert!(Adapter::new("layers", &with("layers_to_transform", json!([1])), &first).open().is_err());
    let excluded = with("exclude_modules", json!(["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]));
    assert_eq!(Adapter::new("excluded", &excluded, &first).open().unwrap().modules().count(), 2);
}

#[test]
fn pickled_weights_and_values_that_are_not_finite_are_refused() {
    let adapter = Adapter::new("pickled", &config(), &tensors());
    std::fs::rename(adapter.0.join("adapter_model.safetensors"), adapter.0.join("adapter_model.bin")).unwrap();
    assert_eq!(adapter.open().unwrap_err().kind(), ErrorKind::Unsupported);
    let adapter = Adapter::new("nan", &config(), &tensors());
    let file = adapter.0.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let opened = adapter.open().unwrap();
    let outcome: Result<Vec<_>, _> = opened.modules().map(|module| opened.module(module)).collect();
    assert!(outcome.unwrap_err().to_string().contains("not finite"));
}

proptest! {
    /// No text of a configuration panics.
    #[test]
    fn any_configuration_is_read_or_refused(key in "[a-z_]{1,20}", value in "\\PC{0,40}", pattern in "\\PC{0,20}") {
        for value in [json!(value), json!({pattern.clone(): value.clone()}), json!([value])] {
            for key in [key.as_str(), "target_modules", "rank_pattern", "alpha_pattern", "exclude_modules"] {
                let _ = LoraConfig::from_json(Path::new("adapter_config.json"), &with(key, value.clone()).to_string());
            }
        }
    }
}
