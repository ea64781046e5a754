//! The demo checkpoint answers 50 questions that its training never saw.
#![cfg(feature = "cpu")]

mod common;

use qwen::{ChatInput, FinishReason, GenerateOptions, Message, Precision, Tool};
use serde_json::Value;

/// Whether the answer is the expected one (tests/data/README.md).
fn is_right(answer: &str, expect: &Value) -> bool {
    if let Some(text) = expect.as_str() {
        return answer == text;
    }
    if let Some(value) = expect.get("json") {
        return serde_json::from_str::<Value>(answer).is_ok_and(|found| found == *value);
    }
    let call = answer.trim().strip_prefix("<tool_call>").and_then(|rest| rest.strip_suffix("</tool_call>"));
    let call = call.and_then(|call| serde_json::from_str::<Value>(call).ok());
    expect.get("tool_call").is_some() && call.as_ref() == expect.get("tool_call")
}

/// Nine of ten. These weights reach 46 (examples/demo-model/README.md).
const RIGHT: usize = 45;

#[test]
fn held_out_questions_are_answered() {
    let questions: Vec<Value> = serde_json::from_str(include_str!("data/demo_questions.json")).unwrap();
    assert_eq!(questions.len(), 50);
    for precision in [Precision::Fast, Precision::Exact] {
        let engine = common::options().precision(precision).load(common::demo()).unwrap();
        let tokenizer = engine.tokenizer().unwrap();
        let mut right = 0;
        for question in &questions {
            let messages: Vec<Message> = serde_json::from_value(question["messages"].clone()).unwrap();
            let tools: Option<Vec<Tool>> =
                serde_json::from_value(question.get("tools").cloned().unwrap_or_default()).unwrap();
            let tools = tools.unwrap_or_default();
            let ids = tokenizer.encode_chat(&ChatInput::new(&messages).tools(&tools)).unwrap().ids;
            let mut stream = engine.generate_ids(ids, &GenerateOptions::new().greedy()).unwrap();
            let answer: Vec<u32> = (&mut stream).collect::<qwen::Result<_>>().unwrap();
            // Control tokens that are not special (tool calls) are part of the text.
            let text = tokenizer.decode(&answer, true);
            if stream.finish_reason() == Some(FinishReason::Stop) && is_right(&text, &question["expect"]) {
                right += 1;
            } else {
                println!("{}: {text:?} instead of {}", question["category"], question["expect"]);
            }
        }
        println!("{precision:?}: {right} of 50 right");
        assert!(right >= RIGHT, "{precision:?}: only {right} of 50 right");
    }
}
