//! Conversations: messages in, an answer out, both remembered.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use qwen_core::engine::sampling::Logprobs;
use qwen_core::engine::{Canceller, FinishReason};
use qwen_core::numerics::float_env::FloatEnv;
use qwen_tokenizer::{ChatInput, EncodedChat, Message, Role, Tokenizer, Tool, ToolCall};

use crate::channel::Wait;
use crate::engine::Engine;
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::stats::{PromptProgress, Stats};
use crate::stream::{StoppedBy, TextStream};

impl Engine {
    /// A new conversation.
    pub fn chat(&self) -> Chat {
        Chat::new(self.clone())
    }
}

/// A conversation with a model. Made by [`Engine::chat`].
///
/// ```no_run
/// let engine = qwen::Engine::load("path/to/Qwen2.5-7B-Instruct")?;
/// let mut chat = engine.chat().system("You are terse.");
/// let answer = chat.send("Why is the sky blue?")?.text()?;
/// let reason = chat.send("And why are sunsets red?")?.text()?;
/// assert_eq!(chat.messages().len(), 5);
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Chat {
    engine: Engine,
    history: Arc<Mutex<History>>,
    tools: Vec<Tool>,
    options: GenerateOptions,
    trust_contents: bool,
}

/// A message, and how it came to be.
#[derive(Debug, Clone)]
struct Turn {
    message: Message,
    /// What the model wrote, where the message is what was parsed of it.
    written: Option<String>,
}

impl From<Message> for Turn {
    fn from(message: Message) -> Self {
        Turn { message, written: None }
    }
}

#[derive(Debug, Default)]
struct History {
    turns: Vec<Turn>,
    /// The last prompt and its answer, as the model read and wrote them: the messages begin with these.
    encoded: Option<EncodedChat>,
    /// Counts the changes after which an answer to what was before belongs nowhere.
    edition: u64,
    /// A reply that is still alive writes its message when it ends.
    replying: bool,
}

impl History {
    /// Change what was said; an answer that is still arriving is not added.
    fn edit<T>(&mut self, change: impl FnOnce(&mut Vec<Turn>) -> T) -> T {
        self.edition += 1;
        self.replying = false;
        self.encoded = None;
        change(&mut self.turns)
    }

    fn messages(&self) -> Vec<Message> {
        self.turns.iter().map(|turn| turn.message.clone()).collect()
    }

    /// The messages with the model's own texts in place of what was parsed of them; `None` where nothing was.
    fn as_written(&self) -> Option<Vec<Message>> {
        let as_written = |turn: &Turn| turn.written.clone().map_or_else(|| turn.message.clone(), Message::assistant);
        let is_parsed = self.turns.iter().any(|turn| turn.written.is_some());
        is_parsed.then(|| self.turns.iter().map(as_written).collect())
    }

    fn check_idle(&self) -> Result<()> {
        if self.replying {
            let reason = "a reply is still arriving: read it to its end, cancel it or drop it";
            return Err(qwen_core::Error::argument("chat", reason).into());
        }
        Ok(())
    }
}

impl Chat {
    fn new(engine: Engine) -> Self {
        Chat {
            engine,
            history: Arc::default(),
            tools: Vec::new(),
            options: GenerateOptions::new(),
            trust_contents: false,
        }
    }

    /// Begin with this system message. Without one most templates insert their own.
    pub fn system(self, text: impl Into<String>) -> Self {
        self.with(|history| {
            history.edit(|turns| {
                turns.retain(|turn| turn.message.role != Role::System);
                turns.insert(0, Message::system(text).into());
            });
        });
        self
    }

    /// Offer these tools to the model. What it calls is then parsed ([`Reply::tool_calls`]), and its message in the
    /// conversation has the calls apart from the text.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions, Message, Tool};
    /// use serde_json::json;
    ///
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    /// let tools = [Tool::function("get_time", "Current local time of a city", city)];
    /// let mut chat = engine.chat().tools(tools).options(GenerateOptions::new().greedy());
    /// let message = chat.send("Which time is it now in Cairo?")?.message()?;
    /// let function = &message.tool_calls[0].function;
    /// assert_eq!((function.name.as_str(), function.arguments.as_str()), ("get_time", r#"{"city": "Cairo"}"#));
    /// chat.push(Message::tool("12:00"))?;
    /// let answer = chat.reply()?.text()?;
    /// # assert!(!answer.is_empty());
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn tools(mut self, tools: impl Into<Vec<Tool>>) -> Self {
        self.tools = tools.into();
        self
    }

    /// How answers are generated.
    pub fn options(mut self, options: GenerateOptions) -> Self {
        self.options = options;
        self
    }

    /// Let control tokens that stand in message contents take effect, as transformers does. Off by default: a user's
    /// text could then end its own turn and forge another's.
    pub fn trust_contents(mut self, trust: bool) -> Self {
        self.trust_contents = trust;
        self
    }

    /// Say something and get the answer. Where none of it arrives, because the reply is dropped or cancelled or fails
    /// before, what was asked leaves the conversation, too.
    ///
    /// # Errors
    /// As [`Chat::reply`].
    pub fn send(&mut self, text: impl Into<String>) -> Result<Reply> {
        let options = self.options.clone();
        self.send_with(text, &options)
    }

    /// [`Chat::send`] with options for this answer alone.
    ///
    /// # Errors
    /// As [`Chat::reply`].
    pub fn send_with(&mut self, text: impl Into<String>, options: &GenerateOptions) -> Result<Reply> {
        self.push(Message::user(text))?;
        let mut reply = self.reply_with(options).inspect_err(|_| {
            // What could not be sent was not said.
            self.with(|history| history.turns.pop());
        })?;
        reply.takes_question = true;
        Ok(reply)
    }

    /// Add a message, e.g. the result of a tool, without asking for an answer.
    ///
    /// # Errors
    /// While a reply is still arriving.
    pub fn push(&mut self, message: Message) -> Result<()> {
        self.with(|history| {
            history.check_idle()?;
            history.turns.push(message.into());
            Ok(())
        })
    }

    /// Take back the last message. `None` where nothing was said.
    ///
    /// # Errors
    /// While a reply is still arriving.
    pub fn pop(&mut self) -> Result<Option<Message>> {
        self.with(|history| {
            history.check_idle()?;
            Ok(history.edit(Vec::pop).map(|turn| turn.message))
        })
    }

    /// Replace the whole conversation: to go on with one that was saved, or to change what was said.
    ///
    /// # Errors
    /// While a reply is still arriving.
    pub fn set_messages(&mut self, messages: Vec<Message>) -> Result<()> {
        self.with(|history| {
            history.check_idle()?;
            history.edit(|turns| *turns = messages.into_iter().map(Turn::from).collect());
            Ok(())
        })
    }

    /// An answer to the messages so far. It is added to them when it is complete, and as far as it came when it is cancelled
    /// or dropped; where nothing came, nothing is added. The model reads its earlier answers as it wrote them, id for id,
    /// unless the template rewrites them.
    ///
    /// # Errors
    /// When the template refuses the messages, and for a prompt beyond the context, which costs little however long it is.
    pub fn reply(&mut self) -> Result<Reply> {
        let options = self.options.clone();
        self.reply_with(&options)
    }

    /// [`Chat::reply`] with options for this answer alone.
    ///
    /// # Errors
    /// As [`Chat::reply`].
    pub fn reply_with(&mut self, options: &GenerateOptions) -> Result<Reply> {
        let _float_env = FloatEnv::enter();
        let tokenizer = self.engine.tokenizer()?;
        let prompt = self.prompt(tokenizer)?;
        self.with(|history| history.check_idle())?;
        let stream = self.engine.stream_text(prompt.ids.clone(), options)?;
        let edition = self.with(|history| {
            history.replying = true;
            history.edition
        });
        let history = Some(self.history.clone());
        let parser = (!self.tools.is_empty()).then(|| tokenizer.clone());
        Ok(Reply { stream, text: String::new(), prompt, history, edition, takes_question: false, parser })
    }

    /// The prompt of the turns so far. It begins with the ids of the last one and its answer, unless the template rewrites
    /// what they stand for.
    fn prompt(&self, tokenizer: &Tokenizer) -> Result<EncodedChat> {
        let (messages, written, before) =
            self.with(|history| (history.messages(), history.as_written(), history.encoded.clone()));
        let room = self.engine.prompt_room();
        let encode = |messages: &[Message]| {
            let input = ChatInput::new(messages)
                .tools(&self.tools)
                .add_generation_prompt(true)
                .trust_contents(self.trust_contents);
            match &before {
                Some(before) => tokenizer.encode_chat_after(&input, room, before),
                None => tokenizer.encode_chat_within(&input, room),
            }
        };
        let goes_on = |chat: &EncodedChat| before.as_ref().is_none_or(|before| chat.ids.starts_with(&before.ids));
        let parsed = encode(&messages);
        match written {
            // The template writes a call in another form than the model did: as texts they are what it wrote.
            Some(written) if !parsed.as_ref().is_ok_and(goes_on) => match encode(&written) {
                Ok(chat) if goes_on(&chat) => Ok(chat),
                _ => Ok(parsed?),
            },
            _ => Ok(parsed?),
        }
    }

    /// The conversation so far.
    pub fn messages(&self) -> Vec<Message> {
        self.with(|history| history.messages())
    }

    /// Forget everything but the system message. An answer that is still arriving is not added.
    pub fn clear(&mut self) {
        self.with(|history| history.edit(|turns| turns.retain(|turn| turn.message.role == Role::System)));
    }

    fn with<T>(&self, f: impl FnOnce(&mut History) -> T) -> T {
        f(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An answer of a [`Chat`], piece by piece. Owned: it may move into a thread.
#[derive(Debug)]
#[must_use = "dropping a reply cancels it"]
pub struct Reply {
    stream: TextStream,
    text: String,
    prompt: EncodedChat,
    // `None` once the answer was added to the conversation.
    history: Option<Arc<Mutex<History>>>,
    /// That of the history when the answer began.
    edition: u64,
    /// Whether the question leaves the conversation where no answer comes.
    takes_question: bool,
    /// What finds calls of tools, where the chat has some.
    parser: Option<Tokenizer>,
}

impl Reply {
    /// Wait for the whole answer.
    ///
    /// # Errors
    /// The error that ended it early.
    pub fn text(mut self) -> Result<String> {
        self.read_to_end()?;
        Ok(mem::take(&mut self.text))
    }

    /// Wait for the whole answer, and give it as the message that joins the conversation: with
    /// [`tool_calls`](Message::tool_calls), and their text not in the content.
    ///
    /// # Errors
    /// The error that ended it early.
    pub fn message(mut self) -> Result<Message> {
        self.read_to_end()?;
        Ok(self.parsed())
    }

    fn read_to_end(&mut self) -> Result<()> {
        self.try_for_each(|piece| piece.map(drop))
    }

    /// The calls of tools in the answer so far, as far as they are complete; see [`Tokenizer::parse_answer`]. None where the
    /// chat has no [tools](Chat::tools). They stand in the answer's text, too.
    pub fn tool_calls(&self) -> Vec<ToolCall> {
        self.parsed().tool_calls
    }

    fn parsed(&self) -> Message {
        let answer = self.text.as_str();
        self.parser.as_ref().map_or_else(|| Message::assistant(answer), |parser| parser.parse_answer(answer))
    }

    /// The ids of the prompt: the whole conversation so far.
    pub fn prompt_ids(&self) -> &[u32] {
        &self.prompt.ids
    }

    /// The ids of the answer so far; see [`TextStream::ids`].
    pub fn ids(&self) -> &[u32] {
        self.stream.ids()
    }

    /// See [`TokenStream::on_prompt_progress`](crate::TokenStream::on_prompt_progress).
    pub fn on_prompt_progress(&mut self, report: impl FnMut(PromptProgress) + Send + 'static) {
        self.stream.on_prompt_progress(report);
    }

    /// A handle that stops the answer from any thread, also while the prompt is being computed.
    pub fn canceller(&self) -> Canceller {
        self.stream.canceller()
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.stream.finish_reason()
    }

    /// The token or the string that ended the answer, if one did.
    pub fn stopped_by(&self) -> Option<&StoppedBy> {
        self.stream.stopped_by()
    }

    /// Tokens and times of the answer so far.
    pub fn stats(&self) -> Stats {
        self.stream.stats()
    }

    /// See [`TokenStream::logprobs`](crate::TokenStream::logprobs).
    pub fn logprobs(&self) -> &[Logprobs] {
        self.stream.logprobs()
    }

    /// See [`TokenStream::unread`](crate::TokenStream::unread).
    pub fn unread(&self) -> usize {
        self.stream.unread()
    }

    /// The next piece if it is there: see [`TextStream::try_next`].
    pub fn try_next(&mut self) -> Poll<Option<Result<String>>> {
        self.advance(&mut Wait::Not)
    }

    /// The next piece for a task: see [`TextStream::poll_next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<String>>> {
        self.advance(&mut Wait::Wake(context))
    }

    fn advance(&mut self, wait: &mut Wait<'_, '_>) -> Poll<Option<Result<String>>> {
        let piece = ready!(self.stream.advance(wait));
        match &piece {
            Some(Ok(piece)) => self.text.push_str(piece),
            Some(Err(_)) | None => self.close(),
        }
        Poll::Ready(piece)
    }

    /// Add the answer, as far as it came, to the conversation.
    fn close(&mut self) {
        let Some(history) = self.history.take() else { return };
        let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.edition != self.edition {
            return;
        }
        history.replying = false;
        let is_complete = self.finish_reason().is_some_and(|reason| reason != FinishReason::Cancelled);
        if self.text.is_empty() && !is_complete {
            if self.takes_question {
                history.turns.pop();
            }
            return;
        }
        let message = self.parsed();
        let written = (!message.tool_calls.is_empty()).then(|| self.text.clone());
        history.turns.push(Turn { message, written });
        // A stop string may have cut a token.
        if let Some(ids) = self.stream.whole_ids() {
            history.encoded = Some(self.prompt.clone().answered(&self.text, ids));
        }
    }
}

impl Iterator for Reply {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        Wait::block(|wait| self.advance(wait))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.close();
    }
}

// Conversations and answers move between threads.
const _: () = {
    const fn moved<T: Send + 'static>() {}
    moved::<Chat>();
    moved::<Reply>();
};
