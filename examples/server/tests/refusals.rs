//! What is refused, and how: by the field's name, with OpenAI's shape of errors and the right status.

mod common;

use common::{DEMO, Request, engine, options, question, serve, server, time_tool};
use qwen_server::Settings;
use serde_json::{Value, json};

/// A chat with these fields besides its messages.
fn chat(extra: &Value) -> Value {
    let mut body = json!({"messages": question("Hi"), "max_tokens": 2});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn wrong_fields_of_chats_are_named() {
    let server = server();
    for (extra, param) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "Hi"}), "messages"),
        (json!({"messages": [1]}), "messages[0]"),
        (json!({"messages": [{"content": "Hi"}]}), "messages[0]"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "robot", "content": "Hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "Hi", "colour": 1}]}), "messages[0].colour"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": "many"}), "max_tokens"),
        (json!({"max_tokens": 3, "max_completion_tokens": 4}), "max_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1000}), "n"),
        (json!({"temperature": -0.5}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"seed": 9_223_372_036_854_775_808_u64}), "seed"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": [1]}), "stop"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias"),
        (json!({"logit_bias": {"100000": 1}}), "logit_bias"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"colour": 1}}), "stream_options.colour"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"store": true}), "store"),
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [{"type": "function", "function": {"name": ""}}]}), "tools[0].function.name"),
        (json!({"tools": [time_tool()], "tool_choice": "sometimes"}), "tool_choice"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": "json"}), "response_format"),
        (json!({"top_k": -1}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"mirostat": {"colour": 1}}), "mirostat"),
        (json!({"functions": []}), "functions"),
        (json!({"audio": {}}), "audio"),
        (json!({"colour": "red"}), "colour"),
        (json!({"max_new_tokens": 3}), "max_new_tokens"),
    ] {
        let error = server.chat(chat(&extra)).error(400);
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("invalid_request_error")),
            "{extra}: {error}"
        );
        assert!(error["message"].as_str().unwrap().contains(param), "{error}");
    }
}

#[test]
fn harmless_fields_are_taken_and_null_is_absent() {
    let server = server();
    let all_null: serde_json::Map<String, Value> = [
        "model",
        "temperature",
        "top_p",
        "n",
        "seed",
        "stop",
        "max_completion_tokens",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "service_tier",
        "nonsense",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), Value::Null))
    .collect();
    server.chat(chat(&Value::Object(all_null))).ok();
    let harmless = json!({
        "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "modalities": ["text"], "response_format": {"type": "text"}, "parallel_tool_calls": true,
        "stream_options": null, "tools": [], "logprobs": false,
    });
    server.chat(chat(&harmless)).ok();
    let ours = json!({
        "top_k": 10, "min_p": 0.05, "typical_p": 0.9, "repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": true,
        "stop_token_ids": [3], "bad_words": ["bad"], "dry": {"multiplier": 0.8}, "preset": "vllm", "cache_salt": "a",
        "priority": 1, "no_repeat_ngram_size": 3, "speculation": {"prompt": {}}, "chat_template_kwargs": {"a": 1},
        "xtc_probability": 0.1, "top_n_sigma": 1.0, "banned_token_ids": [5], "logit_bias": {"7": -100},
    });
    let mut ours = ours;
    ours["speculation"] = serde_json::to_value(qwen::Speculation::Off).unwrap();
    server.chat(chat(&ours)).ok();
    // Messages as clients send them back.
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "bob"},
        {"role": "assistant", "content": "Hello!", "refusal": null, "annotations": [], "audio": null, "function_call": null},
        {"role": "user", "content": "And?"},
    ]);
    server.chat(json!({"messages": messages, "max_tokens": 1})).ok();
}

#[test]
fn bodies_that_are_no_json_are_refused() {
    let server = server();
    let deep = "[".repeat(100_000);
    for body in [&b""[..], b"[]", b"{", b"null", b"{\"a\": \xff\xfe}", b"{\"messages\": NaN}", deep.as_bytes()] {
        let error = server.send(&Request::post("/v1/chat/completions", body)).error(400);
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[test]
fn prompts_beyond_the_context_are_named_as_openai_does() {
    let server = server();
    for text in ["one two three ".repeat(2000), "x".repeat(4 << 20)] {
        let error = server.chat(json!({"messages": question(&text)})).error(400);
        assert_eq!(error["code"], "context_length_exceeded");
        let error = server.post("/v1/completions", &json!({"prompt": text})).error(400);
        assert_eq!(error["code"], "context_length_exceeded");
    }
    let error = server.post("/v1/completions", &json!({"prompt": vec![1; 5000]})).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
}

#[test]
fn bodies_have_a_limit_of_size_and_of_time() {
    let mut settings = Settings::default();
    settings.max_body_bytes = 1000;
    settings.read_timeout = std::time::Duration::from_millis(300);
    let server = serve(settings, Some(engine().clone()));
    let long = json!({"messages": question(&"x".repeat(2000))}).to_string();
    assert_eq!(
        server.send(&Request::post("/v1/chat/completions", long.clone())).error(413)["type"],
        "invalid_request_error"
    );
    // Without a length, too.
    let chunk = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    common::Response::parse(&server.raw(format!("{head}{chunk}").as_bytes())).error(413);
    // A body that never comes.
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
    common::Response::parse(&server.raw(head.as_bytes())).error(408);
    // A head that never ends, and a connection that is not used: both are closed.
    assert!(!server.raw(b"GET /health HTTP/1.1\r\nhost: loc").starts_with(b"HTTP/1.1 2"));
    assert_eq!(server.raw(b""), b"");
    let once = server.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(once.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn unknown_paths_and_methods_are_errors_of_the_same_shape() {
    let server = server();
    server.get("/v2/chat").error(404);
    server.get("/v1/chat/completions").error(405);
    server.post("/v1/models", &json!({})).error(405);
    assert_eq!(server.send(&Request::get("/health").method("HEAD")).status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    // One answer at a time, and nobody waits.
    let engine = options().batch(1).context(256).max_waiting(1).load(DEMO).unwrap();
    let server = serve(Settings::default(), Some(engine.clone()));
    let long = json!({"messages": question("Count."), "ignore_eos": true, "max_tokens": 220, "stream": true});
    let mut streams = Vec::new();
    let mut refused = None;
    // Fill it: answers that nobody reads to their end.
    for _ in 0..64 {
        let mut stream = server.connect();
        use std::io::{Read, Write};
        stream.write_all(&Request::post("/v1/chat/completions", long.to_string()).bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        if &head == b"HTTP/1.1 429" {
            let mut rest = head.to_vec();
            stream.read_to_end(&mut rest).unwrap();
            refused = Some(common::Response::parse(&rest));
            break;
        }
        streams.push(stream);
    }
    let refused = refused.expect("64 answers do not fit");
    assert_eq!(refused.error(429)["code"], "rate_limit_exceeded");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds));
    drop(streams);
    common::until_idle(&engine);
}

#[test]
fn an_answer_may_take_only_so_long() {
    let mut settings = Settings::default();
    settings.request_timeout = std::time::Duration::from_millis(1);
    let server = serve(settings, Some(engine().clone()));
    let body = json!({"messages": question("Count."), "ignore_eos": true, "max_tokens": 900});
    let response = server.chat(body.clone());
    assert_eq!(response.error(504)["code"], "timeout");
    // A second attempt would take as long.
    assert_eq!(response.header("x-should-retry"), Some("false"));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let text = server.chat(streamed).text().to_owned();
    assert!(text.contains("\"code\":\"timeout\"") && !text.contains("[DONE]"), "{text}");
}
