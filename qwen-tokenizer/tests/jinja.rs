//! Templates against what Jinja itself makes of them, set up as transformers does: `data/jinja.py` writes the cases.
//!
//! `QWEN_JINJA_CASES` names a file with more of them, random ones for example.

use qwen_tokenizer::{ChatInput, ChatTemplate};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Cases {
    variables: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    /// Nothing where Jinja fails.
    text: Option<String>,
}

fn check(json: &str) {
    let cases: Cases = serde_json::from_str(json).unwrap();
    let messages = cases.variables["messages"].to_string();
    let mut input = ChatInput::from_json(&messages);
    for (name, value) in cases.variables.iter().filter(|(name, _)| *name != "messages" && *name != "big") {
        input = input.variable(name, value.clone());
    }
    let mut failures = Vec::new();
    for case in &cases.cases {
        // A `serde_json::Value` does not hold an integer of this length.
        let template = case.template.replace("big", "123456789012345678901234567890");
        let found = ChatTemplate::new(&template).and_then(|template| template.render(&input));
        if found.as_ref().ok() != case.text.as_ref() {
            failures.push(format!("{:?}\n  is      {found:?}\n  must be {:?}", case.template, case.text));
        }
    }
    eprintln!("{} of {} cases pass", cases.cases.len() - failures.len(), cases.cases.len());
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn templates_render_as_jinja_renders_them() {
    check(include_str!("data/jinja.json"));
    if let Some(path) = std::env::var_os("QWEN_JINJA_CASES") {
        check(&std::fs::read_to_string(path).unwrap());
    }
}
