//! Chat templates: the checkpoint's own Jinja, rendered byte for byte as Python's transformers renders it.
//!
//! Here live the template and its environment. `input` is what it is given, `python` how values are written, `json`
//! how JSON is read, `source` what is done to the source before it is parsed, `clock` the date. Ids are not made
//! here; see `chat`.

mod clock;
mod input;
mod json;
mod python;
pub(crate) mod source;

use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, State, Value};

pub use self::input::ChatInput;
use crate::config::DEFAULT_TEMPLATE;
use crate::error::{Error, Result};

/// Steps that a template may take, so that one from a hostile checkpoint ends. A message takes about a hundred.
const FUEL: u64 = 20_000_000;

/// The variable which carries the time to `strftime_now`.
const NOW: &str = "__now";

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
    environment: Environment<'static>,
    takes_parts: OnceLock<bool>,
}

impl ChatTemplate {
    /// Parses a template.
    pub fn new(source: &str) -> Result<Self> {
        Self::named(DEFAULT_TEMPLATE, source, &[])
    }

    pub(crate) fn named(
        name: &str,
        source: &str,
        named_tokens: &[(&'static str, String)],
    ) -> Result<Self> {
        Ok(Self {
            name: name.into(),
            source: source.into(),
            named_tokens: named_tokens.to_vec(),
            environment: environment(name, source)?,
            takes_parts: OnceLock::new(),
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
        self.render_variables(self.variables(input)?)
    }

    /// The variables of a chat, without those that differ between renderings.
    pub(crate) fn variables(&self, input: &ChatInput<'_>) -> Result<Vec<(String, Value)>> {
        let mut variables =
            input.to_variables(|| *self.takes_parts.get_or_init(|| self.probe_parts()))?;
        variables.extend(input.time().map(|now| (NOW.into(), Value::from(now))));
        Ok(variables)
    }

    pub(crate) fn render_variables(&self, variables: Vec<(String, Value)>) -> Result<String> {
        let tokens = self
            .named_tokens
            .iter()
            .map(|(name, token)| ((*name).to_owned(), Value::from(token.as_str())));
        // A caller's variable of the same name comes later and wins.
        let variables = Value::from_pairs(tokens.chain(variables));
        let template = self
            .environment
            .get_template(&self.name)
            .map_err(|e| self.error(&e))?;
        template.render(variables).map_err(|e| self.error(&e))
    }

    /// This template with every control token that it writes, itself or through a variable, as its mark.
    pub(crate) fn marked(&self, marks: &[(String, char)]) -> Result<Self> {
        let mark_token = |(name, token): &(&'static str, String)| {
            let mark = marks.iter().find(|(content, _)| content == token);
            (
                *name,
                mark.map_or_else(|| token.clone(), |(_, mark)| mark.to_string()),
            )
        };
        let named_tokens: Vec<_> = self.named_tokens.iter().map(mark_token).collect();
        Self::named(
            &self.name,
            &source::mark(&self.source, marks),
            &named_tokens,
        )
    }

    /// Whether `token` is written in the source or in a variable of it.
    pub(crate) fn mentions(&self, token: &str) -> bool {
        self.source.contains(token) || self.named_tokens.iter().any(|(_, named)| named == token)
    }

    /// Whether the template takes contents that are lists of parts: does it write the text of a part, and not the
    /// list itself?
    fn probe_parts(&self) -> bool {
        let probe = r#"[{"role": "user", "content": [{"type": "text", "text": "4f9c"}]}]"#;
        let variables = ChatInput::from_json(probe).to_variables(|| true);
        let text = variables
            .and_then(|variables| self.render_variables(variables))
            .unwrap_or_default();
        text.contains("4f9c") && !text.contains("'4f9c'") && !text.contains("\"4f9c\"")
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        if let Some(Raised(message)) = source_of(error) {
            return Error::Refused {
                message: message.clone(),
            };
        }
        Error::Render {
            name: self.name.clone(),
            line: error.line().unwrap_or(0),
            problem: problem(error),
        }
    }
}

/// What a template called `raise_exception` with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn source_of(error: &minijinja::Error) -> Option<&Raised> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        source = error.source();
    }
    None
}

fn problem(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// An environment with what transformers gives a template, holding this one.
fn environment(name: &str, source: &str) -> Result<Environment<'static>> {
    let syntax_error = |e: minijinja::Error| Error::TemplateSyntax {
        name: name.into(),
        line: e.line().unwrap_or(0),
        problem: problem(&e),
    };
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(syntax_error)?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        match value.as_str() {
            Some(text) => out.write_str(text)?,
            None => out.write_str(&python::to_str(value)?)?,
        }
        Ok(())
    });
    environment.add_filter("tojson", |value: &Value, options: Kwargs| {
        python::tojson(value, options)
    });
    environment.add_filter("string", |value: &Value| python::to_str(value));
    environment.add_function(
        "raise_exception",
        |message: &Value| -> std::result::Result<Value, minijinja::Error> {
            let raised = Raised(message.to_string());
            Err(
                minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception")
                    .with_source(raised),
            )
        },
    );
    environment.add_function("strftime_now", strftime_now);
    environment
        .add_template_owned(name.to_owned(), source::without_generation_tags(source))
        .map_err(syntax_error)?;
    Ok(environment)
}

fn strftime_now(
    state: &State<'_, '_>,
    format: &str,
) -> std::result::Result<String, minijinja::Error> {
    let invalid = |problem: String| minijinja::Error::new(ErrorKind::InvalidOperation, problem);
    let now = state
        .lookup(NOW)
        .and_then(|now| now.as_i64())
        .ok_or_else(|| {
            invalid("strftime_now: there is no clock here; set ChatInput::now".into())
        })?;
    clock::format(format, now)
        .map_err(|c| invalid(format!("strftime_now: the directive %{c} is not supported")))
}
