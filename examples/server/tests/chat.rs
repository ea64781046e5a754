//! Chats: what streams is what comes at once is what the library says, and each field does what it says.

mod common;

use common::{engine, question, server, time_tool};
use qwen::{ChatInput, GenerateOptions, Message, Tool};
use serde_json::{Value, json};

/// What the chunks of a stream say together, as the answer that would have come at once.
fn joined(events: &[Value], choice: usize) -> Value {
    let mut message = json!({"content": "", "calls": [], "tokens": []});
    let mut finish = Value::Null;
    for event in events {
        for found in event["choices"].as_array().unwrap().iter().filter(|found| found["index"] == choice) {
            assert!(finish.is_null(), "nothing follows the finish reason");
            finish = found["finish_reason"].clone();
            let delta = &found["delta"];
            if let Some(text) = delta["content"].as_str() {
                message["content"] = json!(message["content"].as_str().unwrap().to_owned() + text);
            }
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let calls = message["calls"].as_array_mut().unwrap();
                let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                match call["function"]["name"].as_str() {
                    Some(name) => {
                        assert_eq!(index, calls.len(), "indices are dense");
                        assert!(call["id"].as_str().is_some_and(|id| !id.is_empty()) && call["type"] == "function");
                        calls.push(json!({"name": name, "id": call["id"], "arguments": ""}));
                    }
                    None => assert!(call["id"].is_null()),
                }
                let arguments = calls[index]["arguments"].as_str().unwrap().to_owned();
                calls[index]["arguments"] = json!(arguments + call["function"]["arguments"].as_str().unwrap());
            }
            for token in found["logprobs"]["content"].as_array().into_iter().flatten() {
                message["tokens"].as_array_mut().unwrap().push(token.clone());
            }
        }
    }
    message["finish"] = finish;
    message
}

/// The same of an answer that came at once.
fn whole(answer: &Value, choice: usize) -> Value {
    let choice = &answer["choices"][choice];
    let message = &choice["message"];
    let calls: Vec<Value> = message["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|call| json!({"name": call["function"]["name"], "id": "", "arguments": call["function"]["arguments"]}))
        .collect();
    let tokens = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
    let content = message["content"].as_str().unwrap_or_default();
    json!({"content": content, "calls": calls, "tokens": tokens, "finish": choice["finish_reason"]})
}

fn without_ids(mut message: Value) -> Value {
    for call in message["calls"].as_array_mut().unwrap() {
        call["id"] = json!("");
    }
    message
}

#[test]
fn an_answer_is_the_librarys_own_streamed_or_not() {
    let server = server();
    let engine = engine();
    for (text, options) in [
        ("What is 3 + 4?", json!({"temperature": 0})),
        ("Say something.", json!({"temperature": 1.5, "seed": 7, "max_tokens": 24})),
        ("Say something.", json!({"temperature": 1.2, "seed": -7, "top_k": 30, "min_p": 0.01, "max_tokens": 24})),
        ("What is the capital of Peru?", json!({"temperature": 0, "stop": ["Peru", "x"]})),
    ] {
        let messages = [Message::user(text)];
        let ids = engine.tokenizer().unwrap().encode_chat(&ChatInput::new(&messages)).unwrap().ids;
        let mut own = GenerateOptions::new();
        own.temperature = options["temperature"].as_f64().map(|value| value as f32);
        own.top_k = options["top_k"].as_u64().map(|value| value as usize);
        own.min_p = options["min_p"].as_f64().map(|value| value as f32);
        own.max_new_tokens = options["max_tokens"].as_u64().map(|value| value as usize);
        own.seed = options["seed"].as_i64().map(i64::cast_unsigned);
        own.stop = serde_json::from_value(options["stop"].clone()).unwrap_or_default();
        let mut stream = engine.generate_text(ids, &own).unwrap();
        let expected: String = stream.by_ref().collect::<qwen::Result<_>>().unwrap();

        let mut body = json!({"messages": question(text), "logprobs": true, "top_logprobs": 2});
        body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let answer = server.chat(body.clone()).ok();
        assert_eq!(answer["choices"][0]["message"]["content"], expected.as_str());
        assert_eq!(answer["object"], "chat.completion");
        let (usage, stats) = (&answer["usage"], stream.stats());
        assert_eq!(
            (&usage["prompt_tokens"], &usage["completion_tokens"]),
            (&json!(stats.prompt_tokens), &json!(stats.new_tokens))
        );

        // The tokens spell the text, also where a stop string cuts it.
        let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
        let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap());
        let bytes: Vec<u8> = bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect();
        assert!(bytes.starts_with(expected.as_bytes()), "{expected:?}");
        assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));

        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let events = server.chat(body).events();
        let (last, chunks) = events.split_last().unwrap();
        assert_eq!(joined(chunks, 0), whole(&answer, 0));
        assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &usage["total_tokens"]));
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == events[0]["id"]));
        assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    }
}

#[test]
fn a_call_of_a_tool_comes_whole_or_in_pieces() {
    let server = server();
    let body = json!({
        "messages": question("Which time is it now in Cairo?"), "tools": [time_tool()], "temperature": 0,
        "parallel_tool_calls": true, "tool_choice": "auto",
    });
    let answer = server.chat(body.clone()).ok();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    let call = &message["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "get_time", "arguments": "{\"city\": \"Cairo\"}"}));
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = server.chat(streamed).events();
    assert_eq!(without_ids(joined(&events, 0)), without_ids(whole(&answer, 0)));
    assert!(events.iter().filter(|event| !event["choices"][0]["delta"]["tool_calls"].is_null()).count() > 1);

    // Its result goes back, and the model answers it.
    let messages = json!([
        {"role": "user", "content": "Which time is it now in Cairo?"},
        message,
        {"role": "tool", "tool_call_id": call["id"], "content": "12:00"},
    ]);
    let answer = server.chat(json!({"messages": messages, "tools": [time_tool()], "temperature": 0})).ok();
    assert!(answer["choices"][0]["message"]["content"].as_str().is_some_and(|text| text.contains("12:00")), "{answer}");

    // Without the choice of calling, it answers in text.
    let mut none = body;
    none["tool_choice"] = json!("none");
    assert!(server.chat(none).ok()["choices"][0]["message"]["tool_calls"].is_null());
}

#[test]
fn several_answers_differ_by_their_seeds() {
    let server = server();
    let body = |seed: i64, n: usize| json!({"messages": question("Tell me a word."), "temperature": 1.5, "seed": seed, "n": n, "max_tokens": 12});
    let answer = server.chat(body(5, 3)).ok();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    for choice in 0..3 {
        let alone = server.chat(body(5 + choice as i64, 1)).ok();
        assert_eq!(whole(&answer, choice), whole(&alone, 0));
    }
    let mut streamed = body(5, 3);
    streamed["stream"] = json!(true);
    let events = server.chat(streamed).events();
    for choice in 0..3 {
        assert_eq!(joined(&events, choice), whole(&answer, choice));
    }
    // Its prompt is counted once.
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], server.chat(body(5, 1)).ok()["usage"]["prompt_tokens"]);
}

#[test]
fn earlier_prompts_are_cached() {
    let server = server();
    let long =
        json!({"messages": question(&"one two three four five six ".repeat(20)), "max_tokens": 1, "temperature": 0});
    server.chat(long.clone()).ok();
    let again = server.chat(long).ok();
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{again}");
}

#[test]
fn a_tool_is_rendered_as_the_library_does() {
    let server = server();
    let tool: Tool = serde_json::from_value(time_tool()).unwrap();
    let messages = [Message::user("Hello!")];
    let ids = engine().tokenizer().unwrap().encode_chat(&ChatInput::new(&messages).tools(&[tool])).unwrap().ids;
    let answer = server.chat(json!({"messages": question("Hello!"), "tools": [time_tool()], "max_tokens": 1})).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
}
