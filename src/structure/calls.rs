//! Calls of tools as a grammar: the form in which Qwen2.5's template writes them.

use qwen_tokenizer::{Tokenizer, Tool};
use serde_json::{Value, json};

use super::schema;
use crate::grammar::Grammar;

/// The grammar of one or several calls, in Lark.
///
/// # Errors
/// For a tool without a name, and for what is wrong with the schema of its parameters.
pub(super) fn lark(tools: &[Tool], grammar: &Grammar, tokenizer: &Tokenizer) -> Result<String, String> {
    let [begin, end] = ["<tool_call>", "</tool_call>"].map(|marker| marker_of(marker, tokenizer));
    let more = if grammar.parallel_calls { "(\"\\n\" call)*" } else { "" };
    let mut names = Vec::with_capacity(tools.len());
    let mut rules = String::new();
    for (index, tool) in tools.iter().enumerate() {
        let name = tool.name().ok_or("a tool has no name")?;
        let parameters = match tool.parameters() {
            None | Some(Value::Null) => json!({"type": "object"}),
            Some(parameters) => parameters.clone(),
        };
        let parameters = schema::prepared(&parameters, grammar)
            .map_err(|reason| format!("the parameters of tool `{name}`: {reason}"))?;
        let head = quoted(&format!("{{\"name\": {}, \"arguments\": ", Value::from(name)));
        rules += &format!("f{index}: {head} %json {parameters}\n");
        names.push(format!("f{index}"));
    }
    let thought = if grammar.after_thought {
        match marker_of("</think>", tokenizer) {
            marker if marker.starts_with('<') => format!("/(?s:.*)/ {marker} /\\n{{0,2}}/ "),
            _ => "thought /\\n{0,2}/ ".into(),
        }
    } else {
        String::new()
    };
    let is_control = begin.starts_with('<');
    if grammar.or_text {
        // A thought is text, too. What begins a call is the end of a text before it.
        let (before, after) = match is_control {
            true => (format!("/(?s:.*)/ {begin}"), "/(?s:.*)/".to_owned()),
            false => ("before".to_owned(), "TEXT".to_owned()),
        };
        let terminals = match is_control {
            true => String::new(),
            false => "before[lazy]: /(?s:.*?)<tool_call>/\nTEXT: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/\n".to_owned(),
        };
        let several = if grammar.parallel_calls { "*" } else { "?" };
        return Ok(format!(
            "start: call{several} {after}\ncall: {before} \"\\n\" ({}) \"}}\\n\" {end}\n{terminals}{rules}",
            names.join(" | ")
        ));
    }
    let lazy = if thought.starts_with("thought") { "thought[lazy]: /(?s:.*?)<\\/think>/\n" } else { "" };
    Ok(format!(
        "start: {thought}call {more}\ncall: {begin} \"\\n\" ({}) \"}}\\n\" {end}\n{lazy}{rules}",
        names.join(" | ")
    ))
}

/// A marker is a control token where the vocabulary has one, else a text.
fn marker_of(marker: &str, tokenizer: &Tokenizer) -> String {
    let is_control = tokenizer.control_ids().any(|id| tokenizer.id_to_token(id).as_deref() == Some(marker));
    if is_control { marker.to_owned() } else { quoted(marker) }
}

/// Lark's strings are those of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
