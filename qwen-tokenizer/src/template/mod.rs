//! Chat templates: the checkpoint's own Jinja, rendered byte for byte as Python's transformers renders it.
//!
//! Here lives the template and, in `input`, what it is given; in `probe`, what it does with a chat. The language itself is
//! in `jinja`; ids are made in `chat`.

mod input;
mod probe;

use std::sync::{Arc, OnceLock};

use self::input::ArgumentForms;
pub use self::input::ChatInput;
use crate::config::DEFAULT_TEMPLATE;
use crate::error::{Error, Result};
use crate::guard::Guards;
use crate::jinja::{Budget, FaultKind, Program, Stopped, SyntaxError, Value};

/// A chat template, parsed.
///
/// ```
/// use qwen_tokenizer::{ChatInput, ChatTemplate, Message};
///
/// let template = ChatTemplate::new(
///     "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
///      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
/// )?;
/// let messages = [Message::user("Hello!")];
/// let text = template.render(&ChatInput::new(&messages))?;
/// assert_eq!(text, "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n");
/// # Ok::<(), qwen_tokenizer::Error>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    name: String,
    source: String,
    /// `eos_token` and its like, which templates write as variables.
    named_tokens: Vec<(&'static str, String)>,
    program: Program,
    takes_parts: OnceLock<bool>,
    takes_arguments: OnceLock<ArgumentForms>,
    writes_calls: OnceLock<bool>,
}

impl ChatTemplate {
    /// Parses a template.
    pub fn new(source: &str) -> Result<Self> {
        Self::named(DEFAULT_TEMPLATE, source, &[])
    }

    pub(crate) fn named(name: &str, source: &str, named_tokens: &[(&'static str, String)]) -> Result<Self> {
        let program = Program::parse(source).map_err(|e| syntax_error(name, e))?;
        let named_tokens = named_tokens.to_vec();
        Ok(Self {
            name: name.into(),
            source: source.into(),
            named_tokens,
            program,
            takes_parts: OnceLock::new(),
            takes_arguments: OnceLock::new(),
            writes_calls: OnceLock::new(),
        })
    }

    /// The name: `default`, `tool_use` or another of tokenizer_config.json.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a chat to text.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String> {
        self.render_variables(&self.variables(input)?)
    }

    /// What a chat gives the template.
    pub(crate) fn variables(&self, input: &ChatInput<'_>) -> Result<Variables> {
        let budget = Budget::of_input();
        let values = input.to_variables(self, &budget)?;
        Ok(Variables { values, now: input.time(), bytes: budget.bytes_used(), guards: Vec::new() })
    }

    pub(crate) fn render_variables(&self, variables: &Variables) -> Result<String> {
        self.render_within(variables, usize::MAX).map(Option::unwrap_or_default)
    }

    /// Renders a chat; `None` if its text is longer than `bytes`, which stops it there.
    pub(crate) fn render_within(&self, variables: &Variables, bytes: usize) -> Result<Option<String>> {
        let tokens = self.named_tokens.iter().map(|(name, token)| (Arc::from(*name), Value::str(token.as_str())));
        // A caller's variable of the same name comes later and wins.
        let values = tokens.chain(variables.values.iter().cloned());
        let budget = Budget::of_rendering(variables.bytes).with_guards(&variables.guards);
        match self.program.render(values, variables.now, bytes, &budget) {
            Ok(text) => Ok(Some(text)),
            Err(Stopped { kind: FaultKind::TooLong, .. }) => Ok(None),
            Err(stopped) => Err(self.error(stopped)),
        }
    }

    fn error(&self, stopped: Stopped) -> Error {
        let Stopped { line, kind } = stopped;
        match kind {
            FaultKind::Problem(problem) => self.problem(line, problem),
            FaultKind::Raised(message) => Error::Refused { message },
            FaultKind::TooLong => self.problem(line, "the text is too long".into()),
            FaultKind::Limit { what, found, limit } => {
                Error::TemplateLimit { name: self.name.clone(), line, what, found, limit }
            }
        }
    }

    fn problem(&self, line: usize, problem: String) -> Error {
        Error::Render { name: self.name.clone(), line, problem }
    }
}

/// A chat as a template sees it.
#[derive(Debug)]
pub(crate) struct Variables {
    values: Vec<(Arc<str>, Value)>,
    now: Option<i64>,
    /// What the values take, by which the limits of a rendering grow.
    bytes: u64,
    /// Characters and their guards.
    guards: Vec<(char, char)>,
}

impl Variables {
    /// With guards in what others than the model wrote; `None` where none are needed.
    pub(crate) fn guarded(&self, guards: &mut Guards<'_>) -> Option<Self> {
        let mut values = self.values.clone();
        let mut has_guards = false;
        for (name, value) in &mut values {
            let guarded = match (&**name, &*value) {
                ("messages", Value::List(_)) => value.with_items(&mut |message| {
                    if message.text_at("role") == Some("assistant") { None } else { guards.guard(message) }
                }),
                (_, value) => guards.guard(value),
            };
            if let Some(guarded) = guarded {
                *value = guarded;
                has_guards = true;
            }
        }
        let Self { now, bytes, .. } = *self;
        has_guards.then(|| Self { values, now, bytes, guards: guards.pairs().to_vec() })
    }
}

fn syntax_error(name: &str, error: SyntaxError) -> Error {
    let name = name.to_owned();
    match error {
        SyntaxError::Problem { line, problem } => Error::TemplateSyntax { name, line, problem },
        SyntaxError::Limit { line, what, found, limit } => {
            Error::TemplateLimit { name, line, what, found: found as u64, limit: limit as u64 }
        }
    }
}
