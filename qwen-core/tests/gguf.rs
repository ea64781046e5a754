//! GGUF files as checkpoints: names and shapes, the configuration, and models that are refused by name.

mod common;

use std::path::PathBuf;

use common::TempFolder;
use common::gguf::{F32, Gguf, Q8_0, array, string};
use qwen_core::checkpoint::config::Yarn;
use qwen_core::{Checkpoint, Encoding, Error, RopeScaling};

/// The file in a separate folder.
fn written(file: &Gguf) -> (TempFolder, PathBuf) {
    let folder = TempFolder::new().with("m.gguf", file.bytes());
    let path = folder.path().join("m.gguf");
    (folder, path)
}

fn open(file: &Gguf) -> Result<Checkpoint, Error> {
    let (_folder, path) = written(file);
    Checkpoint::open(path)
}

/// The text of the error of a model that is not run, or whose key has a wrong value.
fn refused(file: &Gguf, parts: &[&str]) {
    let error = open(file).expect_err("a model that is not run");
    let text = error.to_string();
    let typed = matches!(error, Error::InvalidFile { .. } | Error::InvalidConfig { .. } | Error::Unsupported { .. });
    assert!(typed, "{error:?}");
    for part in ["m.gguf"].iter().chain(parts) {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_file_is_a_checkpoint_under_published_names() {
    let file = Gguf::model();
    let (_folder, path) = written(&file);
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    assert_eq!(checkpoint.path(), path);
    assert_eq!(checkpoint.gguf_metadata().and_then(|m| m.get_u32("qwen2.block_count")), Some(1));
    let config = checkpoint.config();
    assert_eq!((config.hidden_size, config.intermediate_size, config.num_hidden_layers), (64, 96, 1));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (2, 1, 32));
    assert_eq!((config.vocab_size, config.max_position_embeddings, config.max_context()), (8, 512, 512));
    assert_eq!((config.rms_norm_eps, config.rope_theta, config.rope_scaling), (1e-6, 1e6, RopeScaling::None));
    assert!(config.tie_word_embeddings);
    assert_eq!((config.bos_token_id, &config.eos_token_id[..]), (None, &[5][..]));
    assert_eq!(checkpoint.generation_config().eos_token_id, [3, 5], "and the end of a document");
    assert!(!checkpoint.generation_config().do_sample);

    assert_eq!(checkpoint.tensors().len(), file.tensors.len());
    assert_eq!(checkpoint.total_bytes(), file.tensors.iter().map(|tensor| tensor.data.len() as u64).sum::<u64>());
    let gate = checkpoint.tensor_of_shape("model.layers.0.mlp.gate_proj.weight", &[96, 64]).expect("a tensor");
    assert_eq!(gate.encoding, Encoding::Q8_0);
    let norm = checkpoint.tensor_of_shape("model.layers.0.post_attention_layernorm.weight", &[64]).expect("a tensor");
    assert_eq!(norm.encoding, Encoding::F32);
    let down = checkpoint.matrix("model.layers.0.mlp.down_proj.weight", 64, 96).expect("a matrix");
    assert_eq!((down.encoding, down.row_bytes), (Encoding::Q8_0, 102));
}

/// For some architectures llama.cpp reorders the rows of queries and keys so that rotary pairs are adjacent. Not for
/// this one: rows are as in the published checkpoints, with pairs half a head apart.
#[test]
fn rows_of_queries_and_keys_are_not_reordered() {
    let file = Gguf::model();
    let checkpoint = open(&file).expect("a checkpoint");
    for (gguf, published, rows) in [("attn_q", "q_proj", 64), ("attn_k", "k_proj", 32)] {
        let stored = |name: &str| &file.tensors.iter().find(|tensor| tensor.name == name).expect("a tensor").data;
        let name = format!("model.layers.0.self_attn.{published}");
        let matrix = checkpoint.matrix(&format!("{name}.weight"), rows, 64).expect("a matrix");
        assert_eq!(matrix.read(0..rows, &mut Vec::new()).expect("rows"), stored(&format!("blk.0.{gguf}.weight")));
        let bias = checkpoint.tensor(&format!("{name}.bias")).expect("a bias");
        assert_eq!(&bias.data, stored(&format!("blk.0.{gguf}.bias")));
    }
}

#[test]
fn an_output_matrix_is_the_head_whenever_it_is_there() {
    let tied = open(&Gguf::model()).expect("a checkpoint");
    assert!(tied.config().tie_word_embeddings && !tied.has("lm_head.weight"));
    let untied = open(&Gguf::model().tensor("output.weight", &[64, 8], Q8_0)).expect("a checkpoint");
    assert!(!untied.config().tie_word_embeddings && untied.has("lm_head.weight"));
    assert_eq!(untied.config().num_parameters(), tied.config().num_parameters() + 64 * 8);
}

#[test]
fn other_models_are_refused_by_name() {
    let model = Gguf::model;
    refused(
        &model().str("general.architecture", "llama"),
        &["architecture \"llama\"", "`general.architecture`", "qwen2"],
    );
    refused(&Gguf::new().str("general.architecture", "qwen2moe"), &["architecture \"qwen2moe\""]);
    refused(&model().without("general.architecture"), &["key `general.architecture`", "missing"]);
    refused(&model().str("general.type", "adapter"), &["type \"adapter\"", "whole model"]);
    refused(&model().bool("qwen2.attention.causal", false), &["later positions", "embeddings"]);
    refused(&model().u32("qwen2.pooling_type", 3), &["pools", "`qwen2.pooling_type`"]);
    assert!(open(&model().str("general.type", "model").u32("qwen2.pooling_type", 0)).is_ok());
    assert!(open(&model().u32("qwen2.attention.sliding_window", 16)).is_ok(), "has no effect in any reader");
    for (name, dims) in [
        ("rope_freqs.weight", &[16][..]),
        ("output.bias", &[8]),
        ("blk.0.attn_output.bias", &[64]),
        ("blk.0.attn_q_norm.weight", &[32]),
        ("blk.1.attn_norm.weight", &[64]),
        ("blk.00.attn_norm.weight", &[64]),
    ] {
        refused(&model().tensor(name, dims, F32), &[&format!("tensor `{name}`"), "Qwen2.5 of 1 layers"]);
    }
}

#[test]
fn types_that_are_not_read_are_refused_where_the_model_needs_them() {
    let down = "model.layers.0.mlp.down_proj.weight";
    for (kind, name) in
        [(9, "Q8_1"), (19, "IQ1_S"), (31, "Q4_0_4_4"), (34, "TQ1_0"), (39, "MXFP4"), (40, "NVFP4"), (77, "type 77")]
    {
        let file = Gguf::model().with_data("blk.0.ffn_down.weight", &[96, 64], kind, vec![0; 5000]);
        let checkpoint = open(&file).expect("a header says nothing wrong");
        let info = checkpoint.tensors().find(|info| info.name == down).expect("it is listed");
        assert_eq!((&info.dtype[..], info.alias.as_deref()), (name, Some("blk.0.ffn_down.weight")));
        for error in
            [checkpoint.encoding(down).expect_err("refused"), checkpoint.matrix(down, 64, 96).expect_err("refused")]
        {
            let text = error.to_string();
            for part in ["`blk.0.ffn_down.weight`", "m.gguf", name, "Q4_K", "IQ3_S"] {
                assert!(text.contains(part), "{part:?} is not in: {text}");
            }
        }
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named_as_in_the_file() {
    let checkpoint = open(&Gguf::model().without("blk.0.attn_q.bias")).expect("a checkpoint");
    match checkpoint.tensor("model.layers.0.self_attn.q_proj.bias") {
        Err(Error::MissingTensor { name, path, .. }) => {
            assert_eq!((&name[..], path), ("blk.0.attn_q.bias", checkpoint.path().into()))
        }
        other => panic!("{other:?}"),
    }
    match checkpoint.matrix("model.layers.0.self_attn.k_proj.weight", 64, 64) {
        Err(Error::InvalidTensor { name, expected, found, .. }) => {
            assert_eq!(name, "blk.0.attn_k.weight");
            assert!(expected.contains("[64, 64]") && found.contains("Q8_0 [32, 64]"), "{expected}; {found}");
        }
        other => panic!("{other:?}"),
    }
    let flat = open(&Gguf::model().tensor("token_embd.weight", &[512], Q8_0)).expect_err("no table");
    assert!(flat.to_string().contains("token_embd.weight"), "{flat}");
}

#[test]
fn keys_are_checked_one_by_one() {
    let model = Gguf::model;
    for key in [
        "qwen2.block_count",
        "qwen2.context_length",
        "qwen2.embedding_length",
        "qwen2.feed_forward_length",
        "qwen2.attention.head_count",
    ] {
        let named = format!("key `{key}`");
        refused(&model().without(key), &[&named, "is missing"]);
        refused(&model().u32(key, 0), &[&named, "found 0"]);
        refused(&model().u32(key, u32::MAX), &[&named, "found 4294967295"]);
        refused(&model().str(key, "24"), &[&named, "found \"24\""]);
        refused(&model().raw(key, 11, (-1_i64).to_le_bytes().into()), &[&named, "found -1"]);
    }
    let heads = array(4, 1, &2_u32.to_le_bytes());
    refused(&model().raw("qwen2.attention.head_count", 9, heads), &["a whole number", "a list of 1"]);
    refused(&model().u32("qwen2.attention.head_count_kv", 3), &["qwen2.attention.head_count_kv", "found 3"]);
    refused(
        &model().u32("qwen2.attention.head_count", 3).u32("qwen2.attention.head_count_kv", 2),
        &["does not divide"],
    );
    refused(&model().u32("qwen2.attention.head_count", 48), &["does not divide the width 64"]);
    refused(&model().u32("qwen2.attention.key_length", 33), &["odd"]);
    refused(&model().u32("qwen2.attention.value_length", 16), &["16 of the 32 dimensions"]);
    refused(&model().u32("qwen2.rope.dimension_count", 16), &["`qwen2.rope.dimension_count`", "whole heads"]);
    for eps in [0.0, -1.0, 2.0, f32::NAN] {
        refused(&model().f32("qwen2.attention.layer_norm_rms_epsilon", eps), &["layer_norm_rms_epsilon"]);
    }
    refused(&model().f32("qwen2.rope.freq_base", 1.0), &["qwen2.rope.freq_base", "above 1"]);
    refused(&model().f32("qwen2.rope.freq_base", f32::INFINITY), &["qwen2.rope.freq_base", "found inf"]);
    refused(&model().str("tokenizer.ggml.eos_token_id", "x"), &["tokenizer.ggml.eos_token_id"]);
    refused(&model().strs("tokenizer.ggml.tokens", &["x"; 9]), &["has 9 tokens", "only 8 rows"]);

    let wide = open(&model().u32("qwen2.attention.key_length", 64).u32("qwen2.rope.dimension_count", 64));
    assert_eq!(wide.expect("heads of their own width").config().head_dim, 64);
    let defaults = open(&model().without("qwen2.attention.head_count_kv").without("qwen2.rope.freq_base"));
    let config = defaults.expect("what llama.cpp takes").config().clone();
    assert_eq!((config.num_key_value_heads, config.rope_theta), (2, 10_000.0));
    let none = open(&model().raw("tokenizer.ggml.bos_token_id", 5, (-1_i32).to_le_bytes().into()));
    assert_eq!(none.expect("no id").config().bos_token_id, None);
    let vocabulary = open(&model().without("token_embd.weight")).expect("a header without a table");
    assert_eq!(vocabulary.config().vocab_size, 6);
}

#[test]
fn rope_scaling_is_yarn_or_none() {
    let scaling = |keys: &[(&str, f32)], kind: &str| {
        let file = Gguf::model().str("qwen2.rope.scaling.type", kind);
        keys.iter().fold(file, |file, (key, value)| file.f32(&format!("qwen2.rope.scaling.{key}"), *value))
    };
    let yarn = |file: &Gguf| match open(file).expect("a checkpoint").config().rope_scaling {
        RopeScaling::Yarn(yarn) => yarn,
        other => panic!("{other:?}"),
    };
    let original = "qwen2.rope.scaling.original_context_length";
    assert_eq!(yarn(&scaling(&[("factor", 4.0)], "yarn").u32(original, 128)), Yarn::new(4.0, 128));
    assert_eq!(yarn(&scaling(&[("factor", 2.0)], "yarn")), Yarn::new(2.0, 512), "of the context");
    let betas = yarn(&scaling(&[("factor", 4.0), ("yarn_beta_fast", 16.0), ("yarn_beta_slow", 2.0)], "yarn"));
    assert_eq!((betas.beta_fast, betas.beta_slow), (16.0, 2.0));
    // A factor on cos and sin in addition to the paper's.
    let scaled = yarn(&scaling(&[("factor", 4.0), ("attn_factor", 0.5)], "yarn"));
    assert_eq!(scaled.attention_factor(), 0.5 * Yarn::new(4.0, 512).attention_factor());
    assert_eq!(yarn(&scaling(&[("factor", 4.0), ("yarn_log_multiplier", 1.0)], "yarn")).attention_factor(), 1.0);

    for file in [scaling(&[("factor", 4.0)], "none"), scaling(&[], "linear"), scaling(&[("factor", 1.0)], "linear")] {
        assert_eq!(open(&file).expect("no scaling").config().rope_scaling, RopeScaling::None);
    }
    refused(&scaling(&[("factor", 4.0)], "linear"), &["rope scaling \"linear\"", "yarn"]);
    refused(&Gguf::model().f32("qwen2.rope.scale_linear", 4.0), &["rope scaling \"linear\""]);
    refused(&scaling(&[("factor", 4.0)], "longrope"), &["rope scaling \"longrope\""]);
    refused(&scaling(&[], "yarn"), &["`qwen2.rope.scaling.factor`", "missing"]);
    refused(&scaling(&[("factor", 0.5)], "yarn"), &["`qwen2.rope.scaling.factor`", "0.5"]);
    refused(&scaling(&[("factor", 1e6)], "yarn"), &["`qwen2.rope.scaling.original_context_length`"]);
    refused(&scaling(&[("factor", 4.0), ("yarn_beta_fast", 0.5)], "yarn"), &["yarn_beta_fast"]);
    refused(&scaling(&[("factor", 4.0), ("attn_factor", 0.0)], "yarn"), &["attn_factor"]);
    refused(&scaling(&[("factor", 4.0), ("yarn_ext_factor", 0.5)], "yarn"), &["yarn_ext_factor", "0.5"]);
}

#[test]
fn advice_on_sampling_is_read_where_a_file_has_it() {
    let key = |name: &str| format!("general.sampling.{name}");
    let file = Gguf::model()
        .f32(&key("temp"), 0.7)
        .f32(&key("top_p"), 0.8)
        .raw(&key("top_k"), 5, 20_i32.to_le_bytes().into())
        .f32(&key("penalty_repeat"), 1.05)
        .u32("tokenizer.ggml.eot_token_id", 4);
    let checkpoint = open(&file).expect("a checkpoint");
    let config = checkpoint.generation_config();
    assert_eq!((config.do_sample, config.temperature, config.top_p, config.top_k), (true, 0.7, 0.8, 20));
    assert_eq!((config.repetition_penalty, &config.eos_token_id[..]), (1.05, &[3, 4, 5][..]));
    let greedy = open(&Gguf::model().f32(&key("temp"), 0.0)).expect("a checkpoint");
    assert!(!greedy.generation_config().do_sample);
    for (name, value, field) in [("top_p", 2.0, "top_p"), ("penalty_repeat", 0.0, "repetition_penalty")] {
        let checkpoint = open(&Gguf::model().f32(&key(name), value)).expect("who sets it need not follow the file");
        let error = checkpoint.generation_config().check(field).expect_err("out of its bounds").to_string();
        assert!(error.contains(&format!("key `{}`", key(name))) && error.contains("found"), "{error}");
        assert_eq!(checkpoint.warnings().len(), 1);
    }
}

#[test]
fn end_tokens_are_control_tokens() {
    let types = array(5, 6, &[1, 1, 1, 1, 3, 1].map(i32::to_le_bytes).concat());
    let plain = open(&Gguf::model().raw("tokenizer.ggml.token_type", 9, types)).expect("a checkpoint");
    assert_eq!(plain.generation_config().eos_token_id, [5], "the text of a mark alone is no mark");
    let untyped = Gguf::model().raw("tokenizer.ggml.tokens", 8, string("no list"));
    assert_eq!(open(&untyped).expect("the table says how many").generation_config().eos_token_id, [5]);
}
