//! What a chat template is given: messages, tools and variables, as template values.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::jinja::{Budget, Value, json};
use crate::message::{Content, ContentPart, Message};
use crate::tool::{Tool, ToolCall};

/// A chat to render: the messages, the tools and how to treat them.
///
/// ```
/// use qwen_tokenizer::{ChatInput, ChatTemplate, Message};
///
/// let template = ChatTemplate::new("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")?;
/// let messages = [Message::user("Hi")];
/// assert_eq!(template.render(&ChatInput::new(&messages))?, "[user] Hi\n");
///
/// // The same from JSON text, exactly as Python's transformers would take it.
/// let input = ChatInput::from_json(r#"[{"role": "user", "content": "Hi"}]"#);
/// assert_eq!(template.render(&input)?, "[user] Hi\n");
/// # Ok::<(), qwen_tokenizer::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct ChatInput<'a> {
    messages: Source<'a, Message>,
    tools: Source<'a, Tool>,
    add_generation_prompt: bool,
    trust_contents: bool,
    now: Option<i64>,
    variables: Map<String, Json>,
}

/// The forms that a template takes where there are several.
pub(super) trait Takes {
    /// Whether contents may be lists of parts.
    fn parts(&self) -> bool;
    /// How arguments of calls may come.
    fn arguments(&self) -> ArgumentForms;
}

/// How a template takes the arguments of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArgumentForms {
    /// It writes a text as it is.
    pub(super) as_text: bool,
    /// It writes a value.
    pub(super) as_value: bool,
}

#[derive(Debug, Clone, Copy)]
enum Source<'a, T> {
    Typed(&'a [T]),
    Json(&'a str),
}

impl<'a> ChatInput<'a> {
    /// A chat of these messages, ending with the beginning of the assistant's answer.
    ///
    /// The arguments of calls reach the template in the form that it takes ([`Arguments`](crate::Arguments)), and lists of
    /// text parts as one text where it takes no lists. As in transformers 5, keys that are `null` are left out, and the
    /// thought of an answer is `reasoning_content` under each of its names (`reasoning_content`, `thinking`, `reasoning`).
    pub fn new(messages: &'a [Message]) -> Self {
        Self {
            messages: Source::Typed(messages),
            tools: Source::Typed(&[]),
            add_generation_prompt: true,
            trust_contents: false,
            now: None,
            variables: Map::new(),
        }
    }

    /// A chat from the JSON text of a list of messages, which reaches the template unchanged, as in transformers 4: a key
    /// that is `null` is there, and is `none`. [`new`](Self::new) is as transformers 5 here, which leaves such keys out.
    ///
    /// ```
    /// use qwen_tokenizer::{ChatInput, ChatTemplate, Message};
    /// let template = ChatTemplate::new("{{ messages[0] | tojson }}")?;
    /// let json = r#"[{"role": "assistant", "content": null, "name": "a"}]"#;
    /// assert_eq!(template.render(&ChatInput::from_json(json))?, json[1..json.len() - 1]);
    /// let messages: Vec<Message> = serde_json::from_str(json).unwrap();
    /// assert_eq!(template.render(&ChatInput::new(&messages))?, r#"{"role": "assistant", "name": "a"}"#);
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn from_json(messages: &'a str) -> Self {
        Self { messages: Source::Json(messages), ..Self::new(&[]) }
    }

    /// The tools that the model may call.
    ///
    /// ```
    /// use qwen_tokenizer::{ChatInput, ChatTemplate, Tool};
    /// let template = ChatTemplate::new("{% for tool in tools %}{{ tool.function | tojson }}{% endfor %}")?;
    /// let tools = [Tool::function("now", "The time.", serde_json::json!({}))];
    /// let text = template.render(&ChatInput::new(&[]).tools(&tools))?;
    /// assert_eq!(text, r#"{"name": "now", "description": "The time.", "parameters": {}}"#);
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn tools(mut self, tools: &'a [Tool]) -> Self {
        self.tools = Source::Typed(tools);
        self
    }

    /// The tools as the JSON text of a list, or `null`.
    ///
    /// ```
    /// use qwen_tokenizer::{ChatInput, ChatTemplate};
    /// let template = ChatTemplate::new("{{ tools[0].name }}")?;
    /// let input = ChatInput::new(&[]).tools_json(r#"[{"name": "now"}]"#);
    /// assert_eq!(template.render(&input)?, "now");
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn tools_json(mut self, tools: &'a str) -> Self {
        self.tools = Source::Json(tools);
        self
    }

    /// Whether the text ends with the beginning of the assistant's answer. It does unless told otherwise.
    ///
    /// ```
    /// use qwen_tokenizer::{ChatInput, ChatTemplate};
    /// let template = ChatTemplate::new("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")?;
    /// assert_eq!(template.render(&ChatInput::new(&[]).add_generation_prompt(false))?, "");
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn add_generation_prompt(mut self, yes: bool) -> Self {
        self.add_generation_prompt = yes;
        self
    }

    /// Whether control tokens written inside contents become control tokens. They stay text unless told otherwise.
    ///
    /// Contents are everything that the template is given: messages, roles, names, tools, arguments, variables.
    /// Left off, a user who types `<|im_end|>\n<|im_start|>system` has typed just that text. Switched on, those are
    /// the ids that end the user's turn and open a system turn, as in Python's transformers: anybody whose text gets
    /// into a message can then speak as anybody. Switch it on for chats whose every character you wrote yourself.
    ///
    /// The text is the same either way; only its ids differ, and only if a content holds a control token.
    ///
    /// ```
    /// # use qwen_tokenizer::{ChatInput, Message, Tokenizer};
    /// # let tokenizer = Tokenizer::from_bytes(
    /// #     include_bytes!("../../tests/data/tokenizer.json"),
    /// #     Some(include_bytes!("../../tests/data/tokenizer_config.json")),
    /// # )?;
    /// let messages = [Message::user("<|im_end|>")];
    /// let end = tokenizer.token_to_id("<|im_end|>").unwrap();
    /// let ends = |input: &ChatInput| -> qwen_tokenizer::Result<usize> {
    ///     Ok(tokenizer.encode_chat(input)?.ids.iter().filter(|&&id| id == end).count())
    /// };
    /// let input = ChatInput::new(&messages);
    /// assert_eq!(ends(&input)?, 2); // the system's turn and the user's
    /// assert_eq!(ends(&input.trust_contents(true))?, 3);
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn trust_contents(mut self, yes: bool) -> Self {
        self.trust_contents = yes;
        self
    }

    /// The time for templates that write the date: seconds since 1970, shifted to the zone whose date is meant.
    /// The system's clock (UTC) unless told otherwise; on bare WebAssembly there is none.
    ///
    /// ```
    /// use qwen_tokenizer::{ChatInput, ChatTemplate};
    /// let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}")?;
    /// assert_eq!(template.render(&ChatInput::new(&[]).now(1_700_000_000))?, "14 Nov 2023");
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn now(mut self, seconds: i64) -> Self {
        self.now = Some(seconds);
        self
    }

    /// A further variable of the template, such as `enable_thinking`.
    ///
    /// ```
    /// use qwen_tokenizer::{ChatInput, ChatTemplate};
    /// let template = ChatTemplate::new("{{ 'brief' if style == 1 else 'long' }}")?;
    /// assert_eq!(template.render(&ChatInput::new(&[]).variable("style", 1))?, "brief");
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<Json>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    pub(crate) fn trusts_contents(&self) -> bool {
        self.trust_contents
    }

    pub(crate) fn has_tools(&self) -> bool {
        match self.tools {
            Source::Typed(tools) => !tools.is_empty(),
            // A text that is no list is refused when it is rendered, by whichever template.
            Source::Json(tools) => !matches!(tools.trim(), "null" | "[]"),
        }
    }

    pub(super) fn time(&self) -> Option<i64> {
        self.now.or_else(system_time)
    }

    /// The template's variables, in the forms that it takes; `budget` counts.
    pub(super) fn to_variables(&self, takes: &dyn Takes, budget: &Budget) -> Result<Vec<(Arc<str>, Value)>> {
        let parse = |what: &str, text| match json::parse(text, budget).map_err(wrong(what))? {
            value @ (Value::List(_) | Value::None) => Ok(value),
            value => {
                Err(Error::Json { what: what.into(), problem: format!("expected a list, found {}", value.kind()) })
            }
        };
        let messages = match self.messages {
            Source::Json(text) => parse("messages", text)?,
            Source::Typed(messages) => {
                let value = |(i, message)| message_value(i, message, takes, budget);
                let messages = messages.iter().enumerate().map(value).collect::<Result<_>>()?;
                let messages = json::list(messages, budget).map_err(wrong("messages"))?;
                messages.with_items(&mut |message| message.as_message(budget)).unwrap_or(messages)
            }
        };
        let tools = match self.tools {
            Source::Json(text) => parse("tools", text)?,
            Source::Typed([]) => Value::None,
            Source::Typed(tools) => {
                let tool = |tool: &Tool| json::dict(json::convert_entries(tool.json(), 0, budget)?, budget);
                let tools = tools.iter().map(tool).collect::<std::result::Result<_, _>>();
                tools.and_then(|tools| json::list(tools, budget)).map_err(wrong("tools"))?
            }
        };
        let mut variables: Vec<(Arc<str>, Value)> = vec![
            ("messages".into(), messages),
            ("tools".into(), tools),
            ("documents".into(), Value::None),
            ("add_generation_prompt".into(), Value::Bool(self.add_generation_prompt)),
        ];
        let others = json::convert_entries(&self.variables, 0, budget).map_err(wrong("variables"))?;
        variables.extend(others.into_iter().map(|(name, value)| (name.into(), value)));
        Ok(variables)
    }
}

/// The names of an answer's thought; templates know the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Value {
    /// A message as transformers 5 gives it to a template; `None` where it is that already.
    fn as_message(&self, budget: &Budget) -> Option<Value> {
        let Value::Dict(dict) = self else { return None };
        let is_none = |value: &Value| matches!(value, Value::None);
        let reasoning = REASONING.iter().filter_map(|name| dict.get_str(name, budget)).find(|value| !is_none(value));
        if reasoning.is_none() && !dict.entries().any(|(_, value)| is_none(value)) {
            return None;
        }
        let entries = dict.entries().filter(|(_, value)| !is_none(value));
        let mut entries: Vec<(String, Value)> =
            entries.map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), value.clone())).collect();
        if let Some(reasoning) = reasoning {
            if !entries.iter().any(|(name, _)| name == "thinking") {
                entries.insert(0, ("thinking".into(), reasoning.clone()));
            }
            match entries.iter_mut().find(|(name, _)| name == "reasoning_content") {
                Some((_, value)) => *value = reasoning.clone(),
                None => entries.push(("reasoning_content".into(), reasoning.clone())),
            }
        }
        json::dict(entries, budget).ok()
    }
}

/// Says which part of the input a JSON problem is in.
fn wrong(what: &str) -> impl FnOnce(String) -> Error + use<> {
    let what = what.to_owned();
    move |problem| Error::Json { what, problem }
}

fn message_value(index: usize, message: &Message, takes: &dyn Takes, budget: &Budget) -> Result<Value> {
    let wrong = |key: &str| wrong(&format!("messages[{index}].{key}"));
    let mut entries = vec![("role".to_owned(), json::string(message.role.as_str(), budget))];
    let content = match &message.content {
        None => None,
        Some(Content::Text(text)) => Some(json::string(text, budget)),
        Some(Content::Parts(parts)) if takes.parts() => {
            let part = |part: &ContentPart| json::convert(&Json::Object(part.clone().into()), 0, budget);
            let parts = parts.iter().map(part).collect::<std::result::Result<_, _>>();
            Some(parts.and_then(|parts| json::list(parts, budget)).map_err(wrong("content"))?)
        }
        Some(Content::Parts(parts)) => Some(joined(index, parts, budget)?),
        Some(Content::Other(other)) => Some(json::convert(other, 0, budget).map_err(wrong("content"))?),
    };
    entries.extend(content.map(|content| ("content".into(), content)));
    if !message.tool_calls.is_empty() {
        let calls = message
            .tool_calls
            .iter()
            .map(|call| call_value(call, takes, budget))
            .collect::<std::result::Result<_, _>>();
        let calls = calls.and_then(|calls| json::list(calls, budget)).map_err(wrong("tool_calls"))?;
        entries.push(("tool_calls".into(), calls));
    }
    if let Some(id) = &message.tool_call_id {
        entries.push(("tool_call_id".into(), json::string(id, budget)));
    }
    entries.extend(json::convert_entries(&message.extra, 0, budget).map_err(wrong("extra"))?);
    json::dict(entries, budget).map_err(wrong("extra"))
}

fn joined(index: usize, parts: &[ContentPart], budget: &Budget) -> Result<Value> {
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        texts.push(part.as_text().ok_or_else(|| Error::ContentPart { index, kind: part.kind() })?);
    }
    Ok(json::string(&texts.join("\n"), budget))
}

fn call_value(call: &ToolCall, takes: &dyn Takes, budget: &Budget) -> std::result::Result<Value, String> {
    let function = &call.function;
    let text = function.arguments.as_str();
    let arguments = match (function.arguments.is_text(), takes.arguments()) {
        (true, ArgumentForms { as_text: true, .. }) | (false, ArgumentForms { as_text: true, as_value: false }) => {
            json::string(text, budget)
        }
        // What servers send for a function without parameters.
        (true, _) if text.trim().is_empty() => json::dict(Vec::new(), budget)?,
        // A model may have written what is no object; the template then gets the text, as in transformers.
        (true, _) => match json::parse(text, budget) {
            Ok(value @ (Value::Dict(_) | Value::List(_) | Value::None)) => value,
            _ => json::string(text, budget),
        },
        (false, _) => json::parse(text, budget)?,
    };
    let mut entries = Vec::new();
    entries.extend(call.id.as_ref().map(|id| ("id".to_owned(), json::string(id, budget))));
    entries.push(("type".into(), Value::str("function")));
    let mut inner = vec![("name".to_owned(), json::string(&function.name, budget)), ("arguments".into(), arguments)];
    inner.extend(json::convert_entries(&function.extra, 0, budget)?);
    entries.push(("function".into(), json::dict(inner, budget)?));
    entries.extend(json::convert_entries(&call.extra, 0, budget)?);
    json::dict(entries, budget)
}

#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
fn system_time() -> Option<i64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(now.as_secs()).ok()
}

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
fn system_time() -> Option<i64> {
    None
}
