//! The messages and tools of a request, with everything refused that would be lost.

use qwen::{Content, Message, Role, Tool};
use serde_json::{Map, Value};

use crate::error::{ApiError, Result};

/// Keys of messages, besides those that the library knows, that templates may use.
const KNOWN: [&str; 4] = ["name", "reasoning_content", "reasoning", "thinking"];
/// Keys that say nothing where they are empty, as clients send them back.
const EMPTY: [&str; 4] = ["refusal", "annotations", "audio", "function_call"];

/// # Errors
/// For roles, keys and kinds of content that no template here shows; each is named by its place.
pub(crate) fn read(value: Value) -> Result<Vec<Message>> {
    let Value::Array(values) = value else { return Err(ApiError::invalid("messages", "must be a list")) };
    if values.is_empty() {
        return Err(ApiError::invalid("messages", "must have at least one message"));
    }
    values.into_iter().enumerate().map(|(index, value)| message(index, value)).collect()
}

fn message(index: usize, value: Value) -> Result<Message> {
    let at = format!("messages[{index}]");
    let Value::Object(mut object) = value else { return Err(ApiError::invalid(at, "must be an object")) };
    for key in EMPTY {
        let is_empty = match object.get(key) {
            Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            _ => false,
        };
        if is_empty {
            object.shift_remove(key);
        }
    }
    // As in OpenAI's API, a call is named by its type; there is one type here.
    if let Some(Value::Array(calls)) = object.get("tool_calls") {
        for (number, call) in calls.iter().enumerate() {
            let kind = call.get("type").and_then(Value::as_str).unwrap_or("function");
            if kind != "function" {
                let at = format!("{at}.tool_calls[{number}].type");
                return Err(ApiError::unsupported(at, format!("must be function, is {kind:?}")));
            }
        }
    }
    let mut message: Message =
        serde_json::from_value(Value::Object(object)).map_err(|error| ApiError::invalid(at.as_str(), error))?;
    message.extra.retain(|_, value| !value.is_null());
    if let Some((key, _)) = message.extra.iter().find(|(key, _)| !KNOWN.contains(&key.as_str())) {
        return Err(ApiError::invalid(format!("{at}.{key}"), "this server does not know this field"));
    }
    match &message.role {
        Role::System | Role::User | Role::Tool | Role::Assistant => {}
        Role::Other(role) if role == "developer" => message.role = Role::System,
        role => {
            let reason = format!("must be system, developer, user, assistant or tool, is {:?}", role.as_str());
            return Err(ApiError::invalid(format!("{at}.role"), reason));
        }
    }
    let has_calls = message.role == Role::Assistant && !message.tool_calls.is_empty();
    match &message.content {
        None if !has_calls => return Err(ApiError::invalid(format!("{at}.content"), "is missing")),
        Some(Content::Other(_)) => {
            return Err(ApiError::invalid(format!("{at}.content"), "must be a text or a list of parts"));
        }
        _ => {}
    }
    Ok(message)
}

/// # Errors
/// For tools that are no functions.
pub(crate) fn tools(value: Value) -> Result<Vec<Tool>> {
    let Value::Array(values) = value else { return Err(ApiError::invalid("tools", "must be a list")) };
    values.into_iter().enumerate().map(|(index, value)| tool(&format!("tools[{index}]"), value)).collect()
}

fn tool(at: &str, value: Value) -> Result<Tool> {
    let Value::Object(object) = value else { return Err(ApiError::invalid(at, "must be an object")) };
    match object.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(kind) => {
            return Err(ApiError::unsupported(format!("{at}.type"), format!("must be function, is {kind:?}")));
        }
        None => return Err(ApiError::invalid(format!("{at}.type"), "is missing")),
    }
    let Some(Value::Object(function)) = object.get("function") else {
        return Err(ApiError::invalid(format!("{at}.function"), "must be an object"));
    };
    check_function(&format!("{at}.function"), function)?;
    Ok(Tool::from_json(object))
}

pub(crate) fn check_function(at: &str, function: &Map<String, Value>) -> Result<()> {
    match function.get("name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => {}
        _ => return Err(ApiError::invalid(format!("{at}.name"), "must be a text that is not empty")),
    }
    if function.get("strict").is_some_and(|strict| !strict.is_boolean() && !strict.is_null()) {
        return Err(ApiError::invalid(format!("{at}.strict"), "must be true or false"));
    }
    match function.get("parameters") {
        None | Some(Value::Object(_) | Value::Null) => Ok(()),
        Some(_) => Err(ApiError::invalid(format!("{at}.parameters"), "must be an object")),
    }
}
