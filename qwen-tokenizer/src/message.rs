//! Messages of a chat, in the shape of OpenAI's API.
//!
//! Here live the types and their JSON. How a message reaches a template is `template::input`'s business; calls
//! and tools are in `tool`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::entries::Entries;
use crate::tool::ToolCall;

/// One message of a chat.
///
/// Keys which this type does not know are kept in `extra` and reach the template. It is read from JSON alone, since
/// arguments of calls are kept as the text that they are there.
///
/// ```
/// use qwen_tokenizer::Message;
///
/// let chat = [Message::system("Answer in one word."), Message::user("Capital of France?")];
/// assert_eq!(serde_json::to_string(&chat[1])?, r#"{"role":"user","content":"Capital of France?"}"#);
///
/// let wire = r#"{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "bob"}"#;
/// let message: Message = serde_json::from_str(wire)?;
/// assert_eq!(message.text().as_deref(), Some("Hi"));
/// assert_eq!(message.extra["name"], "bob");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; none in a message that is only calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The calls an assistant makes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Every other key.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of any role.
    ///
    /// ```
    /// use qwen_tokenizer::{Message, Role};
    /// assert_eq!(Message::new(Role::User, "Hi"), Message::user("Hi"));
    /// ```
    pub fn new(role: impl Into<Role>, content: impl Into<Content>) -> Self {
        Self {
            role: role.into(),
            content: Some(content.into()),
            tool_calls: Vec::new(),
            tool_call_id: None,
            extra: Map::new(),
        }
    }

    /// What the assistant is and how it should answer; first in a chat.
    pub fn system(content: impl Into<Content>) -> Self {
        Self::new(Role::System, content)
    }

    /// What the user says.
    pub fn user(content: impl Into<Content>) -> Self {
        Self::new(Role::User, content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<Content>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// The calls the model made, without text.
    ///
    /// ```
    /// use qwen_tokenizer::{Message, ToolCall};
    /// let call = ToolCall::new("now", serde_json::json!({"zone": "UTC"}));
    /// assert_eq!(Message::assistant_calls([call]).content, None);
    /// ```
    pub fn assistant_calls(calls: impl IntoIterator<Item = ToolCall>) -> Self {
        Self { content: None, ..Self::assistant("") }.with_tool_calls(calls)
    }

    /// What a tool answered.
    pub fn tool(content: impl Into<Content>) -> Self {
        Self::new(Role::Tool, content)
    }

    /// This message with these calls.
    #[must_use]
    pub fn with_tool_calls(mut self, calls: impl IntoIterator<Item = ToolCall>) -> Self {
        self.tool_calls = calls.into_iter().collect();
        self
    }

    /// This message as the answer to the call with this id.
    #[must_use]
    pub fn with_tool_call_id(mut self, id: impl Into<String>) -> Self {
        self.tool_call_id = Some(id.into());
        self
    }

    /// The text of the content, parts joined by line breaks; `None` where there is no content or it is no text.
    pub fn text(&self) -> Option<String> {
        match self.content.as_ref()? {
            Content::Text(text) => Some(text.clone()),
            Content::Parts(parts) => {
                let texts: Option<Vec<&str>> = parts.iter().map(ContentPart::as_text).collect();
                texts.map(|texts| texts.join("\n"))
            }
            Content::Other(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut json = Entries::deserialize(deserializer)?;
        Ok(Self {
            role: json.take_as("role")?.ok_or_else(|| D::Error::missing_field("role"))?,
            content: json.take_as("content")?,
            tool_calls: json.take_as("tool_calls")?.unwrap_or_default(),
            tool_call_id: json.take_as("tool_call_id")?,
            extra: json.rest()?,
        })
    }
}

/// Who speaks in a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// What the assistant is and how it should answer.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
    /// A role that only the checkpoint's template knows.
    Other(String),
}

impl Role {
    /// The role as templates and JSON write it.
    ///
    /// ```
    /// use qwen_tokenizer::Role;
    /// assert_eq!(Role::from("user"), Role::User);
    /// assert_eq!(Role::Assistant.as_str(), "assistant");
    /// ```
    pub fn as_str(&self) -> &str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Other(role) => role,
        }
    }
}

impl From<&str> for Role {
    fn from(role: &str) -> Self {
        match role {
            "system" => Self::System,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" => Self::Tool,
            _ => Self::Other(role.into()),
        }
    }
}

/// Every text is a role.
impl std::str::FromStr for Role {
    type Err = std::convert::Infallible;

    fn from_str(role: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(role))
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(String::deserialize(deserializer)?.as_str()))
    }
}

/// What a message says.
///
/// ```
/// use qwen_tokenizer::Content;
/// assert_eq!(Content::from("Hi"), Content::Text("Hi".into()));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Content {
    /// Plain text.
    Text(String),
    /// A list of parts. A template that takes text alone sees the text parts joined by line breaks.
    Parts(Vec<ContentPart>),
    /// Anything else, given to the template as it is.
    Other(Value),
}

impl<T: Into<String>> From<T> for Content {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

/// A part of a message's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Map<String, Value>", into = "Map<String, Value>")]
#[non_exhaustive]
pub enum ContentPart {
    /// `{"type": "text", "text": ...}`
    Text(String),
    /// Any other part, given to the template as it is.
    Other(Map<String, Value>),
}

impl ContentPart {
    /// A part of text.
    ///
    /// ```
    /// use qwen_tokenizer::{Content, ContentPart, Message};
    /// let parts = vec![ContentPart::text("One."), ContentPart::text("Two.")];
    /// assert_eq!(Message::user("").text().as_deref(), Some(""));
    /// assert_eq!(Message::new("user", Content::Parts(parts)).text().as_deref(), Some("One.\nTwo."));
    /// ```
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// The text, if this is a part of text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Other(_) => None,
        }
    }

    /// The part's `type`, or what stands there instead.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Text(_) => "text".into(),
            Self::Other(part) => part
                .get("type")
                .map_or_else(|| "none".into(), |kind| kind.as_str().map_or_else(|| kind.to_string(), Into::into)),
        }
    }
}

impl From<Map<String, Value>> for ContentPart {
    fn from(part: Map<String, Value>) -> Self {
        match (part.len(), part.get("type"), part.get("text")) {
            (2, Some(Value::String(kind)), Some(Value::String(text))) if kind == "text" => Self::Text(text.clone()),
            _ => Self::Other(part),
        }
    }
}

impl From<ContentPart> for Map<String, Value> {
    fn from(part: ContentPart) -> Self {
        match part {
            ContentPart::Text(text) => Map::from_iter([("type".into(), "text".into()), ("text".into(), text.into())]),
            ContentPart::Other(part) => part,
        }
    }
}
