//! Checkpoints that contradict their configuration, and folders with something else in place of a file: what loads
//! without comment, what loads with a warning, and what is refused by name.

mod common;

use common::{TempFolder, safetensors_of, tensors_of};
use half::bf16;
use qwen_core::{Checkpoint, Config, Error, Warning};

/// Two layers, tied.
const CONFIG: &str = r#"{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 12,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "rope_theta": 1e6, "tie_word_embeddings": true}"#;

type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// A tensor of bf16 values that count up from `first`.
fn tensor(name: &str, shape: &[usize], first: f32) -> Tensor {
    let values = 0..shape.iter().product::<usize>();
    let data = values.flat_map(|value| bf16::from_f32(first + value as f32).to_le_bytes()).collect();
    (name.into(), "BF16", shape.to_vec(), data)
}

/// All tensors of the model.
fn model() -> Vec<Tensor> {
    let config = Config::from_json("config.json", CONFIG).expect("a configuration");
    tensors_of(&config).iter().map(|(name, shape)| tensor(name, shape, name.len() as f32)).collect()
}

fn folder(tensors: &[Tensor]) -> TempFolder {
    TempFolder::new().with("config.json", CONFIG).with("model.safetensors", safetensors_of(tensors))
}

/// The model with `more` tensors.
fn with(more: impl IntoIterator<Item = Tensor>) -> TempFolder {
    folder(&model().into_iter().chain(more).collect::<Vec<_>>())
}

fn open(folder: &TempFolder) -> Checkpoint {
    Checkpoint::open(folder.path()).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refused(folder: &TempFolder, words: &[&str]) {
    let error = Checkpoint::open(folder.path()).expect_err("refused").to_string();
    words.iter().for_each(|word| assert!(error.contains(word), "`{error}` does not name {word}"));
}

#[test]
fn a_model_as_published_has_no_warnings() {
    assert_eq!(open(&folder(&model())).warnings(), []);
    // The frequencies of old files follow from the configuration.
    let old = with([tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[2], 1.0)]);
    assert_eq!(open(&old).warnings(), []);
}

#[test]
fn tensors_that_nothing_uses_are_reported() {
    let names = ["v_head.summary.weight", "model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.sinks"];
    let checkpoint = open(&with(names.map(|name| tensor(name, &[4], 1.0))));
    let [warning @ Warning::UnusedTensors { names: found, .. }] = checkpoint.warnings() else { panic!("one warning") };
    let mut found = found.clone();
    found.sort();
    let mut names = names.map(str::to_owned);
    names.sort();
    assert_eq!(found, names);
    assert!(warning.to_string().contains("`v_head.summary.weight`"), "{warning}");
    assert_eq!(serde_json::to_value(warning).expect("a sentence"), warning.to_string());
    let many = open(&with((0..9).map(|n| tensor(&format!("extra.{n}"), &[1], 1.0))));
    assert!(many.warnings()[0].to_string().contains("and 5 more"), "{}", many.warnings()[0]);
}

#[test]
fn a_head_of_its_own_is_used_by_a_model_that_is_said_to_be_tied() {
    let own = open(&with([tensor("lm_head.weight", &[12, 8], 500.0)]));
    assert!(!own.config().tie_word_embeddings);
    let [warning @ Warning::UntiedHead { name, .. }] = own.warnings() else { panic!("{:?}", own.warnings()) };
    assert_eq!(name, "lm_head.weight");
    assert!(warning.to_string().contains("tie_word_embeddings"), "{warning}");

    // A copy of the table, also in another type: no warning.
    let table = || model().into_iter().find(|tensor| tensor.0 == "model.embed_tokens.weight").expect("a table");
    let (_, dtype, shape, data) = table();
    let equal = open(&with([("lm_head.weight".into(), dtype, shape.clone(), data.clone())]));
    assert!(equal.config().tie_word_embeddings);
    assert_eq!(equal.warnings(), []);
    let values = data.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
    let wide: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    let equal = open(&with([("lm_head.weight".into(), "F32", shape.clone(), wide.clone())]));
    assert!(equal.config().tie_word_embeddings);
    let mut changed = wide;
    *changed.last_mut().expect("bytes") ^= 1;
    assert!(!open(&with([("lm_head.weight".into(), "F32", shape, changed)])).config().tie_word_embeddings);
}

#[test]
fn what_would_change_the_results_is_refused_by_name() {
    for (name, words) in [
        ("model.layers.1.self_attn.o_proj.bias", &["`model.layers.1.self_attn.o_proj.bias`", "bias"][..]),
        ("model.layers.1.mlp.down_proj.bias", &["down_proj.bias"]),
        ("model.layers.0.self_attn.q_norm.weight", &["q_norm", "Qwen3"]),
        ("model.layers.0.self_attn.k_norm.weight", &["k_norm"]),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &["lora_A", "merge_and_unload"]),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight", &["lora_B"]),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", &["base_layer", "adapter"]),
    ] {
        refused(&with([tensor(name, &[8], 1.0)]), words);
    }
    // Biases of zeros, which quantisers write, change nothing.
    let zeros = ["self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"]
        .map(|module| (format!("model.layers.1.{module}.bias"), "F16", vec![8], vec![0; 16]));
    assert_eq!(open(&with(zeros)).warnings(), []);
}

#[test]
fn adapters_are_refused_beside_a_model_and_alone() {
    let adapter =
        || safetensors_of(&[tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[8], 1.0)]);
    let beside = folder(&model()).with("adapter_model.safetensors", adapter()).with("adapter_config.json", "{}");
    refused(&beside, &["adapter_model.safetensors", "merge", "move"]);
    let alone = TempFolder::new().with("adapter_model.safetensors", adapter()).with("adapter_config.json", "{}");
    refused(&alone, &["adapter_model.safetensors", "merge"]);
    refused(&folder(&model()).with("adapter_model.bin", "x"), &["adapter_model.bin"]);
}

#[test]
fn names_of_parts_and_wrappers_are_understood() {
    let rename = |to: &dyn Fn(&str) -> String| {
        let tensors: Vec<Tensor> = model().into_iter().map(|(name, d, s, data)| (to(&name), d, s, data)).collect();
        folder(&tensors)
    };
    let plain = folder(&model());
    let plain = open(&plain);
    for to in [
        &(|name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned()) as &dyn Fn(&str) -> String,
        &|name| format!("module.{name}"),
        &|name| format!("_orig_mod.{name}"),
        &|name| format!("base_model.model.{name}"),
        &|name| format!("language_model.{name}"),
        &|name| name.replacen("model.", "model.language_model.", 1),
        &|name| name.replacen("model.", "transformer.", 1),
        &|name| name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
    ] {
        let renamed = rename(to);
        let checkpoint = open(&renamed);
        assert_eq!(checkpoint.warnings(), []);
        for info in plain.tensors() {
            let found = checkpoint.tensor_of_shape(&info.name, &info.shape).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found.data, plain.tensor(&info.name).expect("a tensor").data);
        }
        let first = checkpoint.tensors().find(|info| info.alias.is_some()).expect("a name of its own");
        assert_eq!(first.alias.as_deref(), Some(&to(&first.name)[..]));
    }
    // Errors give the name in the file.
    let parts = rename(&|name| format!("module.{name}"));
    let error = open(&parts).tensor_of_shape("model.norm.weight", &[9]).expect_err("another shape").to_string();
    assert!(error.contains("`module.model.norm.weight`"), "{error}");

    // If a file has both, the published name is used.
    let both = with([tensor("norm.weight", &[8], 77.0)]);
    let both = open(&both);
    assert_eq!(both.tensor("model.norm.weight").expect("it").data, plain.tensor("model.norm.weight").expect("it").data);
    assert!(matches!(both.warnings(), [Warning::UnusedTensors { names, .. }] if names == &["norm.weight"]));
    let other_order = with([tensor("a.first", &[1], 1.0)].into_iter().chain([tensor("module.norm.weight", &[8], 1.0)]));
    assert!(open(&other_order).warnings()[0].to_string().contains("module.norm.weight"));
    let mut ambiguous = model();
    ambiguous.retain(|tensor| tensor.0 != "model.norm.weight");
    ambiguous.extend(["norm.weight", "module.norm.weight"].map(|name| tensor(name, &[8], 1.0)));
    refused(&folder(&ambiguous), &["`norm.weight`", "`module.norm.weight`", "`model.norm.weight`"]);
}

#[test]
fn other_names_are_told_where_the_model_misses_its_own() {
    let other =
        folder(&["transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"].map(|name| tensor(name, &[8], 1.0)));
    let error = open(&other).tensor("model.embed_tokens.weight").expect_err("none").to_string();
    assert!(error.contains("`model.embed_tokens.weight`") && error.contains("`transformer.wte.weight`"), "{error}");
    let mut fused = model();
    fused.retain(|tensor| !tensor.0.contains("layers.1.mlp.up_proj"));
    fused.push(tensor("model.layers.1.mlp.gate_up_proj.weight", &[32, 8], 1.0));
    let error = open(&folder(&fused)).tensor("model.layers.1.mlp.up_proj.weight").expect_err("none").to_string();
    assert!(error.contains("gate_up_proj"), "{error}");
    let untied = folder(&model()).with("config.json", CONFIG.replace("true", "false"));
    let error = open(&untied).tensor("lm_head.weight").expect_err("none").to_string();
    assert!(error.contains("tie_word_embeddings"), "{error}");
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:11\nsize 988097824\n";
const PAGE: &str = "\u{feff}\n<!doctype html>\n<html><head><title>Sign in</title></head></html>";

#[test]
fn what_downloads_leave_is_called_by_its_name() {
    for (content, word) in [(POINTER, "Git LFS pointer"), (PAGE, "HTML"), ("<?xml version=\"1.0\"?><Error/>", "XML")] {
        for name in ["model.safetensors", "config.json"] {
            refused(&folder(&model()).with(name, content), &[name, word]);
        }
        let index = "model.safetensors.index.json";
        refused(&TempFolder::new().with("config.json", CONFIG).with(index, content), &[index, word]);
        let gguf = TempFolder::new().with("model.gguf", content);
        let error = Checkpoint::open(gguf.path().join("model.gguf")).expect_err("no model").to_string();
        assert!(error.contains(word), "{error}");
        let generation = folder(&model()).with("generation_config.json", content);
        assert!(open(&generation).warnings()[0].to_string().contains(word));
    }
    refused(&folder(&model()).with("config.json", "Entry not found"), &["config.json", "\"Entry not found\""]);
    refused(&folder(&model()).with("model.safetensors", [b"GGUF".as_slice(), &[3; 60]].concat()), &["GGUF file"]);
    refused(&folder(&model()).with("model.safetensors", [b"PK\x03\x04".as_slice(), &[1; 60]].concat()), &["PyTorch"]);
}

#[cfg(unix)]
#[test]
fn links_to_nothing_are_told() {
    for name in ["config.json", "model.safetensors"] {
        let folder = folder(&model());
        std::fs::remove_file(folder.path().join(name)).expect("it was there");
        std::os::unix::fs::symlink("../blobs/gone", folder.path().join(name)).expect("a link");
        match Checkpoint::open(folder.path()) {
            Err(Error::InvalidFile { path, reason }) => {
                assert_eq!(path, folder.path().join(name));
                assert!(reason.contains("link to ../blobs/gone"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}
