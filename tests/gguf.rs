//! GGUF files through the facade: a file converted on the fly from the demo checkpoint is the same model, with the same
//! tokenizer and template.
#![cfg(feature = "cpu")]

mod common;

use std::path::PathBuf;

use common::gguf::{Gguf, array};
use common::{Folder, demo, demo_engine, options};
use qwen::core::Checkpoint;
use qwen::core::Error as ModelError;
use qwen::core::backend::reference::Reference;
use qwen::{Encoding, EngineOptions, Error, GenerateOptions};
use serde_json::Value;

const BF16: u32 = 30;

/// The demo checkpoint in one file.
fn demo_gguf() -> Gguf {
    let checkpoint = Checkpoint::open(demo()).unwrap();
    let config = checkpoint.config();
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(demo().join(name)).unwrap()).unwrap() };
    let (tokenizer, tokenizer_config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, &str, i32)> =
        vocabulary.iter().map(|(token, id)| (id.as_u64().unwrap(), &token[..], 1)).collect();
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let kind = if added["special"] == true { 3 } else { 4 };
        tokens.push((added["id"].as_u64().unwrap(), added["content"].as_str().unwrap(), kind));
    }
    tokens.sort_unstable();
    let types: Vec<u8> = tokens.iter().flat_map(|(_, _, kind)| kind.to_le_bytes()).collect();
    let texts: Vec<&str> = tokens.iter().map(|(_, token, _)| *token).collect();
    let merges: Vec<&str> =
        tokenizer["model"]["merges"].as_array().unwrap().iter().map(|merge| merge.as_str().unwrap()).collect();
    let file = Gguf::new()
        .str("general.architecture", "qwen2")
        .u32("qwen2.block_count", config.num_hidden_layers as u32)
        .u32("qwen2.context_length", config.max_position_embeddings as u32)
        .u32("qwen2.embedding_length", config.hidden_size as u32)
        .u32("qwen2.feed_forward_length", config.intermediate_size as u32)
        .u32("qwen2.attention.head_count", config.num_attention_heads as u32)
        .u32("qwen2.attention.head_count_kv", config.num_key_value_heads as u32)
        .f32("qwen2.rope.freq_base", config.rope_theta as f32)
        .f32("qwen2.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "qwen2")
        .strs("tokenizer.ggml.tokens", &texts)
        .raw("tokenizer.ggml.token_type", 9, array(5, texts.len() as u64, &types))
        .strs("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.bos_token_id", 1520)
        .u32("tokenizer.ggml.eos_token_id", 1522)
        .u32("tokenizer.ggml.padding_token_id", 1520)
        .bool("tokenizer.ggml.add_bos_token", false)
        .str("tokenizer.chat_template", tokenizer_config["chat_template"].as_str().unwrap());
    checkpoint.tensors().fold(file, |file, info| {
        let dims: Vec<u64> = info.shape.iter().rev().map(|dim| *dim as u64).collect();
        file.with_data(&gguf_name(&info.name), &dims, BF16, checkpoint.tensor(&info.name).unwrap().data)
    })
}

fn gguf_name(published: &str) -> String {
    let pairs = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    pairs.iter().fold(published.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn written(name: &str, file: &Gguf) -> (Folder, PathBuf) {
    let folder = Folder::new(name);
    let path = folder.0.join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    (folder, path)
}

/// The text of the error of a model that does not load.
fn refused(path: &std::path::Path) -> String {
    match options().load(path) {
        Err(Error::Model(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_converted_model_gives_the_same_bits_and_the_same_chats() {
    let (folder, path) = written("gguf-demo", &demo_gguf());
    // It may belong to another model.
    std::fs::write(folder.0.join("tokenizer.json"), "{}").unwrap();
    let ours = demo_engine();
    for path in [&path, &folder.0] {
        let engine = options().batch(4).load(path).unwrap();
        assert_eq!(engine.weight_encoding(), Encoding::Bf16);
        assert_eq!(engine.stop_token_ids(), ours.stop_token_ids());
        assert_eq!(engine.plan().weight_bytes, ours.plan().weight_bytes);
        let text = "The sky is blue, isn't it? 1234 \u{e9} <|im_end|><tool_call>";
        let ids = ours.tokenizer().unwrap().encode(text, true).unwrap();
        assert_eq!(engine.tokenizer().unwrap().encode(text, true).unwrap(), ids);
        let logits = |engine: &qwen::Engine| engine.logits(&ids[..]).unwrap();
        assert!(logits(&engine).iter().zip(&logits(&ours)).all(|(one, other)| one.to_bits() == other.to_bits()));
        let greedy = GenerateOptions::new().greedy().max_new_tokens(40);
        for question in ["Hello!", "What is 3 + 4?"] {
            let answer = |engine: &qwen::Engine| {
                engine.chat().system("Be brief.").options(greedy.clone()).send(question).unwrap().text().unwrap()
            };
            assert_eq!(answer(&engine), answer(&ours));
        }
    }
    let tokenizer = qwen::load_tokenizer(&path).unwrap();
    assert_eq!(tokenizer.encode("Hello!", false), ours.tokenizer().unwrap().encode("Hello!", false));
    let plan = qwen::plan(&path, &options().batch(4)).unwrap();
    assert_eq!(plan.weight_bytes, ours.plan().weight_bytes);
}

#[test]
fn a_file_may_ask_for_a_token_before_every_text() {
    let (_folder, path) = written("gguf-bos", &demo_gguf().bool("tokenizer.ggml.add_bos_token", true));
    let engine = options().load(&path).unwrap();
    let options = GenerateOptions::new().greedy().max_new_tokens(5);
    let mut ids = vec![1520];
    ids.extend(engine.tokenizer().unwrap().encode("Hello", true).unwrap());
    let expected = engine.generate_ids(ids, &options).unwrap().collect::<qwen::Result<Vec<u32>>>().unwrap();
    let text = engine.generate("Hello", &options).unwrap().text().unwrap();
    assert_eq!(text, engine.tokenizer().unwrap().decode(&expected, true));
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let (_folder, path) = written("gguf-no-vocabulary", &demo_gguf().without("tokenizer.ggml.tokens"));
    let engine = options().load(&path).unwrap();
    let error = engine.tokenizer().unwrap_err().to_string();
    assert!(error.contains("model.gguf") && error.contains("tokenizer.ggml.tokens"), "{error}");
    let error = qwen::load_tokenizer(&path).unwrap_err().to_string();
    assert!(error.contains("model.gguf") && error.contains("tokenizer.ggml.tokens"), "{error}");
    assert_eq!(engine.generate_ids([1, 2, 3], &GenerateOptions::new().max_new_tokens(2)).unwrap().count(), 2);

    let (folder, path) = written("gguf-pre", &demo_gguf().str("tokenizer.ggml.pre", "llama-bpe"));
    match options().load(&path) {
        Err(Error::Text(error)) => {
            let text = error.to_string();
            assert!(text.contains("llama-bpe") && text.contains("model.gguf"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    std::fs::write(folder.0.join("other.gguf"), "GGUF").unwrap();
    let several = refused(&folder.0);
    assert!(several.contains("2 GGUF models") && several.contains("model.gguf, other.gguf"), "{several}");
    let (_folder, path) =
        written("gguf-type", &demo_gguf().with_data("blk.3.ffn_up.weight", &[256, 512], 39, vec![0; 1 << 17]));
    let mxfp4 = refused(&path);
    assert!(mxfp4.contains("`blk.3.ffn_up.weight`") && mxfp4.contains("MXFP4"), "{mxfp4}");
}

/// Files of the golden suite, on the backend that computes with every format.
#[test]
fn mixed_formats_are_named_after_most_of_their_values() {
    let Some(golden) = common::golden() else { return };
    let reference =
        |folder: &str| EngineOptions::new().context(128).load_with_backend(Reference::new(), golden.join(folder));
    for (folder, encoding) in [
        ("gguf-q4_k_m", Encoding::Q4K),
        ("gguf-q5_0", Encoding::Q5_0),
        ("gguf-split-q4_0", Encoding::Q4_0),
        ("gguf-q3_k_m", Encoding::Q3K),
    ] {
        let engine = reference(folder).unwrap();
        assert_eq!(engine.weight_encoding(), encoding, "{folder}");
        assert_eq!(engine.stop_token_ids(), [320, 322], "{folder}");
        let text = engine.generate("Hello", &GenerateOptions::new().greedy().max_new_tokens(3)).unwrap().text();
        assert!(text.is_ok(), "{text:?}");
    }
    let tokenizer = qwen::load_tokenizer(golden.join("qwen2-vocab-gguf")).unwrap();
    assert_eq!(tokenizer.encode("<|endoftext|>", true).unwrap(), [151_643]);
    match qwen::load_tokenizer(golden.join("dense-bf16").join("model.safetensors")) {
        Err(_) => {}
        Ok(tokenizer) => panic!("{tokenizer:?}"),
    }
    match reference("qwen2-vocab-gguf") {
        Err(Error::Model(ModelError::MissingTensor { name, .. })) => assert_eq!(name, "token_embd.weight"),
        other => panic!("{other:?}"),
    }
}
