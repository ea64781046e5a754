//! Renders templates for `tools/check-jinja.py`, which compares them with Python's Jinja.
//!
//! One case a line of standard input, as JSON: `{"template": "...", "variables": {"messages": [], ...}}`. One line of
//! standard output for each: `{"text": "..."}`, or `{"error": "...", "at": "load"}` (or `"render"`).

use std::error::Error;
use std::io::{BufRead, Write};

use qwen_tokenizer::{ChatInput, ChatTemplate};
use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let case: Value = serde_json::from_str(&line?)?;
        let template = case["template"].as_str().ok_or("a case without a template")?;
        let variables: &Map<String, Value> = case["variables"].as_object().ok_or("a case without variables")?;
        let answer = match ChatTemplate::new(template) {
            Err(error) => json!({"error": error.to_string(), "at": "load"}),
            Ok(template) => match render(&template, variables) {
                Ok(text) => json!({"text": text}),
                Err(error) => json!({"error": error.to_string(), "at": "render"}),
            },
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn render(template: &ChatTemplate, variables: &Map<String, Value>) -> qwen_tokenizer::Result<String> {
    let messages = variables.get("messages").unwrap_or(&Value::Null).to_string();
    let tools = variables.get("tools").unwrap_or(&Value::Null).to_string();
    let others = variables.iter().filter(|(name, _)| !matches!(name.as_str(), "messages" | "tools"));
    let input = ChatInput::from_json(&messages).tools_json(&tools).now(1_700_000_000);
    template.render(&others.fold(input, |input, (name, value)| input.variable(name, value.clone())))
}
