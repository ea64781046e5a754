//! A request for a response as the request of a chat that it is.

use serde_json::{Map, Value, json};

use super::input;
use crate::app::App;
use crate::chat::request::ChatRequest;
use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// Fields that mean the same in a chat.
const SAME: [&str; 10] = [
    "model",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "stream",
    "user",
    "seed",
    "top_k",
    "min_p",
    "chat_template_kwargs",
];
/// Fields that change nothing here.
const IGNORED: [&str; 8] = [
    "include",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "client_metadata",
    "reasoning",
    "stream_options",
];

/// The chat, and what a response repeats of its request.
///
/// # Errors
/// For fields that are wrong, that need a memory of earlier requests, or that this server does not know.
pub(super) fn read(app: &App, mut fields: Fields) -> Result<(ChatRequest, Value)> {
    let mut chat = Map::new();
    let instructions: Option<String> = fields.take("instructions")?;
    let input = fields
        .value("input")
        .ok_or_else(|| ApiError::invalid("input", "is missing").code("missing_required_parameter"))?;
    chat.insert("messages".into(), input::messages(instructions.clone(), input)?);
    let (tools, choice) = (fields.value("tools"), fields.value("tool_choice"));
    if let Some(tools) = &tools {
        chat.insert("tools".into(), input::tools(tools.clone())?);
    }
    if let Some(choice) = &choice {
        chat.insert("tool_choice".into(), self::choice(choice.clone()));
    }
    let max_output_tokens = fields.value("max_output_tokens");
    if let Some(max) = &max_output_tokens {
        let is_count = max.as_u64().is_some_and(|max| max > 0);
        if !is_count {
            return Err(ApiError::invalid("max_output_tokens", "must be a whole number of at least 1"));
        }
        chat.insert("max_completion_tokens".into(), max.clone());
    }
    let mut echoed = json!({
        "instructions": instructions, "max_output_tokens": max_output_tokens, "tools": tools.unwrap_or(json!([])),
        "tool_choice": choice.unwrap_or(json!("auto")), "parallel_tool_calls": true, "temperature": null, "top_p": null,
        "metadata": {}, "text": {"format": {"type": "text"}}, "truncation": "disabled", "store": false,
        "previous_response_id": null, "background": false,
    });
    for name in SAME {
        if let Some(value) = fields.value(name) {
            if echoed.get(name).is_some() {
                echoed[name] = value.clone();
            }
            chat.insert(name.into(), value);
        }
    }
    if let Some(mut text) = fields.object("text")? {
        if let Some(format) = text.value("format") {
            echoed["text"]["format"] = format.clone();
            chat.insert("response_format".into(), self::format(format)?);
        }
        text.ignore(&["verbosity"]);
        text.finish()?;
    }
    if let Some(metadata) = fields.take::<Map<String, Value>>("metadata")? {
        echoed["metadata"] = Value::Object(metadata);
    }
    let no_memory = "nothing is stored here: send the whole conversation as `input`";
    fields.only("store", &[json!(false)], no_memory)?;
    fields.only("previous_response_id", &[], no_memory)?;
    fields.only("conversation", &[], no_memory)?;
    fields.only("background", &[json!(false)], "answers are not computed in the background")?;
    fields.only("truncation", &[json!("disabled")], "conversations are not cut")?;
    fields.only("service_tier", &[json!("auto"), json!("default")], "there is one tier: auto")?;
    fields.only("top_logprobs", &[json!(0)], "log-probabilities are in chats and completions only")?;
    fields.ignore(&IGNORED);
    fields.finish()?;
    let request = ChatRequest::read(app, Fields::of_object(chat)).map_err(|error| error.renamed(rename))?;
    Ok((request, echoed))
}

/// The choice of a tool in the form of chats.
fn choice(choice: Value) -> Value {
    match (choice.get("type").and_then(Value::as_str), choice.get("name")) {
        (Some("function"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        _ => choice,
    }
}

/// The format of an answer in the form of chats.
fn format(format: Value) -> Result<Value> {
    match format {
        Value::Object(mut schema) if schema.get("type").is_some_and(|kind| kind == "json_schema") => {
            schema.shift_remove("type");
            Ok(json!({"type": "json_schema", "json_schema": schema}))
        }
        Value::Object(_) => Ok(format),
        _ => Err(ApiError::invalid("text.format", "must be an object")),
    }
}

/// The name of a field of a chat in the request.
pub(super) fn rename(param: &str) -> String {
    match param {
        "max_completion_tokens" | "max_tokens" => "max_output_tokens".into(),
        "messages" => "input".into(),
        param if param.starts_with("response_format") => param.replacen("response_format", "text.format", 1),
        param => param.into(),
    }
}
