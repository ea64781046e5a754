//! The items of a response's input as messages of a chat, and its tools as theirs.

use serde_json::{Map, Value, json};

use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// Tools that only OpenAI's own servers have. Clients such as Codex name some beside functions; they are left out.
const HOSTED: [&str; 13] = [
    "web_search",
    "web_search_preview",
    "file_search",
    "code_interpreter",
    "image_generation",
    "computer_use_preview",
    "computer",
    "local_shell",
    "shell",
    "apply_patch",
    "mcp",
    "custom",
    "namespace",
];

/// The messages of `input`, a text or a list of items, behind the instructions.
///
/// # Errors
/// For items that are no part of a conversation in text.
pub(super) fn messages(instructions: Option<String>, input: Value) -> Result<Value> {
    let mut messages: Vec<Value> = Vec::new();
    messages.extend(instructions.map(|text| json!({"role": "system", "content": text})));
    match input {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                add(&mut messages, &format!("input[{index}]"), item)?;
            }
        }
        _ => return Err(ApiError::invalid("input", "must be a text or a list of items")),
    }
    Ok(Value::Array(messages))
}

fn add(messages: &mut Vec<Value>, at: &str, item: Value) -> Result<()> {
    let mut item = Fields::of(item, at)?;
    let kind = item.take::<String>("type")?.unwrap_or_else(|| "message".into());
    match kind.as_str() {
        "message" => {
            let role: String = item.require("role")?;
            let content = content(&item.name("content"), item.require("content")?)?;
            item.ignore(&["id", "status", "phase"]);
            item.finish()?;
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let (name, arguments): (String, String) = (item.require("name")?, item.require("arguments")?);
            let id: String = item.require("call_id")?;
            item.ignore(&["id", "status"]);
            item.finish()?;
            let function = json!({"name": name, "arguments": arguments});
            let call = json!({"id": id, "type": "function", "function": function});
            // Calls of one answer are one message.
            match messages.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let id: String = item.require("call_id")?;
            let output = content(&item.name("output"), item.require("output")?)?;
            item.ignore(&["id", "status"]);
            item.finish()?;
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        // A model of this family does not read its earlier thoughts.
        "reasoning" => {}
        kind => return Err(ApiError::unsupported(item.name("type"), format!("{kind:?} is not supported"))),
    }
    Ok(())
}

/// A text, or the texts of a list of parts.
fn content(at: &str, value: Value) -> Result<Value> {
    let parts = match value {
        Value::Array(parts) => parts,
        text @ Value::String(_) => return Ok(text),
        _ => return Err(ApiError::invalid(at, "must be a text or a list of parts")),
    };
    let part = |(index, part): (usize, Value)| {
        let mut part = Fields::of(part, &format!("{at}[{index}]"))?;
        let kind: String = part.require("type")?;
        if !["input_text", "output_text", "text", "summary_text"].contains(&kind.as_str()) {
            return Err(ApiError::unsupported(part.name("type"), format!("{kind:?} is not supported: use input_text")));
        }
        let text: String = part.require("text")?;
        part.ignore(&["annotations", "logprobs"]);
        part.finish()?;
        Ok(json!({"type": "text", "text": text}))
    };
    parts.into_iter().enumerate().map(part).collect()
}

/// The functions among `tools`, in the form that chats have.
///
/// # Errors
/// For tools of kinds that nobody has.
pub(super) fn tools(tools: Value) -> Result<Value> {
    let Value::Array(tools) = tools else { return Err(ApiError::invalid("tools", "must be a list")) };
    let mut functions = Vec::new();
    for (index, tool) in tools.into_iter().enumerate() {
        let at = format!("tools[{index}]");
        let Value::Object(mut function) = tool else { return Err(ApiError::invalid(at, "must be an object")) };
        match function.shift_remove("type").as_ref().and_then(Value::as_str) {
            Some("function") => {
                function.retain(|_, value| !value.is_null());
                let function: Map<String, Value> = function;
                functions.push(json!({"type": "function", "function": function}));
            }
            Some(kind) if HOSTED.contains(&kind) => {
                tracing::debug!("the tool {kind} is left out: it is none of this server's");
            }
            Some(kind) => {
                return Err(ApiError::unsupported(format!("{at}.type"), format!("must be function, is {kind:?}")));
            }
            None => return Err(ApiError::invalid(format!("{at}.type"), "is missing")),
        }
    }
    Ok(Value::Array(functions))
}
