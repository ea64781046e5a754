//! Every endpoint besides chats: what it gives is what the library gives.

mod common;

use common::{DEMO, engine, options, question, serve, server, time_tool};
use qwen::{ChatInput, EmbedOptions, GenerateOptions, Message, Tool};
use qwen_server::Settings;
use serde_json::{Value, json};

fn bytes_of(base64: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0u32;
    let mut bytes = Vec::new();
    for (at, digit) in base64.trim_end_matches('=').bytes().enumerate() {
        bits = bits << 6 | alphabet.iter().position(|found| *found == digit).unwrap() as u32;
        if at % 4 != 0 {
            bytes.push((bits >> (6 - 2 * (at % 4))) as u8);
        }
    }
    bytes
}

#[test]
fn completions_go_on_from_texts_and_ids() {
    let server = server();
    let greedy = GenerateOptions::new().greedy().max_new_tokens(8);
    let expected = engine().generate("What is 3 + 4?", &greedy).unwrap().text().unwrap();
    let ids = engine().tokenizer().unwrap().encode_prompt("What is 3 + 4?", 100).unwrap();
    for prompt in [json!("What is 3 + 4?"), json!(["What is 3 + 4?"]), json!(ids), json!([ids])] {
        let answer = server.post("/v1/completions", &json!({"prompt": prompt, "temperature": 0, "max_tokens": 8})).ok();
        assert_eq!((&answer["object"], &answer["choices"][0]["text"]), (&json!("text_completion"), &json!(expected)));
        assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    }
    // Several prompts with several answers each, in the order of the prompts.
    let body = json!({"prompt": ["What is 3 + 4?", "The sky is"], "n": 2, "temperature": 0, "max_tokens": 8});
    let answer = server.post("/v1/completions", &body).ok();
    let texts: Vec<&Value> = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!((texts.len(), texts[0], texts[1], texts[2]), (4, &json!(expected), &json!(expected), texts[3]));
    // Sixteen tokens where nothing else is said, as in OpenAI's API.
    let default = server.post("/v1/completions", &json!({"prompt": "Say", "ignore_eos": true})).ok();
    assert_eq!(
        (&default["usage"]["completion_tokens"], &default["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
}

#[test]
fn completions_stream_what_they_say_at_once() {
    let server = server();
    for extra in [json!({}), json!({"logprobs": 2}), json!({"echo": true, "logprobs": 1}), json!({"n": 2, "stop": "7"})]
    {
        let mut body = json!({"prompt": "What is 3 + 4?", "temperature": 0.8, "seed": 3, "max_tokens": 10});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = server.post("/v1/completions", &body).ok();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let events = server.post("/v1/completions", &body).events();
        assert_eq!(events.last().unwrap()["usage"], answer["usage"]);
        for choice in answer["choices"].as_array().unwrap() {
            let (mut text, mut tokens, mut offsets, mut finish) = (String::new(), Vec::new(), Vec::new(), Value::Null);
            for found in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
                if found["index"] == choice["index"] {
                    text += found["text"].as_str().unwrap();
                    tokens.extend(found["logprobs"]["tokens"].as_array().cloned().unwrap_or_default());
                    offsets.extend(found["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default());
                    finish = found["finish_reason"].clone();
                }
            }
            assert_eq!((&json!(text), &finish), (&choice["text"], &choice["finish_reason"]));
            if !choice["logprobs"].is_null() {
                assert_eq!(json!(tokens), choice["logprobs"]["tokens"]);
                assert_eq!(json!(offsets), choice["logprobs"]["text_offset"]);
            }
        }
    }
}

#[test]
fn an_echo_without_an_answer_scores_its_prompt() {
    let server = server();
    let body = json!({"prompt": "The capital of Norway is Oslo", "echo": true, "max_tokens": 0, "logprobs": 1});
    let answer = server.post("/v1/completions", &body).ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "The capital of Norway is Oslo");
    let own = engine().prompt_logprobs("The capital of Norway is Oslo", 1).unwrap();
    let found = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!((&found[0], found.len()), (&Value::Null, own.len() + 1));
    for (found, own) in found[1..].iter().zip(&own) {
        assert!((found.as_f64().unwrap() - own.logprob).abs() < 1e-9);
    }
    let tokens: String =
        choice["logprobs"]["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens, "The capital of Norway is Oslo");
}

#[test]
fn a_gap_is_filled_by_models_that_can() {
    // The demo model has no tokens for it.
    let error = server().post("/v1/completions", &json!({"prompt": "a", "suffix": "b"})).error(400);
    assert!(error["message"].as_str().unwrap().contains("filling in the middle"), "{error}");
}

#[test]
fn vectors_come_as_numbers_and_as_bytes() {
    let server = server();
    let texts = ["A cat sleeps.", "A dog sleeps."];
    let own = engine().embed(&texts, &EmbedOptions::new()).unwrap();
    let answer = server.post("/v1/embeddings", &json!({"input": texts, "model": "qwen"})).ok();
    let bytes = server.post("/v1/embeddings", &json!({"input": texts, "encoding_format": "base64"})).ok();
    for (index, own) in own.iter().enumerate() {
        let values: Vec<f32> = serde_json::from_value(answer["data"][index]["embedding"].clone()).unwrap();
        assert_eq!(values, own.values);
        let bytes = bytes_of(bytes["data"][index]["embedding"].as_str().unwrap());
        let values: Vec<f32> = bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(values, own.values);
    }
    assert_eq!(answer["usage"]["prompt_tokens"], own.iter().map(|own| own.num_tokens).sum::<usize>());
    let size = engine().config().hidden_size;
    server.post("/v1/embeddings", &json!({"input": "a", "dimensions": size})).ok();
    for (wrong, param) in [
        (json!({"input": "a", "dimensions": 3}), "dimensions"),
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [100_000]}), "input"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
    ] {
        assert_eq!(server.post("/v1/embeddings", &wrong).error(400)["param"], param);
    }
    // What LangChain sends by default is named.
    let error = server.post("/v1/embeddings", &json!({"input": [[1, 100_000]]})).error(400);
    assert!(error["message"].as_str().unwrap().contains("check_embedding_ctx_length"), "{error}");
}

#[test]
fn models_have_all_their_names() {
    let mut settings = Settings::default();
    settings.model_names = vec!["Qwen/one".into(), "two".into()];
    let server = serve(settings, Some(engine().clone()));
    let list = server.get("/v1/models").ok();
    assert_eq!((&list["data"][0]["id"], &list["data"][1]["id"]), (&json!("Qwen/one"), &json!("two")));
    let one = server.get("/v1/models/Qwen/one").ok();
    assert_eq!((&one["id"], &one["max_model_len"]), (&json!("Qwen/one"), &json!(engine().context())));
    assert_eq!(server.get("/v1/models/three").error(404)["code"], "model_not_found");
    let chat = |model: &str| server.chat(json!({"messages": question("Hi"), "model": model, "max_tokens": 1}));
    assert_eq!(chat("two").ok()["model"], "two");
    assert_eq!(chat("three").error(404)["code"], "model_not_found");
}

#[test]
fn texts_and_chats_become_ids_and_back() {
    let server = server();
    let tokenizer = engine().tokenizer().unwrap();
    let answer = server.post("/tokenize", &json!({"prompt": "Hello, world!", "return_token_strs": true})).ok();
    let ids = tokenizer.encode("Hello, world!", true).unwrap();
    assert_eq!((&answer["tokens"], &answer["count"]), (&json!(ids), &json!(ids.len())));
    assert_eq!(answer["token_strs"].as_array().unwrap().len(), ids.len());
    assert_eq!(server.post("/detokenize", &json!({"tokens": ids})).ok()["prompt"], "Hello, world!");
    assert_eq!(server.post("/detokenize", &json!({"tokens": [1_000_000]})).error(400)["param"], "tokens");

    let tool: Tool = serde_json::from_value(time_tool()).unwrap();
    let (messages, tools) = ([Message::user("Hi")], [tool]);
    let chat = tokenizer.encode_chat(&ChatInput::new(&messages).tools(&tools)).unwrap();
    let body = json!({"messages": question("Hi"), "tools": [time_tool()]});
    assert_eq!(server.post("/tokenize", &body).ok()["tokens"], json!(chat.ids));
    assert_eq!(server.post("/apply-template", &body).ok()["prompt"], chat.text);
    let body = json!({"messages": question("Hi"), "add_generation_prompt": false});
    let text = tokenizer.render_chat(&ChatInput::new(&messages).add_generation_prompt(false)).unwrap();
    assert_eq!(server.post("/apply-template", &body).ok()["prompt"], text);
}

/// Events of a streamed response, by their names.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    text.split("\n\n").filter(|event| !event.is_empty()).map(event).collect()
}

#[test]
fn a_response_is_a_chat() {
    let server = server();
    let chat = server.chat(json!({"messages": question("What is 3 + 4?"), "temperature": 0})).ok();
    let text = &chat["choices"][0]["message"]["content"];
    let item = json!([{"role": "user", "content": [{"type": "input_text", "text": "What is 3 + 4?"}]}]);
    for input in [json!("What is 3 + 4?"), item] {
        let mut body = json!({"input": input, "temperature": 0, "store": false});
        let response = server.post("/v1/responses", &body).ok();
        assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("completed")));
        assert_eq!(&response["output"][0]["content"][0]["text"], text);
        assert_eq!(response["usage"]["total_tokens"], chat["usage"]["total_tokens"]);

        body["stream"] = json!(true);
        let streamed = server.post("/v1/responses", &body);
        let events = events(streamed.text());
        let deltas = events.iter().filter(|(name, _)| name == "response.output_text.delta");
        let whole: String = deltas.map(|(_, data)| data["delta"].as_str().unwrap()).collect();
        assert_eq!(&json!(whole), text);
        assert!(events.iter().enumerate().all(|(number, (_, data))| data["sequence_number"] == number));
        let (name, last) = events.last().unwrap();
        assert_eq!(name, "response.completed");
        assert_eq!(last["response"]["output"][0]["content"], response["output"][0]["content"]);
        assert_eq!(last["response"]["usage"]["output_tokens"], response["usage"]["output_tokens"]);
    }
    let cut = server.post("/v1/responses", &json!({"input": "What is 3 + 4?", "max_output_tokens": 1})).ok();
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[test]
fn a_response_calls_tools_and_reads_their_results() {
    let server = server();
    let mut tool = time_tool()["function"].clone();
    tool["type"] = json!("function");
    // Clients name tools that only OpenAI has, too.
    let tools = json!([tool, {"type": "web_search"}]);
    let input = json!([{"role": "user", "content": "Which time is it now in Cairo?"}]);
    let response = server.post("/v1/responses", &json!({"input": input, "tools": tools, "temperature": 0})).ok();
    let call = &response["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("get_time")));
    assert_eq!(call["arguments"], "{\"city\": \"Cairo\"}");

    let body = json!({"input": input, "tools": tools, "temperature": 0, "stream": true});
    let streamed = events(server.post("/v1/responses", &body).text());
    let deltas = streamed.iter().filter(|(name, _)| name == "response.function_call_arguments.delta");
    let arguments: String = deltas.map(|(_, data)| data["delta"].as_str().unwrap()).collect();
    assert_eq!(call["arguments"], arguments);

    let result = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "12:00"});
    let body = json!({"input": [input[0], call, result], "tools": tools, "temperature": 0});
    let answer = server.post("/v1/responses", &body).ok();
    let text = answer["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("12:00"), "{text}");

    for (wrong, param) in [
        (json!({"input": "a", "previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"input": "a", "store": true}), "store"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content[0].type"),
        (json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": "a", "colour": 1}), "colour"),
        (json!({}), "input"),
    ] {
        assert_eq!(server.post("/v1/responses", &wrong).error(400)["param"], param, "{wrong}");
    }
}

#[test]
fn health_waits_for_the_model() {
    let server = serve(Settings::default(), None);
    let loading = server.get("/health");
    assert_eq!((loading.status, &loading.json()["status"]), (503, &json!("loading")));
    let refused = server.chat(json!({"messages": question("Hi")}));
    assert_eq!(refused.error(503)["type"], "server_error");
    assert!(refused.header("retry-after").is_some());
    assert!(server.get("/metrics").text().contains("qwen_ready 0"));
    assert_eq!(common::server().get("/health").ok()["status"], "ok");
}

#[test]
fn files_and_figures_are_served() {
    // Its own engine: figures of other tests are not in it.
    let engine = options().load(DEMO).unwrap();
    let server = serve(Settings::default(), Some(engine));
    server.chat(json!({"messages": question("What is 3 + 4?"), "temperature": 0})).ok();
    let page = server.get("/");
    assert!(page.text().contains("<html") && page.header("content-type").unwrap().starts_with("text/html"));
    assert!(server.get("/openapi.json").ok()["openapi"].is_string());
    let figures = server.get("/metrics");
    assert!(figures.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in [
        "qwen_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "qwen_time_to_first_token_seconds_count 1",
        "qwen_time_per_token_seconds_count 1",
        "qwen_queue_time_seconds_count 1",
        "qwen_answer_time_seconds_count 1",
        "qwen_cancelled_total 0",
        "qwen_ready 1",
        "qwen_running 0",
    ] {
        assert!(figures.text().lines().any(|found| found == line), "{line} is not in\n{}", figures.text());
    }
    // Each line is one of the format's.
    for line in figures.text().lines() {
        let is_sample = line
            .rsplit_once(' ')
            .is_some_and(|(name, value)| name.starts_with("qwen_") && value.parse::<f64>().is_ok());
        assert!(is_sample || line.starts_with("# HELP qwen_") || line.starts_with("# TYPE qwen_"), "{line}");
    }
}
