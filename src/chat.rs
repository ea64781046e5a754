//! Conversations: messages in, an answer out, both remembered.

use std::sync::{Arc, Mutex, PoisonError};

use qwen_core::engine::{Canceller, FinishReason};
use qwen_core::numerics::float_env::FloatEnv;
use qwen_tokenizer::{ChatInput, Message, Tool};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Stats, TextStream};

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
pub struct Chat {
    engine: Engine,
    history: Arc<Mutex<History>>,
    tools: Vec<Tool>,
    options: GenerateOptions,
    trust_contents: bool,
}

#[derive(Debug, Default)]
struct History {
    messages: Vec<Message>,
    // A reply that is still alive writes its message when it ends.
    replying: bool,
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
            history.messages.retain(|message| message.role != qwen_tokenizer::Role::System);
            history.messages.insert(0, Message::system(text));
        });
        self
    }

    /// Offer these tools to the model.
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

    /// Say something and get the answer.
    ///
    /// # Errors
    /// As [`Chat::reply`].
    pub fn send(&mut self, text: impl Into<String>) -> Result<Reply> {
        self.push(Message::user(text))?;
        self.reply().inspect_err(|_| {
            // What could not be sent was not said.
            self.with(|history| history.messages.pop());
        })
    }

    /// Add a message, e.g. the result of a tool, without asking for an answer.
    ///
    /// # Errors
    /// While a reply is still arriving.
    pub fn push(&mut self, message: Message) -> Result<()> {
        self.with(|history| {
            if history.replying {
                let reason = "a reply is still arriving: read it to its end, cancel it or drop it";
                return Err(qwen_core::Error::argument("chat", reason).into());
            }
            history.messages.push(message);
            Ok(())
        })
    }

    /// An answer to the messages so far. It is added to them when it is complete, cancelled or dropped.
    ///
    /// # Errors
    /// When the template refuses the messages, and for a prompt beyond the context, which costs little however long it is.
    pub fn reply(&mut self) -> Result<Reply> {
        let _float_env = FloatEnv::enter();
        let messages = self.messages();
        let input = ChatInput::new(&messages)
            .tools(&self.tools)
            .add_generation_prompt(true)
            .trust_contents(self.trust_contents);
        let encoded = self.engine.tokenizer()?.encode_chat_within(&input, self.engine.prompt_room())?;
        let stream = self.engine.stream_text(encoded.ids, &self.options)?;
        self.with(|history| {
            if std::mem::replace(&mut history.replying, true) {
                return Err(qwen_core::Error::argument("chat", "a reply is still arriving").into());
            }
            Ok::<_, Error>(())
        })?;
        Ok(Reply { stream, text: String::new(), history: Some(self.history.clone()) })
    }

    /// The conversation so far.
    pub fn messages(&self) -> Vec<Message> {
        self.with(|history| history.messages.clone())
    }

    /// Forget everything but the system message.
    pub fn clear(&mut self) {
        self.with(|history| history.messages.retain(|message| message.role == qwen_tokenizer::Role::System));
    }

    fn with<T>(&self, f: impl FnOnce(&mut History) -> T) -> T {
        f(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An answer of a [`Chat`], piece by piece. Owned: it may move into a thread.
#[derive(Debug)]
pub struct Reply {
    stream: TextStream,
    text: String,
    // `None` once the answer was added to the conversation.
    history: Option<Arc<Mutex<History>>>,
}

impl Reply {
    /// Wait for the whole answer.
    ///
    /// # Errors
    /// The error that ended it early.
    pub fn text(mut self) -> Result<String> {
        for piece in &mut self {
            piece?;
        }
        Ok(self.text.clone())
    }

    /// A handle that stops the answer from any thread, also while the prompt is being computed.
    pub fn canceller(&self) -> Canceller {
        self.stream.canceller()
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.stream.finish_reason()
    }

    /// Tokens and times of the answer so far.
    pub fn stats(&self) -> Stats {
        self.stream.stats()
    }

    /// Add the answer, as far as it came, to the conversation.
    fn close(&mut self) {
        if let Some(history) = self.history.take() {
            let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
            history.messages.push(Message::assistant(self.text.clone()));
            history.replying = false;
        }
    }
}

impl Iterator for Reply {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        let piece = self.stream.next();
        match &piece {
            Some(Ok(piece)) => self.text.push_str(piece),
            Some(Err(_)) | None => self.close(),
        }
        piece
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
