//! Tokens between the tokenizer and the engine: ids with gaps, and texts longer than the context.
#![cfg(feature = "cpu")]

mod common;

use std::path::Path;

use common::{Folder, SMALL, Shape, options, write_checkpoint};
use qwen::tokenizer::Error as TextError;
use qwen::{Engine, Error, FinishReason, GenerateOptions};
use serde_json::Value;

const ONE: [u8; 2] = 0x3f80_u16.to_le_bytes();

/// A model that always answers with the token `answer`. Its tokenizer has `<|im_end|>` at 500, after a gap of more than
/// a hundred ids.
fn engine_that_says(answer: usize, folder: &Path) -> Engine {
    let shape = Shape { vocab: 512, tied: false, ..SMALL };
    write_checkpoint(folder, shape, |name, bytes| {
        let ones = match name {
            "model.embed_tokens.weight" => 0..shape.vocab,
            "lm_head.weight" => answer..answer + 1,
            name if name.contains("norm") => return,
            _ => 0..0,
        };
        for (row, values) in bytes.chunks_mut(2 * shape.hidden).enumerate() {
            let value = if ones.contains(&row) { ONE } else { [0, 0] };
            values.chunks_mut(2).for_each(|bytes| bytes.copy_from_slice(&value));
        }
    });
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("qwen-tokenizer/tests/data");
    let mut json: Value = serde_json::from_slice(&std::fs::read(data.join("tokenizer.json")).unwrap()).unwrap();
    let tokens = json["added_tokens"].as_array_mut().unwrap();
    tokens.iter_mut().find(|token| token["content"] == "<|im_end|>").unwrap()["id"] = 500.into();
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::copy(data.join("tokenizer_config.json"), folder.join("tokenizer_config.json")).unwrap();
    options().context(512).load(folder).unwrap()
}

#[test]
fn the_token_after_a_gap_ends_an_answer() {
    let folder = Folder::new("gap-end");
    let engine = engine_that_says(500, &folder.0);
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(5));
    let mut reply = chat.send("Hello").unwrap();
    assert_eq!(reply.by_ref().collect::<Result<String, _>>().unwrap(), "");
    assert_eq!((reply.finish_reason(), reply.stats().new_tokens), (Some(FinishReason::Stop), 0));
}

#[test]
fn an_id_in_a_gap_is_no_text_and_no_error() {
    let folder = Folder::new("gap-inside");
    let engine = engine_that_says(450, &folder.0);
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(5));
    let mut reply = chat.send("Hello").unwrap();
    assert_eq!(reply.by_ref().collect::<Result<String, _>>().unwrap(), "");
    assert_eq!((reply.finish_reason(), reply.stats().new_tokens), (Some(FinishReason::Length), 5));
    // Rows beyond the highest id are padding, which is never chosen.
    let folder = Folder::new("gap-beyond");
    let ids = engine_that_says(505, &folder.0).generate_ids([1], &GenerateOptions::new().greedy().max_new_tokens(5));
    assert!(ids.unwrap().all(|id| id.unwrap() <= 500));
}

#[test]
fn a_text_beyond_the_context_is_refused_before_it_is_encoded() {
    let folder = Folder::new("long-text");
    let engine = engine_that_says(500, &folder.0);
    let text = "word ".repeat(12_000_000);
    let refused =
        |error: Error| assert!(matches!(error, Error::Text(TextError::TooManyTokens { limit: 511, .. })), "{error}");
    refused(engine.generate(&text, &GenerateOptions::new()).unwrap_err());
    let mut chat = engine.chat();
    refused(chat.send(text).unwrap_err());
    assert!(chat.messages().is_empty());
    // Just too long, and just short enough.
    refused(engine.generate(&"!".repeat(512), &GenerateOptions::new()).unwrap_err());
    assert_eq!(engine.tokenizer().unwrap().encode(&"!".repeat(511), true).unwrap().len(), 511);
    assert!(engine.generate(&"!".repeat(511), &GenerateOptions::new().greedy()).is_ok());
}
