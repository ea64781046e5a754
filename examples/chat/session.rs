//! A conversation with a model: what asks the library, prints its answers, and does what commands say.

use std::io;
use std::path::Path;

use qwen::{Chat, Engine, FinishReason, GenerateOptions, Message, Reply, Role, Stats, Tool};

use super::args::Args;
use super::commands::{self, Command};
use super::failure::Failure;
use super::interrupt::Interrupt;
use super::progress;
use super::reply::{self, Stop, speed};
use super::room::{self, is_full};
use super::saved;
use super::screen::Screen;

/// How a question or a command ended, when not by an error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ended {
    Done,
    /// Ctrl-C stopped the answer.
    Interrupted,
    /// The question alone is too long.
    ContextFull,
    /// The conversation is too long, and its oldest turns stay.
    NotDropped,
    /// Whoever read the answers, `head` for example, has had enough of them.
    ReaderGone,
    /// The user wants to leave.
    Exit,
}

/// Asks whether the oldest turns may go.
pub(crate) type MayDrop<'a> = &'a mut dyn FnMut(&str) -> Result<bool, Failure>;

pub(crate) struct Session {
    engine: Engine,
    chat: Chat,
    tools: Vec<Tool>,
    options: GenerateOptions,
    json: bool,
    screen: Screen,
    interrupt: Interrupt,
    /// Of the last answer.
    last: Option<Stats>,
    answers: usize,
    tokens: usize,
}

impl Session {
    pub(crate) fn new(engine: Engine, args: &Args, tools: Vec<Tool>, screen: Screen, interrupt: Interrupt) -> Self {
        let chat = engine.chat().tools(tools.clone());
        let (options, json) = (args.generate_options(), args.json);
        Session { engine, chat, tools, options, json, screen, interrupt, last: None, answers: 0, tokens: 0 }
    }

    pub(crate) fn screen(&self) -> Screen {
        self.screen
    }

    /// Say what this is.
    pub(crate) fn greet(&self, model: &Path, is_demo: bool) {
        let name = if is_demo { "the demo model".into() } else { model.display().to_string() };
        let (device, context) = (self.engine.device_name(), self.engine.context());
        self.screen.note(format_args!("{name} on {device}, context {context}. /help lists commands, Ctrl-D ends."));
        if is_demo {
            self.screen.note(
                "It is a toy: it adds, knows a few facts, and remembers what it is told. Try:\n\
                 My name is Anna. | What is 47 + 38? | What is the capital of Peru? | What is my name?\n\
                 For a real model: --model PATH (README.md says where to get one)",
            );
        }
    }

    /// Ask a question, and print the answer.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) fn ask(&mut self, question: &str, may_drop: MayDrop<'_>) -> Result<Ended, Failure> {
        self.answer(Some(question), &self.options.clone(), may_drop)
    }

    /// Do what a command says.
    ///
    /// # Errors
    /// Those of the engine and of files.
    pub(crate) fn run(&mut self, command: Command, may_drop: MayDrop<'_>) -> Result<Ended, Failure> {
        match command {
            Command::Help => self.screen.say(commands::list()),
            Command::Clear => {
                self.chat.clear();
                self.screen.note("A new conversation begins.");
            }
            Command::System(Some(text)) => self.set_system(&text)?,
            Command::System(None) => {
                let messages = self.chat.messages();
                let system = messages.iter().find(|message| message.role == Role::System);
                self.screen.say(system.and_then(Message::text).unwrap_or("The template's own system message.".into()));
            }
            Command::Undo => self.undo()?,
            Command::Retry => return self.retry(may_drop),
            Command::Save(path) => {
                saved::save(&path, &self.chat.messages())?;
                self.screen.note(format_args!("{} messages are in {}", self.chat.messages().len(), path.display()));
            }
            Command::Load(path) => {
                self.set_messages(saved::load(&path)?)?;
                self.screen.note(format_args!("{} messages of {}", self.chat.messages().len(), path.display()));
            }
            Command::Stats => self.screen.say(self.stats()),
            Command::Exit => return Ok(Ended::Exit),
        }
        Ok(Ended::Done)
    }

    /// Go on with these messages, if the model's template takes them.
    pub(crate) fn set_messages(&mut self, messages: Vec<Message>) -> Result<(), Failure> {
        match room::tokens(&self.engine, &messages, &self.tools) {
            // How to make room is asked when there is a question.
            Err(error) if !is_full(&error) => return Err(error.into()),
            _ => self.chat.set_messages(messages)?,
        }
        Ok(())
    }

    pub(crate) fn set_system(&mut self, text: &str) -> Result<(), Failure> {
        let mut messages = self.chat.messages();
        messages.retain(|message| message.role != Role::System);
        messages.insert(0, Message::system(text));
        Ok(self.chat.set_messages(messages)?)
    }

    fn undo(&mut self) -> Result<(), Failure> {
        let mut messages = self.chat.messages();
        let last = last_question(&messages)?;
        messages.truncate(last);
        Ok(self.chat.set_messages(messages)?)
    }

    fn retry(&mut self, may_drop: MayDrop<'_>) -> Result<Ended, Failure> {
        let before = self.chat.messages();
        let last = last_question(&before)?;
        self.chat.set_messages(before[..=last].to_vec())?;
        // Draws differ; a model that takes the most likely token answers as before.
        self.options.seed = self.options.seed.map(|seed| seed.wrapping_add(1));
        let ended = self.answer(None, &self.options.clone(), may_drop);
        if self.chat.messages().last().is_none_or(|message| message.role == Role::User) {
            // No new answer came: the old one stays.
            self.chat.set_messages(before)?;
        }
        ended
    }

    /// Ask `question`, or what stands last in the conversation, and print the answer.
    fn answer(
        &mut self,
        question: Option<&str>,
        options: &GenerateOptions,
        may_drop: MayDrop<'_>,
    ) -> Result<Ended, Failure> {
        let send = |chat: &mut Chat| match question {
            Some(text) => chat.send_with(text, options),
            None => chat.reply_with(options),
        };
        let full = match send(&mut self.chat) {
            Ok(reply) => return self.print(reply),
            Err(error) if is_full(&error) => error,
            Err(error) => return Err(error.into()),
        };
        let context = self.engine.context();
        let asked = question.map(Message::user);
        let fits = |messages: &[Message]| room::tokens(&self.engine, messages, &self.tools).ok();
        let Some((dropped, rest)) = room::shortened(self.chat.messages(), asked.as_ref(), context, fits) else {
            self.screen.error(full);
            return Ok(Ended::ContextFull);
        };
        let turns = if dropped == 1 { "oldest turn".into() } else { format!("{dropped} oldest turns") };
        if !may_drop(&format!("The conversation is too long for the context of {context} tokens. Drop the {turns}?"))? {
            return Ok(Ended::NotDropped);
        }
        self.chat.set_messages(rest)?;
        self.screen.note(format_args!("[the {turns} dropped]"));
        let reply = send(&mut self.chat)?;
        self.print(reply)
    }

    /// Print an answer while it arrives, or as JSON when it is complete.
    fn print(&mut self, mut reply: Reply) -> Result<Ended, Failure> {
        let _watched = self.interrupt.watch(reply.canceller());
        let bar = progress::prompt(&mut reply, self.screen)?;
        let printed = match self.json {
            false => reply::print(&self.engine, &mut reply, self.screen),
            true => Self::print_json(&mut reply),
        };
        if !bar.is_finished() {
            bar.finish_and_clear();
        }
        match printed {
            Ok(()) => {}
            Err(Stop::Engine(error)) => return Err(error.into()),
            Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ended::ReaderGone),
            Err(Stop::Output(error)) => return Err(format!("cannot write the answer: {error}").into()),
        }
        let (stats, reason) = (reply.stats(), reply.finish_reason());
        self.last = Some(stats);
        self.answers += 1;
        self.tokens += stats.new_tokens;
        if reason == Some(FinishReason::Cancelled) {
            self.screen.note("[stopped]");
            return Ok(Ended::Interrupted);
        }
        match reason {
            Some(FinishReason::ContextFull) => self.screen.note("[the context is full]"),
            Some(FinishReason::Length) => self.screen.note("[cut: --max-new-tokens allows more]"),
            _ => {}
        }
        self.screen.note(format_args!("[{}]", speed(&stats)));
        Ok(Ended::Done)
    }

    fn print_json(reply: &mut Reply) -> Result<(), Stop> {
        let text: String = reply.by_ref().collect::<qwen::Result<_>>()?;
        Ok(reply::print_json(&text, reply.finish_reason(), &reply.stats(), reply.tool_calls())?)
    }

    fn stats(&self) -> String {
        let plan = self.engine.plan();
        let used = self.last.map_or(0, |stats| stats.prompt_tokens + stats.new_tokens);
        let mib = plan.total_bytes >> 20;
        let mut lines = vec![
            format!("device    {} ({})", self.engine.device_name(), self.engine.selection_reason()),
            format!("weights   {}, with K/V and activations {mib} MiB", self.engine.weight_encoding()),
            format!("context   {} tokens, {used} of them at the last answer", self.engine.context()),
            format!("messages  {}", self.chat.messages().len()),
            format!("answers   {}, of {} tokens", self.answers, self.tokens),
        ];
        if let Some(last) = &self.last {
            lines.push(format!("the last  {}", speed(last)));
        }
        lines.join("\n")
    }
}

/// The place of the last question among the messages.
fn last_question(messages: &[Message]) -> Result<usize, Failure> {
    let last = messages.iter().rposition(|message| message.role == Role::User);
    last.ok_or_else(|| "nothing was asked yet".into())
}
