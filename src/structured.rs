//! Answers as values of Rust types.

use qwen_core::engine::FinishReason;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::chat::Chat;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::GenerateOptions;
use crate::grammar::Grammar;

impl Grammar {
    /// JSON of which serde makes a `T`: the schema that `schemars` derives, without properties that it does not name. What
    /// a doc comment says of a field is not shown to the model: say in the prompt what is wanted.
    ///
    /// ```
    /// use qwen::{Grammar, schemars};
    ///
    /// #[derive(schemars::JsonSchema)]
    /// struct Person {
    ///     name: String,
    ///     age: u8,
    /// }
    ///
    /// let grammar = Grammar::of_type::<Person>();
    /// ```
    pub fn of_type<T: JsonSchema>() -> Self {
        let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value();
        if let Value::Object(schema) = &mut schema {
            schema.remove("$schema");
        }
        fit_serde(&mut schema, false);
        Grammar::json_schema(schema)
    }
}

impl Engine {
    /// Continue `prompt` with the JSON of a `T`, and give the value. The options' own grammar is not used.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions, schemars};
    /// use serde::Deserialize;
    ///
    /// #[derive(Debug, Deserialize, schemars::JsonSchema)]
    /// enum Answer {
    ///     Yes,
    ///     No,
    /// }
    ///
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let answer: Answer = engine.generate_as("Is 3 + 4 seven?", &GenerateOptions::new().greedy())?;
    /// println!("{answer:?}");
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::generate`], and [`Error::Unfinished`] with the text so far.
    pub fn generate_as<T: DeserializeOwned + JsonSchema>(&self, prompt: &str, options: &GenerateOptions) -> Result<T> {
        let mut stream = self.generate(prompt, &options.clone().grammar(Grammar::of_type::<T>()))?;
        let (mut text, mut end) = (String::new(), Ok(()));
        for piece in stream.by_ref() {
            match piece {
                Ok(piece) => text += &piece,
                Err(error) => end = Err(error),
            }
        }
        value_of(text, end.map(|()| stream.finish_reason()))
    }
}

impl Chat {
    /// Say something, and get the answer as a `T`. Question and answer join the conversation, the answer as the JSON that it
    /// is.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions, schemars};
    /// use serde::Deserialize;
    ///
    /// #[derive(Deserialize, schemars::JsonSchema)]
    /// struct Person {
    ///     name: String,
    ///     age: u8,
    ///     city: String,
    /// }
    ///
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut chat = engine.chat().options(GenerateOptions::new().greedy());
    /// let anna: Person = chat.send_as("Turn this into JSON: Anna is 31 years old and lives in Oslo.")?;
    /// assert_eq!((anna.name.as_str(), anna.age, anna.city.as_str()), ("Anna", 31, "Oslo"));
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Chat::send`], and [`Error::Unfinished`] with the text so far.
    pub fn send_as<T: DeserializeOwned + JsonSchema>(&mut self, text: impl Into<String>) -> Result<T> {
        let options = self.answer_options().clone().grammar(Grammar::of_type::<T>());
        let mut reply = self.send_with(text, &options)?;
        let (mut text, mut end) = (String::new(), Ok(()));
        for piece in reply.by_ref() {
            match piece {
                Ok(piece) => text += &piece,
                Err(error) => end = Err(error),
            }
        }
        value_of(text, end.map(|()| reply.finish_reason()))
    }
}

/// The value that a whole answer is.
fn value_of<T: DeserializeOwned>(text: String, end: Result<Option<FinishReason>>) -> Result<T> {
    let (reason, kind) = match end {
        Ok(Some(FinishReason::Stop)) => match serde_json::from_str(&text) {
            Ok(value) => return Ok(value),
            // Its own text may quote the answer.
            Err(error) => {
                let place = format!("it is no such value, at line {}, column {}", error.line(), error.column());
                (place, ErrorKind::Unfinished)
            }
        },
        Ok(reason) => {
            let reason = reason.map_or("unknown", FinishReason::as_str);
            (format!("it ended early ({reason}): allow more tokens, or bound what it may be"), ErrorKind::Unfinished)
        }
        Err(error) => (error.to_string(), error.kind()),
    };
    Err(Error::Unfinished { text, reason, kind })
}

/// Make a derived schema one of what serde reads: nothing that is not named, one alternative of several, and numbers that fit
/// in their types. Within `allOf` (`is_part`) an object may be named by several schemas together.
fn fit_serde(schema: &mut Value, is_part: bool) {
    let Value::Object(map) = schema else { return };
    // serde takes the first alternative that fits.
    if !map.contains_key("anyOf")
        && let Some(alternatives) = map.remove("oneOf")
    {
        map.insert("anyOf".into(), alternatives);
    }
    let combines = ["anyOf", "allOf", "$ref"].iter().any(|key| map.contains_key(*key));
    // Of alternatives beside properties each one is a part, too.
    let has_parts = is_part || map.contains_key("properties");
    if !is_part && !combines && map.contains_key("properties") && !map.contains_key("additionalProperties") {
        map.insert("additionalProperties".into(), Value::Bool(false));
    }
    bound(map);
    for (key, value) in map.iter_mut() {
        let is_part = key == "allOf" || key == "anyOf" && has_parts;
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs", Value::Object(schemas)) => {
                schemas.values_mut().for_each(|schema| fit_serde(schema, false));
            }
            ("items" | "additionalProperties", value) => fit_serde(value, false),
            ("anyOf" | "allOf" | "prefixItems", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(|schema| fit_serde(schema, is_part));
            }
            _ => {}
        }
    }
}

/// The bounds of integers that the derived schema leaves to their format.
fn bound(schema: &mut Map<String, Value>) {
    let (min, max) = match schema.get("format").and_then(Value::as_str) {
        Some("int8") => (i64::from(i8::MIN), i64::from(i8::MAX)),
        Some("int16") => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
        Some("uint8") => (0, i64::from(u8::MAX)),
        Some("uint16") => (0, i64::from(u16::MAX)),
        Some("uint32") => (0, i64::from(u32::MAX)),
        // As far as numbers of JSON are exact everywhere.
        Some("int64" | "int") => (-(1 << 53), 1 << 53),
        Some("uint64" | "uint") => (0, 1 << 53),
        _ => return,
    };
    schema.entry("minimum").or_insert(min.into());
    schema.entry("maximum").or_insert(max.into());
}
