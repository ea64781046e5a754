//! Tools a model may call, and the calls it makes, in the shape of OpenAI's API.
//!
//! Finding calls in what a model writes is done in `answer`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::entries::Entries;

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
    pub fn function(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Self {
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
///     r#"{"id":"call_0","type":"function","function":{"name":"add","arguments":{"a":1,"b":2}}}"#
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
        let function = FunctionCall { name: name.into(), arguments: arguments.into(), extra: Map::new() };
        Self { id: None, function, extra: Map::new() }
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
        Wire { id: &self.id, r#type: "function", function: &self.function, extra: &self.extra }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    /// Takes `{"id", "type", "function": {...}}` and also the inner object alone.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut json = Entries::deserialize(deserializer)?;
        let id = json.take_as("id")?;
        json.take("type");
        let (function, extra) = match json.take("function") {
            Some(function) => {
                let function: Entries =
                    serde_json::from_str(function.get()).map_err(|e| D::Error::custom(format!("`function`: {e}")))?;
                (function, json.rest()?)
            }
            None => (json, Map::new()),
        };
        Ok(Self { id, function: FunctionCall::from_entries(function)?, extra })
    }
}

/// A function's name and the arguments of one call.
#[derive(Debug, Clone, PartialEq, Serialize)]
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

impl FunctionCall {
    fn from_entries<E: serde::de::Error>(mut json: Entries) -> Result<Self, E> {
        let name = json.take_as("name")?.ok_or_else(|| E::missing_field("name"))?;
        let arguments = json.take("arguments").map(|json| Arguments::from_raw(&json)).transpose()?;
        // A function without parameters may come without arguments.
        let arguments = arguments.unwrap_or_else(|| "".into());
        Ok(Self { name, arguments, extra: json.rest()? })
    }
}

impl<'de> Deserialize<'de> for FunctionCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_entries(Entries::deserialize(deserializer)?)
    }
}

/// The arguments of a call: JSON text, as OpenAI's API has it, or the JSON value itself.
///
/// They keep the form that they came in, and every digit. A template gets them in the form that it can use: what came as
/// text stays text where the template writes it as it is, and is the value that it says where the template writes JSON.
///
/// ```
/// use qwen_tokenizer::Arguments;
/// let text: Arguments = serde_json::from_str(r#""{\"a\": 36893488147419103232}""#)?;
/// let value: Arguments = serde_json::from_str(r#"{"a": 36893488147419103232}"#)?;
/// assert_eq!(text.as_str(), r#"{"a": 36893488147419103232}"#);
/// assert_eq!(value.as_str(), text.as_str());
/// assert!(text.is_text() && !value.is_text());
/// assert_eq!(serde_json::to_string(&value)?, value.as_str());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    json: String,
    is_text: bool,
}

impl Arguments {
    /// The arguments as JSON text; a model may have written something else.
    pub fn as_str(&self) -> &str {
        &self.json
    }

    /// Whether they came as text.
    pub fn is_text(&self) -> bool {
        self.is_text
    }

    /// The arguments as a JSON value, or an error where the model wrote none.
    pub fn to_json(&self) -> serde_json::Result<Value> {
        serde_json::from_str(&self.json)
    }

    fn from_raw<E: serde::de::Error>(json: &RawValue) -> Result<Self, E> {
        match json.get().starts_with('"') {
            true => serde_json::from_str::<String>(json.get()).map(Self::from).map_err(E::custom),
            false => Ok(Self { json: json.get().to_owned(), is_text: false }),
        }
    }
}

impl From<String> for Arguments {
    fn from(json: String) -> Self {
        Self { json, is_text: true }
    }
}

impl From<&str> for Arguments {
    fn from(json: &str) -> Self {
        json.to_owned().into()
    }
}

impl From<Value> for Arguments {
    /// A string is taken for the JSON text, as on the wire.
    fn from(json: Value) -> Self {
        match json {
            Value::String(text) => text.into(),
            json => Self { json: json.to_string(), is_text: false },
        }
    }
}

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.is_text {
            true => serializer.serialize_str(&self.json),
            false => <&RawValue>::deserialize(&mut serde_json::Deserializer::from_str(&self.json))
                .map_err(serde::ser::Error::custom)?
                .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_raw(&Box::<RawValue>::deserialize(deserializer)?)
    }
}
