//! A conversation as an application's object: forked, edited, answered again, saved and resumed, with its K/V, too.
//!
//! ```text
//! cargo run --release --example sessions -- --model path/to/Qwen2.5-7B-Instruct --file one.chat
//! ```
//!
//! Without a model it talks to this repository's demo model. If the file is there, its conversation goes on.

use std::path::{Path, PathBuf};

use clap::Parser;
use qwen::{Chat, ChatState, Device, Engine, ErrorKind, GenerateOptions, Message};

mod demo;
mod failure;

/// Fork, edit, save and resume a conversation.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Where the conversation is saved; nowhere when absent.
    #[arg(long)]
    file: Option<PathBuf>,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let model = args.model.map_or_else(demo::path, Ok)?;
    let engine = Engine::options().device(args.device).context_at_most(4096).batch(2).load(model)?;
    let mut chat = match &args.file {
        Some(file) if file.exists() => {
            let chat = restore(&engine, file)?;
            println!("going on after {} messages", chat.messages().len());
            chat
        }
        _ => engine.chat().options(GenerateOptions::new().max_new_tokens(200)),
    };
    ask(&mut chat, "Hello!")?;

    // Two ways to go on, side by side. Neither computes again what they have in common.
    let mut fork = chat.fork();
    let (sum, capital) = (chat.send("What is 3 + 4?")?, fork.send("What is the capital of Peru?")?);
    println!("one way:  {}\nanother:  {}", sum.text()?, capital.text()?);

    // The question was another one: change it, and take back the answer to what it was.
    let question = chat.messages().len() - 2;
    chat.edit(question, Message::user("What is 5 + 6?"))?;
    chat.truncate(question + 1)?;
    println!("edited:   {}", chat.reply()?.text()?);
    println!("again:    {}", chat.regenerate()?.text()?);

    // What a file holds goes on with the very same ids.
    let saved = serde_json::to_string(&chat.state())?;
    let mut resumed = engine.resume(serde_json::from_str(&saved)?)?;
    let mut reply = resumed.send("Hello!")?;
    let answer: String = reply.by_ref().collect::<qwen::Result<_>>()?;
    println!("resumed:  {answer}\n          [{}]", reply.stats());

    // With its K/V, nothing that was said is computed again, in another process either.
    if let Some(file) = args.file {
        println!("saved with the K/V of {} tokens", resumed.save(file)?);
    }
    Ok(())
}

/// Go on with a saved conversation: where its K/V is of no use here, with its messages.
fn restore(engine: &Engine, file: &Path) -> qwen::Result<Chat> {
    match engine.restore(file) {
        Err(error) if error.kind() == ErrorKind::InvalidSnapshot => {
            eprintln!("{error}");
            engine.resume(ChatState::load(file)?)
        }
        restored => restored,
    }
}

fn ask(chat: &mut Chat, question: &str) -> qwen::Result<()> {
    println!("> {question}\n{}", chat.send(question)?.text()?);
    Ok(())
}
