//! Conversations: messages in, an answer out, both remembered. They can be changed, copied and saved.

mod deltas;
mod history;
mod kv_file;
mod reply;
mod snapshot;
mod state;

use std::sync::{Arc, Mutex, PoisonError};

use qwen_core::numerics::float_env::FloatEnv;
use qwen_tokenizer::{CallForms, ChatInput, EncodedChat, Message, Role, Tokenizer, Tool};

use crate::engine::Engine;
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::tool_choice::ToolChoice;
pub use deltas::Deltas;
use history::{History, Turn};
use reply::Otherwise;
pub use reply::Reply;
pub use state::ChatState;

impl Engine {
    /// A new conversation.
    pub fn chat(&self) -> Chat {
        Chat::new(self.clone())
    }

    /// Go on with a conversation that was saved ([`Chat::state`]), by this process or by another.
    ///
    /// The next prompt begins with the ids that the model read and wrote, as if the conversation had never been saved.
    /// With a model that has another tokenizer or chat template, the conversation is encoded again.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a state that contradicts itself or has ids beyond the
    /// vocabulary.
    pub fn resume(&self, mut state: ChatState) -> Result<Chat> {
        let (history, chat) = (state.history(self)?, Chat::new(self.clone()));
        let ChatState { tools, call_forms, tool_choice, parallel_calls, options, trust_contents, .. } = state;
        let history = Arc::new(Mutex::new(history));
        Ok(Chat { history, tools, call_forms, tool_choice, parallel_calls, options, trust_contents, ..chat })
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
    call_forms: CallForms,
    tool_choice: ToolChoice,
    parallel_calls: bool,
    options: GenerateOptions,
    trust_contents: bool,
    /// Who computed the K/V that it was restored with, if not this engine.
    origin: Option<Arc<str>>,
}

impl Chat {
    fn new(engine: Engine) -> Self {
        Chat {
            engine,
            history: Arc::default(),
            tools: Vec::new(),
            call_forms: CallForms::default(),
            tool_choice: ToolChoice::default(),
            parallel_calls: true,
            options: GenerateOptions::new(),
            trust_contents: false,
            origin: None,
        }
    }

    /// Begin with this system message. Without one most templates insert their own.
    pub fn system(self, text: impl Into<String>) -> Self {
        self.with(|history| {
            let turns = history.changes_from(0);
            turns.retain(|turn| turn.message.role != Role::System);
            turns.insert(0, Message::system(text).into());
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

    pub(crate) fn set_tools(&mut self, tools: Vec<Tool>) {
        self.tools = tools;
    }

    /// Also find calls of [tools](Chat::tools) in these forms: Qwen2.5-Coder often answers with JSON in a fence where its
    /// template asks for `<tool_call>`. Default: the form of the template alone.
    pub fn call_forms(mut self, forms: CallForms) -> Self {
        self.call_forms = forms;
        self
    }

    /// Whether answers call [tools](Chat::tools). Default: as the model likes.
    ///
    /// With [`ToolChoice::Required`] and [`ToolChoice::Function`] the tokens of an answer are chosen by the schemas of the
    /// tools, so that it is a call with arguments that fit, or several; that needs the feature `structure`.
    pub fn tool_choice(mut self, choice: ToolChoice) -> Self {
        self.tool_choice = choice;
        self
    }

    pub(crate) fn set_tool_choice(&mut self, choice: ToolChoice) -> ToolChoice {
        std::mem::replace(&mut self.tool_choice, choice)
    }

    /// Whether an answer that [has to call](Chat::tool_choice) tools may have several calls. It may by default.
    pub fn parallel_calls(mut self, several: bool) -> Self {
        self.parallel_calls = several;
        self
    }

    #[cfg(feature = "structure")]
    pub(crate) fn answer_options(&self) -> &GenerateOptions {
        &self.options
    }

    /// How answers are generated.
    pub fn options(mut self, options: GenerateOptions) -> Self {
        self.options = options;
        self
    }

    /// Let control tokens that stand in message contents take effect, as transformers does. Off by default: a user's
    /// text could then end its own turn and forge another's.
    pub fn trust_contents(mut self, trust: bool) -> Self {
        if trust != self.trust_contents {
            // The same text has other ids now.
            self.with(|history| {
                history.changes_from(0);
            });
        }
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
        reply.otherwise = Otherwise::TakesQuestion;
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
            let last = history.turns.len().saturating_sub(1);
            Ok(history.changes_from(last).pop().map(|turn| turn.message))
        })
    }

    /// Keep the first `len` messages, and take back those behind them. Does nothing where there are no more.
    ///
    /// # Errors
    /// While a reply is still arriving.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.with(|history| {
            history.check_idle()?;
            history.changes_from(len).truncate(len);
            Ok(())
        })
    }

    /// Replace the message at `index` (as in [`Chat::messages`]), and give back what was there. The messages behind it
    /// stay; [`Chat::truncate`] takes them back, to have a changed question answered again:
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions, Message};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut chat = engine.chat().options(GenerateOptions::new().greedy());
    /// chat.send("What is 3 + 4?")?.text()?;
    /// chat.edit(0, Message::user("What is 5 + 6?"))?;
    /// chat.truncate(1)?;
    /// let answer = chat.reply()?.text()?;
    /// assert_eq!(chat.messages().len(), 2);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where there is no such message, and while a reply is still arriving.
    pub fn edit(&mut self, index: usize, message: Message) -> Result<Message> {
        self.with(|history| {
            history.check_idle()?;
            history.check_index(index)?;
            let turns = history.changes_from(index);
            Ok(std::mem::replace(&mut turns[index], message.into()).message)
        })
    }

    /// Replace the whole conversation. What it has in common with the one before, from the first message on, is known as
    /// the model read and wrote it. [`Chat::state`] saves that, too.
    ///
    /// # Errors
    /// While a reply is still arriving.
    pub fn set_messages(&mut self, messages: Vec<Message>) -> Result<()> {
        self.with(|history| {
            history.check_idle()?;
            let same = history.turns.iter().zip(&messages).take_while(|(turn, message)| turn.message == **message);
            let same = same.count();
            let turns = history.changes_from(same);
            turns.truncate(same);
            turns.extend(messages.into_iter().skip(same).map(Turn::from));
            Ok(())
        })
    }

    /// Another conversation with the same history, tools and options, which goes its own way from here. An answer that is
    /// still arriving joins only the conversation that asked for it.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut chat = engine.chat().options(GenerateOptions::new().greedy());
    /// chat.send("Hello!")?.text()?;
    /// let mut fork = chat.fork();
    /// let (sum, capital) = (chat.send("What is 3 + 4?")?, fork.send("What is the capital of Peru?")?);
    /// assert_ne!(sum.text()?, capital.text()?);
    /// assert_eq!(chat.messages()[..2], fork.messages()[..2]);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn fork(&self) -> Chat {
        let history = self.with(|history| History { replying: false, ..history.clone() });
        let (engine, history) = (self.engine.clone(), Arc::new(Mutex::new(history)));
        let (tools, tool_choice) = (self.tools.clone(), self.tool_choice.clone());
        let (options, origin) = (self.options.clone(), self.origin.clone());
        Chat { engine, history, tools, tool_choice, options, origin, ..*self }
    }

    /// The conversation as data: to save it, and to go on with it later ([`Engine::resume`]).
    ///
    /// ```
    /// use qwen::{ChatState, Engine, GenerateOptions};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut chat = engine.chat().options(GenerateOptions::new().greedy());
    /// chat.send("What is 3 + 4?")?.text()?;
    /// let saved = serde_json::to_string(&chat.state())?;
    /// // Later, in another process:
    /// let mut resumed = engine.resume(serde_json::from_str(&saved)?)?;
    /// assert_eq!(resumed.send("Hello!")?.prompt_ids(), chat.send("Hello!")?.prompt_ids());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn state(&self) -> ChatState {
        self.with(|history| ChatState::new(history, self))
    }

    /// Take back the last answer and answer again: differently where the options have no seed, since each answer draws one
    /// of its own; greedy decoding gives the same answer. Where nothing arrives of the new one, the old one returns.
    ///
    /// # Errors
    /// Where the last message is no answer, and as [`Chat::reply`].
    pub fn regenerate(&mut self) -> Result<Reply> {
        let options = self.options.clone();
        self.regenerate_with(&options)
    }

    /// [`Chat::regenerate`] with options for this answer alone.
    ///
    /// # Errors
    /// As [`Chat::regenerate`].
    pub fn regenerate_with(&mut self, options: &GenerateOptions) -> Result<Reply> {
        let answer = self.with(History::take_answer)?;
        match self.reply_with(options) {
            Ok(mut reply) => {
                reply.otherwise = Otherwise::Returns(Box::new(answer));
                Ok(reply)
            }
            Err(error) => {
                self.with(|history| history.put_back(answer));
                Err(error)
            }
        }
    }

    /// An answer to the messages so far. It is added to them when it is complete, and as far as it came when it is cancelled
    /// or dropped; where nothing came, nothing is added. The model reads its earlier answers as it wrote them, id for id,
    /// unless the template rewrites them.
    ///
    /// # Errors
    /// When the template refuses the messages, for a prompt beyond the context, which costs little however long it is, and
    /// for a `max_new_tokens` of 0: an empty answer would join the conversation.
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
        if options.max_new_tokens == Some(0) {
            let reason = "must be at least 1 in a conversation, is 0: an empty answer would join it";
            return Err(qwen_core::Error::argument("max_new_tokens", reason).into());
        }
        let tokenizer = self.engine.tokenizer()?;
        let prompt = self.prompt(tokenizer)?;
        self.with(|history| history.check_idle())?;
        let parser = tokenizer.answer_parser(&prompt.ids).forms(self.call_forms);
        let mut options = self.salted(options).into_owned();
        if let Some(calls) = self.tool_choice.grammar(&self.tools, self.parallel_calls)? {
            if options.grammar.is_some() {
                let reason =
                    "the answer has to be a call of a tool, and the options have a grammar: leave one of them out";
                return Err(qwen_core::Error::argument("tool_choice", reason).into());
            }
            options.grammar = Some(calls.after_thought(parser.is_in_thought()));
        }
        let stream = self.engine.generate_text(prompt.ids.clone(), &options)?;
        let edition = self.with(|history| {
            history.replying = true;
            history.edition
        });
        let history = Some(self.history.clone());
        let parser = if self.offered_tools().is_empty() { parser.without_calls() } else { parser };
        Ok(Reply {
            stream,
            text: String::new(),
            prompt,
            history,
            edition,
            otherwise: Otherwise::Stays,
            parser,
            deltas: Vec::new(),
        })
    }

    /// The tools that the model is told of.
    fn offered_tools(&self) -> &[Tool] {
        if self.tool_choice == ToolChoice::None { &[] } else { &self.tools }
    }

    /// The prompt of the turns so far. It begins with the ids of the last one and its answer, unless the template rewrites
    /// what they stand for.
    fn prompt(&self, tokenizer: &Tokenizer) -> Result<EncodedChat> {
        let (messages, written, before) =
            self.with(|history| (history.messages(), history.as_written(), history.known.encoded(history.turns.len())));
        let room = self.engine.prompt_room();
        let encode = |messages: &[Message]| {
            let input = ChatInput::new(messages)
                .tools(self.offered_tools())
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
        self.with(|history| history.changes_from(0).retain(|turn| turn.message.role == Role::System));
    }

    fn with<T>(&self, f: impl FnOnce(&mut History) -> T) -> T {
        f(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
