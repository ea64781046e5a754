//! Tools a model may call, and the calls it makes, in the shape of OpenAI's API.
//!
//! Finding calls in what a model writes is not done here.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The definition of a tool, given to the model as JSON with its keys in the order they were written.
///
/// It is the JSON itself, so that every key, known or not, reaches the template.
///
/// ```
/// use qwen_tokenizer::Tool;
/// use serde_json::json;
///
/// let tool = Tool::function(
///     "weather",
///     "The weather of a city.",
///     json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
/// );
/// assert_eq!(tool.name(), Some("weather"));
/// assert_eq!(tool.parameters().unwrap()["required"][0], "city");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tool {
    json: Map<String, Value>,
}

impl Tool {
    /// A function: its name, what it does, and a JSON schema of its parameters.
    pub fn function(
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: Value,
    ) -> Self {
        let function = Map::from_iter([
            ("name".into(), Value::String(name.into())),
            ("description".into(), Value::String(description.into())),
            ("parameters".into(), parameters),
        ]);
        Self::from_json(Map::from_iter([
            ("type".into(), "function".into()),
            ("function".into(), Value::Object(function)),
        ]))
    }

    /// A tool from its JSON, `{"type": "function", "function": {...}}` or the inner object alone.
    ///
    /// ```
    /// use qwen_tokenizer::Tool;
    /// let json = serde_json::json!({"name": "now", "strict": true});
    /// assert_eq!(Tool::from_json(json.as_object().unwrap().clone()).name(), Some("now"));
    /// ```
    pub fn from_json(json: Map<String, Value>) -> Self {
        Self { json }
    }

    /// The whole definition.
    pub fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    /// The function's name.
    pub fn name(&self) -> Option<&str> {
        self.inner().get("name")?.as_str()
    }

    /// What the function does.
    pub fn description(&self) -> Option<&str> {
        self.inner().get("description")?.as_str()
    }

    /// The JSON schema of the function's parameters.
    pub fn parameters(&self) -> Option<&Value> {
        self.inner().get("parameters")
    }

    fn inner(&self) -> &Map<String, Value> {
        match self.json.get("function") {
            Some(Value::Object(function)) => function,
            _ => &self.json,
        }
    }
}

/// A call which the model made.
///
/// ```
/// use qwen_tokenizer::ToolCall;
/// let call = ToolCall::new("add", serde_json::json!({"a": 1, "b": 2})).with_id("call_0");
/// assert_eq!(
///     serde_json::to_string(&call)?,
///     r#"{"id":"call_0","type":"function","function":{"name":"add","arguments":"{\"a\":1,\"b\":2}"}}"#
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ToolCall {
    /// What a tool's answer refers to.
    pub id: Option<String>,
    /// The function and its arguments.
    pub function: FunctionCall,
    /// Every other key beside `type`.
    pub extra: Map<String, Value>,
}

impl ToolCall {
    /// A call of a function, with its arguments as JSON text or as a JSON value.
    pub fn new(name: impl Into<String>, arguments: impl Into<Arguments>) -> Self {
        let function = FunctionCall {
            name: name.into(),
            arguments: arguments.into(),
            extra: Map::new(),
        };
        Self {
            id: None,
            function,
            extra: Map::new(),
        }
    }

    /// This call with an id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            id: &'a Option<String>,
            r#type: &'static str,
            function: &'a FunctionCall,
            #[serde(flatten)]
            extra: &'a Map<String, Value>,
        }
        Wire {
            id: &self.id,
            r#type: "function",
            function: &self.function,
            extra: &self.extra,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    /// Takes `{"id", "type", "function": {...}}` and also the inner object alone.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut json = Map::deserialize(deserializer)?;
        let id = match json.remove("id") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id),
            Some(_) => return Err(D::Error::custom("`id` of a tool call: expected a string")),
        };
        json.remove("type");
        let (function, extra) = match json.remove("function") {
            Some(function) => (function, json),
            None => (Value::Object(json), Map::new()),
        };
        let function = FunctionCall::deserialize(function).map_err(D::Error::custom)?;
        Ok(Self {
            id,
            function,
            extra,
        })
    }
}

/// A function's name and the arguments of one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FunctionCall {
    /// The function.
    pub name: String,
    /// Its arguments.
    pub arguments: Arguments,
    /// Every other key.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The arguments of a call: JSON text on the wire, an object in a template.
///
/// Reads from either form; writes the text. The text is kept as it came, so nothing in it is lost on the way.
///
/// ```
/// use qwen_tokenizer::Arguments;
/// let arguments: Arguments = serde_json::from_str(r#"{"a": 1}"#)?;
/// assert_eq!(arguments.as_str(), r#"{"a":1}"#);
/// assert_eq!(arguments.to_json()?["a"], 1);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Arguments {
    text: String,
}

impl Arguments {
    /// The arguments as JSON text; a model may have written something else.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The arguments as a JSON value, or an error where the model wrote none.
    pub fn to_json(&self) -> serde_json::Result<Value> {
        serde_json::from_str(&self.text)
    }
}

impl From<String> for Arguments {
    fn from(text: String) -> Self {
        Self { text }
    }
}

impl From<&str> for Arguments {
    fn from(text: &str) -> Self {
        Self { text: text.into() }
    }
}

impl From<Value> for Arguments {
    /// A string is taken for the JSON text, as on the wire.
    fn from(json: Value) -> Self {
        match json {
            Value::String(text) => Self { text },
            json => Self {
                text: json.to_string(),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Value::deserialize(deserializer)?.into())
    }
}
