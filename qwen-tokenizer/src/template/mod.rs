//! Chat templates: the checkpoint's own Jinja, rendered byte for byte as Python's transformers renders it.
//!
//! Here lives the template and, in `input`, what it is given. The language itself is in `jinja`; ids are made in `chat`.

mod input;

use std::sync::{Arc, OnceLock};

pub use self::input::ChatInput;
use crate::config::DEFAULT_TEMPLATE;
use crate::error::{Error, Result};
use crate::jinja::{Budget, FaultKind, Marks, Program, Stopped, SyntaxError, Value};

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
}

impl ChatTemplate {
    /// Parses a template.
    pub fn new(source: &str) -> Result<Self> {
        Self::named(DEFAULT_TEMPLATE, source, &[])
    }

    pub(crate) fn named(name: &str, source: &str, named_tokens: &[(&'static str, String)]) -> Result<Self> {
        let program = Program::parse(source, None).map_err(|e| syntax_error(name, e))?;
        let named_tokens = named_tokens.to_vec();
        Ok(Self { name: name.into(), source: source.into(), named_tokens, program, takes_parts: OnceLock::new() })
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
        let values = input.to_variables(|| *self.takes_parts.get_or_init(|| self.probe_parts()), &budget)?;
        Ok(Variables { values, now: input.time(), bytes: budget.bytes_used() })
    }

    pub(crate) fn render_variables(&self, variables: &Variables) -> Result<String> {
        self.render_within(variables, usize::MAX).map(Option::unwrap_or_default)
    }

    /// Renders a chat; `None` if its text is longer than `bytes`, which stops it there.
    pub(crate) fn render_within(&self, variables: &Variables, bytes: usize) -> Result<Option<String>> {
        let tokens = self.named_tokens.iter().map(|(name, token)| (Arc::from(*name), Value::str(token.as_str())));
        // A caller's variable of the same name comes later and wins.
        let values = tokens.chain(variables.values.iter().cloned());
        let budget = Budget::of_rendering(variables.bytes);
        match self.program.render(values, variables.now, bytes, &budget) {
            Ok(text) => Ok(Some(text)),
            Err(Stopped { kind: FaultKind::TooLong, .. }) => Ok(None),
            Err(stopped) => Err(self.error(stopped)),
        }
    }

    /// This template with every control token that it writes, itself or through a variable, as its mark.
    pub(crate) fn marked(&self, marks: &[(String, char)]) -> Result<Self> {
        let finder = Marks::new(marks.iter().map(|(token, mark)| (token.as_str(), *mark)));
        let finder = finder.map_err(|e| self.problem(0, e.to_string()))?;
        let mark_token = |(name, token): &(&'static str, String)| {
            let mark = marks.iter().find(|(content, _)| content == token);
            (*name, mark.map_or_else(|| token.clone(), |(_, mark)| mark.to_string()))
        };
        Ok(Self {
            name: self.name.clone(),
            source: String::new(),
            named_tokens: self.named_tokens.iter().map(mark_token).collect(),
            program: Program::parse(&self.source, Some(&finder)).map_err(|e| syntax_error(&self.name, e))?,
            takes_parts: OnceLock::new(),
        })
    }

    /// The values of the variables that stand for special tokens.
    pub(crate) fn named_tokens(&self) -> impl Iterator<Item = &str> {
        self.named_tokens.iter().map(|(_, token)| token.as_str())
    }

    /// Whether the template takes contents that are lists of parts: does it write the text of a part, and not the
    /// list itself?
    fn probe_parts(&self) -> bool {
        let probe = r#"[{"role": "user", "content": [{"type": "text", "text": "4f9c"}]}]"#;
        let variables = ChatInput::from_json(probe).to_variables(|| true, &Budget::of_input());
        let variables = variables.map(|values| Variables { values, now: Some(0), bytes: 0 });
        let text = variables.and_then(|variables| self.render_variables(&variables)).unwrap_or_default();
        text.contains("4f9c") && !text.contains("'4f9c'") && !text.contains("\"4f9c\"")
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
