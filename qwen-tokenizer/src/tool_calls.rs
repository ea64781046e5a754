//! Calls of tools in what a model wrote, in the form of Qwen2.5 and Hermes: a JSON object between `<tool_call>` and
//! `</tool_call>` for each call.
//!
//! Here an answer's text becomes a message. Which templates write calls in this form is asked in `template`.

use crate::message::{Content, Message};
use crate::tool::ToolCall;

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";
/// What a model writes before it is no part of its answer.
const THOUGHT_BEGIN: &str = "<think>";
const THOUGHT_END: &str = "</think>";

/// The message of the assistant that `answer` is: the calls, and what stands around them. What is no whole call, such as
/// damaged JSON, stays text, as does what is said about calls in a thought.
pub(crate) fn parse(answer: &str) -> Message {
    let (calls, texts) = split(answer, after_thought(answer));
    if calls.is_empty() {
        return Message::assistant(answer);
    }
    // The line breaks around a call belong to its form.
    let texts: Vec<&str> = texts.into_iter().map(str::trim).filter(|text| !text.is_empty()).collect();
    let content = (!texts.is_empty()).then(|| Content::Text(texts.join("\n")));
    Message { content, ..Message::assistant_calls(calls) }
}

/// Whether there is a call of this function in a text.
pub(crate) fn has_call(text: &str, name: &str) -> bool {
    split(text, 0).0.iter().any(|call| call.function.name == name)
}

/// The calls in `text` from a place on, and the texts around them.
fn split(text: &str, mut from: usize) -> (Vec<ToolCall>, Vec<&str>) {
    let (mut calls, mut texts, mut done) = (Vec::new(), Vec::new(), 0);
    while let Some(at) = text.get(from..).and_then(|rest| rest.find(BEGIN)) {
        let begin = from + at;
        from = begin + BEGIN.len();
        let Some((call, length)) = text.get(from..).and_then(first_call) else { continue };
        calls.push(call);
        texts.extend(text.get(done..begin));
        from += length;
        done = from;
    }
    texts.extend(text.get(done..));
    (calls, texts)
}

/// Where the thought with which an answer may begin ends. Templates may have begun it.
fn after_thought(answer: &str) -> usize {
    match answer.find(THOUGHT_END) {
        Some(at) => at + THOUGHT_END.len(),
        None if answer.trim_start().starts_with(THOUGHT_BEGIN) => answer.len(),
        None => 0,
    }
}

/// The call with which `text` begins, and the bytes up to behind its end.
fn first_call(text: &str) -> Option<(ToolCall, usize)> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    // Read as JSON, not up to the next end: an argument may say `</tool_call>`.
    let mut json = serde_json::Deserializer::from_str(text).into_iter::<ToolCall>();
    let call = json.next()?.ok()?;
    let after = text.get(json.byte_offset()..)?;
    let rest = after.trim_start().strip_prefix(END)?;
    Some((call, text.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content, and the calls as JSON.
    fn parsed(answer: &str) -> (Option<String>, Vec<String>) {
        let message = parse(answer);
        let calls = message.tool_calls.iter().map(|call| serde_json::to_string(&call.function).unwrap()).collect();
        (message.text(), calls)
    }

    #[test]
    fn calls_and_the_text_around_them_come_apart() {
        let f = r#"{"name":"f","arguments":{"a": 1}}"#;
        let g = r#"{"name":"g","arguments":{}}"#;
        for (answer, text, calls) in [
            (
                r#"<tool_call>
{"name": "f", "arguments": {"a": 1}}
</tool_call>"#,
                None,
                vec![f],
            ),
            (
                r#"<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><tool_call>{"name":"g","arguments":{}}</tool_call>"#,
                None,
                vec![f, g],
            ),
            (
                "Let me see.\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>",
                Some("Let me see."),
                vec![g],
            ),
            (
                r#"One. <tool_call> {"arguments": {"a": 1}, "name": "f"} </tool_call> Two.
<tool_call>{"name": "g", "arguments": {}}</tool_call>
"#,
                Some("One.\nTwo."),
                vec![f, g],
            ),
        ] {
            let calls: Vec<String> = calls.into_iter().map(str::to_owned).collect();
            assert_eq!(parsed(answer), (text.map(str::to_owned), calls), "{answer}");
        }
    }

    #[test]
    fn arguments_keep_their_form_and_digits() {
        for arguments in [
            r#"{"n": 123456789012345678901234567890, "x": 1.50, "s": "\u00e9 </tool_call> <tool_call>"}"#,
            r#""{\"a\": 1}""#,
            "null",
            "[1, 2]",
        ] {
            let answer = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
            let call = format!(r#"{{"name":"f","arguments":{arguments}}}"#);
            assert_eq!(parsed(&answer), (None, vec![call]));
        }
        // A function without parameters.
        assert_eq!(parse(r#"<tool_call>{"name": "f"}</tool_call>"#).tool_calls[0].function.arguments.as_str(), "");
    }

    #[test]
    fn what_is_no_whole_call_stays_text() {
        for answer in [
            "",
            "Hello.",
            "<tool_call>",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\n</tool_call>",
            "<tool_call>\n{\"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": 1}\n</tool_call>",
            "<tool_call>\n{\"name\": \"f\"} and so on\n</tool_call>",
            "<tool_call>f(1)</tool_call>",
            "<tool_call>\n<function=f>\n</function>\n</tool_call>",
            "<think>\n<tool_call>{\"name\": \"f\"}</tool_call>",
            "<tool_call>{\"name\": \"f\"}</tool_call>\n</think>\n\nNo call.",
        ] {
            assert_eq!(parsed(answer), (Some(answer.to_owned()), vec![]));
        }
        // And beside one that is whole.
        let damaged = "<tool_call>\n{\"name\": f}\n</tool_call>";
        let answer = format!("{damaged}\n<tool_call>\n{{\"name\": \"f\"}}\n</tool_call>");
        assert_eq!(parsed(&answer), (Some(damaged.to_owned()), vec![r#"{"name":"f","arguments":""}"#.to_owned()]));
        // A thought comes before the calls.
        let answer = "<think>\nhm\n</think>\n\n<tool_call>{\"name\": \"f\"}</tool_call>";
        assert_eq!(parsed(answer).0.as_deref(), Some("<think>\nhm\n</think>"));
    }

    #[test]
    fn a_long_answer_of_beginnings_takes_little_time() {
        for piece in [
            "<tool_call>",
            "<tool_call>{",
            "<tool_call>{\"",
            "<tool_call>{\"a\":\"",
            "<tool_call>{\"name\":[",
            "</tool_call>",
        ] {
            let answer = piece.repeat(200_000);
            assert_eq!(parse(&answer).text().map(|text| text.len()), Some(answer.len()));
        }
    }
}
