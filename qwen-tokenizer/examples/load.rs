//! How long a checkpoint's tokenizer takes to load, from its folder and from what a GGUF file has of it, to encode a
//! long text and to render a chat.
//!
//! `cargo run --release -p qwen-tokenizer --example load -- FOLDER`

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use qwen_tokenizer::{ChatInput, GgufVocabulary, Message, Tokenizer};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: load FOLDER, a folder with tokenizer.json");
        std::process::exit(2);
    };
    for run in 1..=3 {
        let start = Instant::now();
        let tokenizer = Tokenizer::from_dir(&folder)?;
        println!("load {run}: {:?}", start.elapsed());
        println!("from the lists of a GGUF file: {:?}", load_gguf(Path::new(&folder))?);

        let text = "It is a truth universally acknowledged, 天地玄黄 123 fn main() {}\n".repeat(20_000);
        let start = Instant::now();
        let ids = tokenizer.encode(&text, true)?;
        let rate = text.len() as f64 / 1e6 / start.elapsed().as_secs_f64();
        println!("encode: {} ids at {rate:.1} MB/s", ids.len());

        let mut stream = tokenizer.decode_stream(true);
        let start = Instant::now();
        let length: usize = ids.iter().filter_map(|&id| stream.push(id)).map(|s| s.len()).sum();
        println!("stream: {length} bytes, {:?} a token", start.elapsed() / ids.len() as u32);

        let messages = [Message::user("Hello!")];
        for _ in 0..2 {
            let start = Instant::now();
            let chat = tokenizer.encode_chat(&ChatInput::new(&messages))?;
            println!("chat: {} ids in {:?}", chat.ids.len(), start.elapsed());
        }
    }
    Ok(())
}

/// Makes the lists that a GGUF file has of tokenizer.json, and takes the time to load a tokenizer from them.
fn load_gguf(folder: &Path) -> Result<Duration, Box<dyn Error>> {
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json"))?)?;
    let vocab = json["model"]["vocab"].as_object().ok_or("no vocab")?;
    let mut tokens = vec![""; vocab.len()];
    for (token, id) in vocab {
        *id.as_u64().and_then(|id| tokens.get_mut(id as usize)).ok_or("ids with gaps")? = token;
    }
    let merges: Option<Vec<&str>> =
        json["model"]["merges"].as_array().ok_or("no merges")?.iter().map(Value::as_str).collect();
    let token_types = vec![1; tokens.len()];
    let merges = merges.ok_or("merges as pairs")?;
    let lists = GgufVocabulary { tokens: &tokens, token_types: &token_types, merges: &merges, ..Default::default() };
    let start = Instant::now();
    let tokenizer = Tokenizer::from_gguf_vocabulary(&GgufVocabulary { model: "gpt2", pre: Some("qwen2"), ..lists })?;
    let time = start.elapsed();
    drop(tokenizer);
    Ok(time)
}
