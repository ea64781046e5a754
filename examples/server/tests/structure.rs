//! Answers that have to be something: JSON, calls of tools, what a grammar says.

mod common;

use common::{question, server, time_tool};
use serde_json::{Value, json};

/// A chat at a temperature at which the model says anything.
fn wild(text: &str, seed: u64, extra: Value) -> Value {
    let mut body = json!({"messages": question(text), "temperature": 2.0, "top_k": 0, "seed": seed, "max_tokens": 200});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
        "required": ["name", "age"], "additionalProperties": false,
    })
}

#[test]
fn answers_have_the_format_that_is_asked_for() {
    let server = server();
    let schema = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": person(), "strict": true}});
    for seed in 0..8 {
        let answer = server.chat(wild("Who are you?", seed, json!({"response_format": schema}))).ok();
        let value: Value = serde_json::from_str(content(&answer)).unwrap();
        assert!(value["age"].as_u64().unwrap() <= 130 && value["name"].is_string(), "{value}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");

        let answer = server.chat(wild("Who are you?", seed, json!({"response_format": {"type": "json_object"}}))).ok();
        // It may run out of tokens.
        if answer["choices"][0]["finish_reason"] == "stop" {
            assert!(serde_json::from_str::<Value>(content(&answer)).unwrap().is_object());
        }
        assert!(content(&answer).starts_with('{'));

        let body = json!({"prompt": "Is it so?", "temperature": 2.0, "seed": seed, "grammar": {"regex": "(yes|no)!"}});
        let answer = server.post("/v1/completions", &body).ok();
        assert!(["yes!", "no!"].contains(&answer["choices"][0]["text"].as_str().unwrap()));
    }
    let format = json!({"format": {"type": "json_schema", "name": "person", "schema": person(), "strict": true}});
    let response = server.post("/v1/responses", &json!({"input": "Who are you?", "text": format})).ok();
    let text = response["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap()["age"].is_u64());
    assert_eq!(response["text"], format);
}

#[test]
fn strict_tools_keep_to_their_schemas_where_the_model_need_not_call() {
    let server = server();
    let mut strict = time_tool();
    strict["function"]["strict"] = json!(true);
    let ask = |tool: &Value, question: &str| {
        let body = json!({"messages": [{"role": "user", "content": question}], "tools": [tool], "temperature": 0,
            "max_tokens": 80});
        server.chat(body).ok()["choices"][0].clone()
    };
    // The demo model keeps to this schema by itself.
    for question in ["Which time is it now in Cairo?", "Hello!"] {
        let (held, free) = (ask(&strict, question), ask(&time_tool(), question));
        let arguments = |choice: &Value| choice["message"]["tool_calls"][0]["function"]["arguments"].clone();
        assert_eq!(arguments(&held), arguments(&free));
        assert_eq!(held["message"]["content"], free["message"]["content"]);
    }
}

#[test]
fn calls_come_where_they_are_required() {
    let server = server();
    let parameters = json!({"type": "object", "properties": {"sides": {"enum": [6, 20]}}, "required": ["sides"],
        "additionalProperties": false});
    let dice = json!({"type": "function", "function": {"name": "roll", "strict": true, "parameters": parameters}});
    let nothing = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "wait", "parameters": nothing}}, dice]);
    let named = json!({"type": "function", "function": {"name": "roll"}});
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}});
    for choice in [json!("required"), named.clone(), allowed] {
        for seed in 0..4 {
            let mut body =
                wild("Hello!", seed, json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false}));
            let answer = server.chat(body.clone()).ok();
            let message = &answer["choices"][0]["message"];
            let calls = message["tool_calls"].as_array().unwrap();
            assert_eq!((calls.len(), &answer["choices"][0]["finish_reason"]), (1, &json!("tool_calls")), "{answer}");
            let function = &calls[0]["function"];
            let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
            if choice != "required" {
                assert_eq!(function["name"], "roll");
                assert!(arguments["sides"] == 6 || arguments["sides"] == 20, "{arguments}");
            }
            body["stream"] = json!(true);
            let events = server.chat(body).events();
            let deltas = events
                .iter()
                .flat_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten());
            let streamed: String = deltas.map(|delta| delta["function"]["arguments"].as_str().unwrap()).collect();
            assert_eq!(function["arguments"], streamed);
        }
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_the_field_that_asks_for_it() {
    let server = server();
    let chat = |extra: Value| server.chat(wild("Hi", 0, extra)).error(400);
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let strict = {
        let mut tool = time_tool();
        tool["function"]["strict"] = json!(true);
        tool
    };
    for (extra, param) in [
        (schema(json!({"type": "nonsense"})), "response_format"),
        (schema(json!({"not": {"type": "string"}})), "response_format"),
        (schema(json!({"$ref": "https://example.com/schema"})), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"response_format": {"type": "json_object"}, "tools": [time_tool()]}), "response_format"),
        (json!({"grammar": {"regex": "("}}), "grammar"),
        (json!({"grammar": {"regex": "a", "lark": "b"}}), "grammar"),
        (json!({"grammar": {"regex": "a"}, "response_format": {"type": "json_object"}}), "grammar"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [time_tool()]}),
            "tool_choice",
        ),
        (json!({"tool_choice": {"type": "custom"}, "tools": [time_tool()]}), "tool_choice.type"),
        (json!({"response_format": {"type": "json_object"}, "tools": [strict]}), "response_format"),
        (json!({"grammar": {"regex": "x"}, "tools": [strict]}), "grammar"),
    ] {
        let error = chat(extra.clone());
        assert_eq!(error["param"], param, "{extra}: {error}");
    }
    let format = json!({"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}});
    let error = server.post("/v1/responses", &json!({"input": "Hi", "text": format})).error(400);
    assert_eq!(error["param"], "text.format", "{error}");
}
