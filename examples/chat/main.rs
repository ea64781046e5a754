//! Chat with a model in the terminal, or ask it from a script.
//!
//! ```text
//! cargo run --release --example chat
//! cargo run --release --example chat -- --model path/to/Qwen2.5-7B-Instruct
//! cat notes.txt | cargo run --release --example chat -- --prompt "Summarise:"
//! ```
//!
//! Without `--model` it loads the small demo checkpoint of this repository, which knows little (see
//! `examples/demo-model/README.md`). Answers go to stdout, everything else to stderr. `--help` lists the options, the
//! commands, the keys and the exit codes.
//!
//! Here everything is put together. `args` are the options; `input` and `editor` read questions, `commands` knows the
//! commands; `session` asks the library and does what commands say, and `room` makes room in a full context; `reply`,
//! `answer`, `screen` and `progress` show what comes of it; `saved` keeps conversations in files, and `interrupt` is Ctrl-C.

mod answer;
mod args;
mod commands;
#[path = "../demo/mod.rs"]
mod demo;
mod editor;
#[path = "../failure/mod.rs"]
mod failure;
mod input;
mod interrupt;
mod progress;
mod reply;
mod room;
mod saved;
mod screen;
mod session;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Args, exit};
use clap::Parser;
use failure::Failure;
use input::Input;
use interrupt::Interrupt;
use screen::Screen;
use session::{Ended, Session};

fn main() -> Result<ExitCode, Failure> {
    run(std::env::args_os()).map(ExitCode::from)
}

/// The whole program: from its arguments to its exit code.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<u8, Failure> {
    let args = Args::parse_from(arguments);
    let screen = Screen::new(args.color, args.quiet);
    let interrupt = Interrupt::install(screen)?;
    // All that may be wrong with the arguments, before a model is loaded for minutes.
    let prompt = args.prompt.as_deref().map(input::with_stdin).transpose()?;
    let messages = args.load.as_deref().map(saved::load).transpose()?;
    let tools = args.tools.as_deref().map(saved::load_tools).transpose()?.unwrap_or_default();
    let mut input = match prompt {
        Some(_) => None,
        None => Some(Input::open(args.history.as_deref(), screen)?),
    };
    let model = match &args.model {
        Some(model) => model.clone(),
        None => demo::path()?,
    };
    let engine = progress::load(&args.engine_options(), &model, screen)?;
    for warning in engine.warnings() {
        screen.say(format_args!("warning: {warning}"));
    }
    let mut session = Session::new(engine, &args, tools, screen, interrupt);
    if let Some(messages) = messages {
        session.set_messages(messages)?;
    }
    if let Some(text) = &args.system {
        session.set_system(text)?;
    }
    match (prompt, &mut input) {
        (Some(prompt), _) => {
            let ended = session.ask(&prompt, &mut |_| Ok(args.drop_oldest))?;
            Ok(code(ended, screen).unwrap_or(exit::SUCCESS))
        }
        (None, Some(input)) => {
            session.greet(&model, args.model.is_none());
            converse(&mut session, input, args.drop_oldest)
        }
        (None, None) => Ok(exit::SUCCESS),
    }
}

/// Answer questions and do what commands say, until the input ends. At a terminal an error ends nothing: the next question
/// may be a better one. In a pipe nobody would see it, and the first one is the last.
fn converse(session: &mut Session, input: &mut Input, drop_oldest: bool) -> Result<u8, Failure> {
    while let Some(entry) = input.next()? {
        if entry.trim().is_empty() {
            continue;
        }
        let mut may_drop = |question: &str| if drop_oldest { Ok(true) } else { input.confirm(question) };
        let ended = match commands::parse(&entry) {
            Ok(None) => session.ask(&entry, &mut may_drop),
            Ok(Some(command)) => session.run(command, &mut may_drop),
            Err(unknown) => Err(unknown.into()),
        };
        match ended {
            Ok(Ended::Exit | Ended::ReaderGone) => return Ok(exit::SUCCESS),
            Ok(Ended::NotDropped) if input.is_terminal() => {
                session.screen().note("Nothing was dropped. /undo takes back the last turn, /clear begins anew.");
            }
            Ok(ended) if input.is_terminal() => input.after_interrupt(ended == Ended::Interrupted),
            Ok(ended) => {
                if let Some(code) = code(ended, session.screen()) {
                    return Ok(code);
                }
            }
            Err(failure) if input.is_terminal() => session.screen().error(format_args!("{failure:?}")),
            Err(failure) => return Err(failure),
        }
    }
    Ok(exit::SUCCESS)
}

/// The code to exit with where nobody can be asked, if what happened ends the program.
fn code(ended: Ended, screen: Screen) -> Option<u8> {
    match ended {
        Ended::Done => None,
        Ended::Exit | Ended::ReaderGone => Some(exit::SUCCESS),
        Ended::Interrupted => Some(exit::INTERRUPTED),
        Ended::ContextFull => Some(exit::CONTEXT_FULL),
        Ended::NotDropped => {
            screen.error(
                "the conversation no longer fits the context: --drop-oldest drops its oldest turns, and --context has room \
                 for more where the model and the memory do",
            );
            Some(exit::CONTEXT_FULL)
        }
    }
}
