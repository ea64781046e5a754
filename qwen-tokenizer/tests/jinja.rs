//! Templates against what Jinja itself makes of them, set up as transformers does: `tools/check-jinja.py --write` makes
//! the cases, and compares many more by itself.
//!
//! `QWEN_JINJA_CASES` names a file with more of them.

use qwen_tokenizer::{ChatInput, ChatTemplate, Error};
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
    /// The variables of this case alone.
    variables: Option<Map<String, Value>>,
}

fn render(template: &str, variables: &Map<String, Value>) -> Result<String, Error> {
    let json = |name: &str| variables.get(name).unwrap_or(&Value::Null).to_string();
    let (messages, tools) = (json("messages"), json("tools"));
    let others = variables.iter().filter(|(name, _)| !matches!(name.as_str(), "messages" | "tools"));
    let input = ChatInput::from_json(&messages).tools_json(&tools).now(1_700_000_000);
    let input = others.fold(input, |input, (name, value)| input.variable(name, value.clone()));
    ChatTemplate::new(template)?.render(&input)
}

fn check(json: &str) {
    let cases: Cases = serde_json::from_str(json).unwrap();
    let mut failures = Vec::new();
    for case in &cases.cases {
        let found = render(&case.template, case.variables.as_ref().unwrap_or(&cases.variables));
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

#[test]
fn what_no_template_can_have_is_an_error_of_loading() {
    for (source, problem) in [
        ("a\n{% if false %}{{ x | tojsn }}{% endif %}", "line 2: there is no filter `tojsn`"),
        ("{% if false %}\n{{ content.startwith('<') }}{% endif %}", "is `startswith` meant?"),
        ("{% for m in messages %}{{ m is nope }}{% endfor %}", "there is no test `nope`"),
        ("{% if false %}{{ format_date() }}{% endif %}", "there is no function `format_date`"),
        ("{% set _ = calls.append(1) %}", "make a new value, such as `list + [item]`"),
        ("{{ names | random }}", "would differ from one rendering to the next"),
        ("{% include 'other.jinja' %}", "the tag `include` reads another file"),
        ("\n{% extends 'other.jinja' %}", "line 2: the tag `extends` reads another file"),
        ("{% import 'other.jinja' as other %}", "the tag `import` reads another file"),
        ("{% from 'other.jinja' import f %}", "the tag `from` reads another file"),
        ("{% block a required %}{% endblock %}", "the block `a` is `required` of a template that extends this one"),
        ("{% block a %}{% endblock %}\n{% block a %}{% endblock %}", "line 2: the block `a` is there twice"),
        ("{% autoescape true %}{{ x }}{% endautoescape %}", "the tag `autoescape` makes HTML of texts"),
    ] {
        let error = ChatTemplate::new(source).unwrap_err();
        assert!(matches!(error, Error::TemplateSyntax { .. }), "{source}: {error}");
        assert!(error.to_string().contains(problem), "{source}: {error}");
    }
}

#[test]
fn errors_of_rendering_name_the_line_and_the_value() {
    for (source, problem) in [
        ("a\n{{ tool.name.upper() }}", "line 2: `tool` is undefined"),
        ("{{ messages[0].content + '' }}", "line 1: `content` of a value of type dict is undefined"),
        ("\n\n{{ 'a' + 1 }}", "line 3: `+` does not take str and int; turn both into texts with `~`"),
        ("{{ (messages | map('upper'))[1:] }}", "make a list of it first, with `| list`"),
    ] {
        let messages = serde_json::from_str(r#"{"messages": [{"role": "user"}]}"#).unwrap();
        let error = render(source, &messages).unwrap_err().to_string();
        assert!(error.contains(problem), "{source}: {error}");
    }
}
