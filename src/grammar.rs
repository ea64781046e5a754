//! What an answer has to be, as data: a JSON schema, a regular expression, or a grammar.

use qwen_tokenizer::Tool;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What an answer has to be. Its tokens are chosen only from those that fit, so every answer that ends by itself fits; one
/// that runs out of tokens ([`FinishReason::Length`](crate::FinishReason::Length)) is the beginning of one that does. Needs
/// the feature `structure`.
///
/// ```
/// use qwen::{GenerateOptions, Grammar};
/// use serde_json::json;
///
/// let person = json!({
///     "type": "object",
///     "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
///     "required": ["name", "age"],
///     "additionalProperties": false
/// });
/// let options = GenerateOptions::new().grammar(Grammar::json_schema(person));
/// ```
///
/// In JSON it has one of the keys `json_schema`, `regex`, `lark` and `tool_calls`:
///
/// ```
/// use qwen::Grammar;
/// let grammar: Grammar = serde_json::from_str(r#"{"regex": "yes|no"}"#)?;
/// assert_eq!(grammar, Grammar::regex("yes|no"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Data", into = "Data")]
#[must_use]
pub struct Grammar {
    pub(crate) form: Form,
    pub(crate) whitespace: Whitespace,
    pub(crate) max_length: Option<usize>,
    pub(crate) max_items: Option<usize>,
    pub(crate) parallel_calls: bool,
    /// Whether calls may be left out, and text may be beside them.
    pub(crate) or_text: bool,
    /// The answer begins within a thought of a reasoning model.
    pub(crate) after_thought: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Form {
    JsonSchema(Value),
    Regex(String),
    Lark(String),
    ToolCalls(Vec<Tool>),
}

/// The white space between the parts of a JSON answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Whitespace {
    /// A space, or a line break and an indentation of at most 24 spaces or 8 tabs: enough for JSON on one line and for
    /// indented JSON. The default: models that may write any amount of it sometimes never stop.
    #[default]
    Bounded,
    /// None at all.
    Compact,
    /// Any amount.
    Any,
    /// What matches this regular expression, or nothing.
    Pattern(String),
}

impl Grammar {
    fn new(form: Form) -> Self {
        let whitespace = Whitespace::default();
        Grammar {
            form,
            whitespace,
            max_length: None,
            max_items: None,
            parallel_calls: true,
            or_text: false,
            after_thought: false,
        }
    }

    /// JSON that a schema allows; properties come in its order. What of JSON Schema (2020-12) can be kept is listed in
    /// `docs/structured-output.md`: a request with anything else is refused, not answered by something looser.
    pub fn json_schema(schema: impl Into<Value>) -> Self {
        Self::new(Form::JsonSchema(schema.into()))
    }

    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::json_schema(json!({"type": "object"}))
    }

    /// Any value, as a definition that refers to itself by `reference`.
    #[cfg(feature = "structure")]
    pub(crate) fn any_value(reference: &str) -> Value {
        let any = json!({"$ref": reference});
        json!({"anyOf": [
            {"type": ["null", "boolean", "number", "string"]},
            {"type": "array", "items": any},
            {"type": "object", "additionalProperties": any}
        ]})
    }

    /// A text that the regular expression matches as a whole, in the syntax of the crate `regex`, without look-around.
    pub fn regex(pattern: &str) -> Self {
        Self::new(Form::Regex(pattern.into()))
    }

    /// A text of a context-free grammar in the syntax of Lark, as `llguidance` knows it: rules in lower case, terminals in
    /// upper case, control tokens by their names (`<tool_call>`), JSON schemas by `%json {..}`.
    ///
    /// ```
    /// use qwen::Grammar;
    /// let sum = Grammar::lark(r#"
    ///     start: NUMBER (" + " NUMBER)*
    ///     NUMBER: /[1-9][0-9]{0,5}/
    /// "#);
    /// ```
    pub fn lark(grammar: &str) -> Self {
        Self::new(Form::Lark(grammar.into()))
    }

    /// Calls of these tools, in the form of Qwen2.5's chat template, with arguments by the tools' schemas: at least one, and
    /// nothing else. [`ToolChoice::grammar`](crate::ToolChoice::grammar) makes it of a choice.
    pub fn tool_calls(tools: &[Tool]) -> Self {
        Self::new(Form::ToolCalls(tools.to_vec()))
    }

    /// Whether there may be several [calls](Grammar::tool_calls). They may by default.
    pub fn parallel_calls(mut self, several: bool) -> Self {
        self.parallel_calls = several;
        self
    }

    /// Whether there may be text before [calls](Grammar::tool_calls), between and behind them, and no call at all: what
    /// begins a call is then one that keeps to its tool's schema. They alone by default.
    pub fn or_text(mut self, text: bool) -> Self {
        self.or_text = text;
        self
    }

    /// The answer begins within a thought, as where the template writes `<think>`
    /// ([`AnswerParser::is_in_thought`](crate::AnswerParser::is_in_thought)): [calls](Grammar::tool_calls) come behind it.
    /// [`Chat`](crate::Chat) sets it by itself.
    pub fn after_thought(mut self, thinks: bool) -> Self {
        self.after_thought = thinks;
        self
    }

    /// The white space between the parts of JSON. Has no effect on a [regex](Grammar::regex) or [lark](Grammar::lark)
    /// grammar.
    pub fn whitespace(mut self, whitespace: Whitespace) -> Self {
        self.whitespace = whitespace;
        self
    }

    /// The most characters of strings to which the schema sets no bound. A model at a high temperature hardly ever ends
    /// them by itself. Default any number.
    pub fn max_length(mut self, characters: usize) -> Self {
        self.max_length = Some(characters);
        self
    }

    /// The most items of arrays to which the schema sets no bound. Default any number.
    pub fn max_items(mut self, items: usize) -> Self {
        self.max_items = Some(items);
        self
    }
}

/// How a grammar is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    json_schema: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lark: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<Tool>>,
    #[serde(default, skip_serializing_if = "is_default")]
    whitespace: Whitespace,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_length: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_items: Option<usize>,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    parallel_calls: bool,
    #[serde(default, skip_serializing_if = "is_no")]
    or_text: bool,
    #[serde(default, skip_serializing_if = "is_no")]
    after_thought: bool,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_yes(flag: &bool) -> bool {
    *flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_no(flag: &bool) -> bool {
    !*flag
}

fn is_default(whitespace: &Whitespace) -> bool {
    *whitespace == Whitespace::default()
}

impl From<Grammar> for Data {
    fn from(grammar: Grammar) -> Self {
        let Grammar { form, whitespace, max_length, max_items, parallel_calls, or_text, after_thought } = grammar;
        let (mut json_schema, mut regex, mut lark, mut tool_calls) = (None, None, None, None);
        match form {
            Form::JsonSchema(schema) => json_schema = Some(schema),
            Form::Regex(pattern) => regex = Some(pattern),
            Form::Lark(grammar) => lark = Some(grammar),
            Form::ToolCalls(tools) => tool_calls = Some(tools),
        }
        Data {
            json_schema,
            regex,
            lark,
            tool_calls,
            whitespace,
            max_length,
            max_items,
            parallel_calls,
            or_text,
            after_thought,
        }
    }
}

impl TryFrom<Data> for Grammar {
    type Error = &'static str;

    fn try_from(data: Data) -> Result<Self, Self::Error> {
        let Data { json_schema, regex, lark, tool_calls, whitespace, max_length, max_items, .. } = data;
        let form = match (json_schema, regex, lark, tool_calls) {
            (Some(schema), None, None, None) => Form::JsonSchema(schema),
            (None, Some(pattern), None, None) => Form::Regex(pattern),
            (None, None, Some(grammar), None) => Form::Lark(grammar),
            (None, None, None, Some(tools)) => Form::ToolCalls(tools),
            _ => return Err("a grammar has one of `json_schema`, `regex`, `lark` and `tool_calls`"),
        };
        let Data { parallel_calls, or_text, after_thought, .. } = data;
        Ok(Grammar { form, whitespace, max_length, max_items, parallel_calls, or_text, after_thought })
    }
}
