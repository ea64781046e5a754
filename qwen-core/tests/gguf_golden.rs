//! The GGUF files of the golden suite, written by an independent program, as checkpoints.

mod common;

use std::fs;

use qwen_core::checkpoint::gguf;
use qwen_core::{Checkpoint, RopeScaling};
use serde_json::Value;

#[test]
fn every_golden_file_opens_with_the_shape_that_the_manifest_states() {
    let Some(golden) = common::golden() else { return };
    let manifest = fs::read(golden.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let cases = manifest["cases"].as_array().expect("cases");
    let mut opened = 0;
    for case in cases.iter().filter(|case| case["format"].as_str().is_some_and(|format| format.starts_with("gguf"))) {
        let (name, weights) = (case["name"].as_str().expect("a name"), case["weights"].as_str().expect("a folder"));
        let shape = |key: &str| case["shape"][key].as_u64().expect("a size") as usize;
        let checkpoint = Checkpoint::open(golden.join(weights)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = checkpoint.config();
        assert_eq!(config.hidden_size, shape("hidden"), "{name}");
        assert_eq!(config.intermediate_size, shape("inter"), "{name}");
        assert_eq!(config.num_hidden_layers, shape("layers"), "{name}");
        assert_eq!(config.num_attention_heads, shape("heads"), "{name}");
        assert_eq!(config.num_key_value_heads, shape("kv_heads"), "{name}");
        assert_eq!(config.head_dim, shape("head_dim"), "{name}");
        assert_eq!(config.vocab_size, shape("vocab"), "{name}");
        assert_eq!(config.max_position_embeddings, shape("max_pos"), "{name}");
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 1e6), "{name}");
        // Tied models may still have an output matrix.
        let has_head = case["shape"]["tied"] == Value::Bool(false) || name.contains("with-output");
        assert_eq!(config.tie_word_embeddings, !has_head, "{name}");
        match (config.rope_scaling, case["shape"]["yarn_factor"].as_f64()) {
            (RopeScaling::None, None) => {}
            (RopeScaling::Yarn(yarn), Some(factor)) => {
                assert_eq!((yarn.factor, yarn.original_max_position_embeddings), (factor, shape("yarn_original")));
            }
            (found, _) => panic!("{name}: {found:?}"),
        }
        assert_eq!((config.bos_token_id, &config.eos_token_id[..]), (Some(320), &[322][..]), "{name}");
        assert_eq!(checkpoint.generation_config().eos_token_id, [320, 322], "{name}");
        check_tensors(name, &checkpoint);
        opened += 1;
    }
    assert!(opened >= 20, "{opened} opened");
}

/// Exactly the tensors of the model are there, in their shapes, with values of plausible size.
fn check_tensors(name: &str, checkpoint: &Checkpoint) {
    let config = checkpoint.config();
    let expected = common::tensors_of(config);
    assert_eq!(checkpoint.tensors().len(), expected.len(), "{name}");
    let mut encodings = Vec::new();
    for (tensor, shape) in &expected {
        let values = checkpoint.tensor_of_shape(tensor, shape).unwrap_or_else(|error| panic!("{name}: {error}"));
        encodings.push(values.encoding.to_string());
        let values = values.to_f32();
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}: {tensor}");
        let largest = values.iter().map(|value| value.abs()).fold(0.0, f32::max);
        assert!(largest.is_finite() && largest > 0.0 && largest < 1e4, "{name}: {tensor} has {largest}");
    }
    encodings.sort();
    encodings.dedup();
    eprintln!("{name:<28} {}", encodings.join(", "));
}

#[test]
fn a_vocabulary_of_150_000_tokens_is_metadata() {
    let Some(golden) = common::golden() else { return };
    let start = std::time::Instant::now();
    let metadata = gguf::metadata(golden.join("qwen2-vocab-gguf")).expect("a header").expect("a GGUF file");
    eprintln!("read in {:.1?}", start.elapsed());
    let tokens = metadata.strings("tokenizer.ggml.tokens").expect("tokens");
    assert_eq!(tokens.len(), 151_936);
    assert_eq!(metadata.i32s("tokenizer.ggml.token_type").map(<[i32]>::len), Some(tokens.len()));
    assert_eq!(metadata.strings("tokenizer.ggml.merges").map(gguf::Strings::len), Some(151_387));
    assert_eq!(tokens.get(151_643), Some("<|endoftext|>"));
    assert_eq!(metadata.get_str("tokenizer.ggml.pre"), Some("qwen2"));
    assert!(metadata.get_str("tokenizer.chat_template").is_some_and(|template| template.contains("<|im_start|>")));
}
