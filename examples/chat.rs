//! Chat with a model in the terminal.
//!
//! ```text
//! cargo run --release --example chat
//! cargo run --release --example chat -- --model path/to/Qwen2.5-7B-Instruct --prompt "Why is the sky blue?"
//! cargo run --release --features wgpu --example chat -- --device wgpu
//! ```
//!
//! Without `--model` it loads the small demo checkpoint of this repository, which knows little (see
//! `examples/demo-model/README.md`). The answer goes to stdout, everything else to stderr. Questions are lines: of a
//! terminal, where they can be edited and earlier ones are recalled by the arrow keys, or of a pipe. Ctrl-C stops the
//! answer; at the prompt it ends the program, as does the end of the input.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use qwen::{Canceller, Chat, Device, Encoding, EngineOptions, GenerateOptions, Precision, Reply};
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

/// Chat with a Qwen2.5 model.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file; the demo checkpoint when absent.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))]
    model: PathBuf,
    /// Answer this on stdout and end.
    #[arg(long)]
    prompt: Option<String>,
    /// The system message; the template's own when absent.
    #[arg(long)]
    system: Option<String>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Compute with f32 activations and K/V.
    #[arg(long)]
    exact: bool,
    /// How K/V is stored: f32, f16 or q8_0; as the precision has it when absent.
    #[arg(long)]
    kv: Option<Encoding>,
    /// Threads; one for each physical core when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Positions of the conversation.
    #[arg(long)]
    context: Option<usize>,
    /// Stretch the context by this factor (YaRN).
    #[arg(long)]
    yarn: Option<f64>,
    /// Tokens of an answer at most.
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// 0 takes the most likely token.
    #[arg(long)]
    temperature: Option<f32>,
    /// Keep this many of the most likely tokens.
    #[arg(long)]
    top_k: Option<usize>,
    /// Keep the most likely tokens up to this probability.
    #[arg(long)]
    top_p: Option<f32>,
    /// Make tokens that were used less likely.
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Args {
    fn engine_options(&self) -> EngineOptions {
        let mut options = EngineOptions::new().device(self.device.clone());
        if self.exact {
            options = options.precision(Precision::Exact);
        }
        if let Some(encoding) = self.kv {
            options = options.kv_encoding(encoding);
        }
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        if let Some(context) = self.context {
            options = options.context(context);
        }
        if let Some(factor) = self.yarn {
            options = options.yarn(factor);
        }
        options
    }

    fn generate_options(&self) -> GenerateOptions {
        let mut options = GenerateOptions::new().seed(self.seed);
        options.max_new_tokens = self.max_new_tokens;
        options.temperature = self.temperature;
        options.top_k = self.top_k;
        options.top_p = self.top_p;
        options.repetition_penalty = self.repetition_penalty;
        options
    }
}

/// The answer that Ctrl-C stops.
type Current = Arc<Mutex<Option<Canceller>>>;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    // Drawn on stderr, and only if that is a terminal.
    let bar = ProgressBar::new(100).with_style(ProgressStyle::with_template("loading [{bar:30}] {percent:3}%")?);
    let drawn = bar.clone();
    let options = args.engine_options().progress(move |progress| {
        drawn.set_position((progress.share().unwrap_or_default() * 100.0) as u64);
    });
    let engine = options.load(&args.model);
    bar.finish_and_clear();
    let engine = engine?;
    let mut chat = engine.chat().options(args.generate_options());
    if let Some(system) = &args.system {
        chat = chat.system(system);
    }
    let current: Current = Arc::default();
    let stopped = current.clone();
    ctrlc::set_handler(move || match stopped.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(canceller) => canceller.cancel(),
        None => std::process::exit(130),
    })?;
    if let Some(prompt) = &args.prompt {
        return print(chat.send(prompt)?, &current);
    }
    let (device, reason) = (engine.device_name(), engine.selection_reason());
    eprintln!("{} on {device} ({reason}), context {}", args.model.display(), engine.context());
    converse(&mut chat, &current)
}

/// Where questions are read from.
enum Questions {
    Terminal(Box<DefaultEditor>),
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Questions {
    fn open() -> rustyline::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Questions::Pipe(io::stdin().lines()));
        }
        // The prompt is drawn on the terminal itself, so that stdout holds nothing but answers.
        let config = Config::builder().behavior(Behavior::PreferTerm).build();
        Ok(Questions::Terminal(Box::new(DefaultEditor::with_config(config)?)))
    }

    /// The next line; `None` at the end of the input and after Ctrl-C.
    fn next(&mut self) -> Result<Option<String>, Box<dyn Error>> {
        match self {
            Questions::Pipe(lines) => Ok(lines.next().transpose()?),
            Questions::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    editor.add_history_entry(&line)?;
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// Answer questions until the input ends.
fn converse(chat: &mut Chat, current: &Current) -> Result<(), Box<dyn Error>> {
    let mut questions = Questions::open()?;
    while let Some(question) = questions.next()? {
        if question.trim().is_empty() {
            continue;
        }
        match chat.send(question) {
            Ok(reply) => print(reply, current)?,
            // For example a question that is too long for the context: a shorter one may follow.
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}

fn print(mut reply: Reply, current: &Current) -> Result<(), Box<dyn Error>> {
    *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply.canceller());
    let mut out = io::stdout().lock();
    let mut written = Ok(());
    for piece in &mut reply {
        written = write!(out, "{}", piece?).and_then(|()| out.flush());
        if written.is_err() {
            break;
        }
    }
    match written.and_then(|()| writeln!(out)) {
        // The reader, `head` for example, has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        result => result?,
    }
    *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let stats = reply.stats();
    if let (Some(first), Some(speed)) = (stats.first_token, stats.tokens_per_second()) {
        let prompt = stats.prompt_tokens as f64 / first.as_secs_f64();
        let (tokens, new) = (stats.prompt_tokens, stats.new_tokens);
        eprintln!("[{tokens} tokens of prompt, {prompt:.0} tokens/s; {new} of answer, {speed:.1} tokens/s]");
    }
    Ok(())
}
