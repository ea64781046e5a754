//! How long a checkpoint's tokenizer takes to load, to encode a long text and to render a chat.
//!
//! `cargo run --release -p qwen-tokenizer --example load -- FOLDER`

use std::time::Instant;

use qwen_tokenizer::{ChatInput, Message, Result, Tokenizer};

fn main() -> Result<()> {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: load FOLDER, a folder with tokenizer.json");
        std::process::exit(2);
    };
    for run in 1..=3 {
        let start = Instant::now();
        let tokenizer = Tokenizer::from_dir(&folder)?;
        println!("load {run}: {:?}", start.elapsed());

        let text =
            "It is a truth universally acknowledged, 天地玄黄 123 fn main() {}\n".repeat(20_000);
        let start = Instant::now();
        let ids = tokenizer.encode(&text, true)?;
        let rate = text.len() as f64 / 1e6 / start.elapsed().as_secs_f64();
        println!("encode: {} ids at {rate:.1} MB/s", ids.len());

        let mut stream = tokenizer.decode_stream(true);
        let start = Instant::now();
        let length: usize = ids
            .iter()
            .filter_map(|&id| stream.push(id))
            .map(|s| s.len())
            .sum();
        println!(
            "stream: {length} bytes, {:?} a token",
            start.elapsed() / ids.len() as u32
        );

        let messages = [Message::user("Hello!")];
        for _ in 0..2 {
            let start = Instant::now();
            let chat = tokenizer.encode_chat(&ChatInput::new(&messages))?;
            println!("chat: {} ids in {:?}", chat.ids.len(), start.elapsed());
        }
    }
    Ok(())
}
