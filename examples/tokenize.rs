//! Texts and conversations to token ids.
//!
//! ```text
//! cargo run --release --example tokenize -- --model PATH --json IN --out OUT
//! ```
//!
//! IN is a list of `{"text": "...", "parse_special": true}` or `{"messages": [...], "tools": [...],
//! "add_generation_prompt": true, "trust_contents": false}`; the values shown are the defaults. OUT is the same list with
//! `ids`, and `text` for conversations. If `parse_special` is true, a text is encoded as a prompt, with what the
//! tokenizer adds to one, such as a BOS. PATH is a folder that needs only the tokenizer's files, or a GGUF file.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::Parser;
use qwen::{ChatInput, Message, Tokenizer, Tool};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

mod failure;

/// Texts and conversations to token ids.
#[derive(Parser)]
struct Args {
    /// The folder with tokenizer.json, and tokenizer_config.json or chat_template.jinja for conversations; or a GGUF file,
    /// or a folder that holds one.
    #[arg(long)]
    model: PathBuf,
    /// The list to encode.
    #[arg(long)]
    json: PathBuf,
    /// Where to write the list with ids.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let tokenizer = qwen::load_tokenizer(&args.model)?;
    let json = fs::read(&args.json)?;
    let mut items: Vec<Value> = serde_json::from_slice(&json)?;
    // Messages are kept as text, since `Value` rounds integers of more than 64 bits.
    let texts: Vec<Texts> = serde_json::from_slice(&json)?;
    for (index, (item, texts)) in items.iter_mut().zip(&texts).enumerate() {
        encode(&tokenizer, item, texts).map_err(|error| format!("{}: item {index}: {error}", args.json.display()))?;
    }
    fs::write(&args.out, serde_json::to_vec(&items)?)?;
    Ok(())
}

/// The parts of an item that are conversations.
#[derive(Deserialize)]
struct Texts {
    messages: Option<Box<RawValue>>,
    tools: Option<Box<RawValue>>,
}

fn encode(tokenizer: &Tokenizer, item: &mut Value, texts: &Texts) -> Result<(), Box<dyn Error>> {
    let flag = |key: &str, default: bool| item.get(key).and_then(Value::as_bool).unwrap_or(default);
    if let Some(text) = item.get("text").and_then(Value::as_str).filter(|_| item.get("messages").is_none()) {
        item["ids"] = json!(match flag("parse_special", true) {
            true => tokenizer.encode_prompt(text, usize::MAX)?,
            false => tokenizer.encode(text, false)?,
        });
        return Ok(());
    }
    let messages: Vec<Message> = serde_json::from_str(texts.messages.as_ref().ok_or("no text, no messages")?.get())?;
    let tools: Option<Vec<Tool>> = serde_json::from_str(texts.tools.as_ref().map_or("null", |tools| tools.get()))?;
    let tools = tools.unwrap_or_default();
    let input = ChatInput::new(&messages)
        .tools(&tools)
        .add_generation_prompt(flag("add_generation_prompt", true))
        .trust_contents(flag("trust_contents", false));
    let encoded = tokenizer.encode_chat(&input)?;
    item["text"] = json!(encoded.text);
    item["ids"] = json!(encoded.ids);
    Ok(())
}
