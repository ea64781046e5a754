//! Clients that leave at every stage, and a server that ends: nothing goes on that nobody waits for, and what runs is
//! finished.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use common::{DEMO, Request, Response, Running, options, question, serve, until, until_idle};
use qwen::Engine;
use qwen_server::Settings;
use serde_json::{Value, json};

/// An engine of its own, so that its figures are those of one test.
fn engine() -> Engine {
    options().batch(1).load(DEMO).unwrap()
}

/// An answer that goes on to the end of the context.
fn endless(stream: bool) -> Value {
    json!({"messages": question("Count."), "ignore_eos": true, "temperature": 0, "stream": stream})
}

fn begin(server: &Running, path: &str, body: &Value) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(&Request::post(path, body.to_string()).bytes()).unwrap();
    stream
}

/// Wait for the first event with text.
fn first_text(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    let mut bytes = [0; 512];
    while !String::from_utf8_lossy(&seen).contains("\"content\":\" ") {
        let len = stream.read(&mut bytes).unwrap();
        assert!(len > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..len]);
    }
}

fn figure(server: &Running, name: &str) -> f64 {
    let page = server.get("/metrics");
    let line = page.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[test]
fn answers_are_cancelled_when_their_clients_leave() {
    let engine = engine();
    let server = serve(Settings::default(), Some(engine.clone()));
    for (path, body) in [
        ("/v1/chat/completions", endless(true)),
        ("/v1/chat/completions", endless(false)),
        ("/v1/completions", json!({"prompt": "Count.", "ignore_eos": true, "max_tokens": 900})),
        (
            "/v1/completions",
            json!({"prompt": ["a", "b", "c"], "n": 2, "ignore_eos": true, "max_tokens": 900, "stream": true}),
        ),
        ("/v1/responses", json!({"input": "Count.", "stream": true})),
        ("/v1/embeddings", json!({"input": vec!["one two three ".repeat(100); 512]})),
    ] {
        let computed = engine.stats().computed_tokens;
        let stream = begin(&server, path, &body);
        until("it is computed", || engine.stats().computed_tokens > computed);
        drop(stream);
        until_idle(&engine);
    }
    until("it is counted", || {
        figure(&server, "qwen_requests_total{route=\"/v1/chat/completions\",status=\"499\"}") == 2.0
    });
    assert!(figure(&server, "qwen_cancelled_total") >= 2.0);
    assert!(figure(&server, "qwen_requests_total{route=\"/v1/completions\",status=\"499\"}") >= 1.0);
}

#[test]
fn a_client_may_leave_in_its_prompt_and_in_the_queue() {
    // Prompts are computed in many parts, and one after the other.
    let engine = options().batch(1).max_num_batched_tokens(16).load(DEMO).unwrap();
    let server = serve(Settings::default(), Some(engine.clone()));
    let long = |seed: usize| json!({"messages": question(&format!("{seed} {}", "one two three four ".repeat(60)))});
    let running = begin(&server, "/v1/chat/completions", &long(0));
    until("the first prompt is begun", || engine.stats().computed_tokens > 0);
    let waiting: Vec<_> = (1..8).map(|seed| begin(&server, "/v1/chat/completions", &long(seed))).collect();
    drop(waiting);
    drop(running);
    until_idle(&engine);
    // The next one is answered as if nothing had been.
    server.chat(json!({"messages": question("What is 3 + 4?"), "temperature": 0})).ok();
}

#[test]
fn a_client_that_closes_its_half_has_left() {
    let engine = engine();
    let server = serve(Settings::default(), Some(engine.clone()));
    let mut stream = begin(&server, "/v1/chat/completions", &endless(true));
    first_text(&mut stream);
    stream.shutdown(Shutdown::Write).unwrap();
    until_idle(&engine);
    let mut rest = Vec::new();
    // The server closes, too.
    let _ = stream.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
}

#[test]
fn a_client_that_reads_nothing_loses_its_connection() {
    let engine = engine();
    let mut settings = Settings::default();
    settings.write_timeout = Duration::from_millis(200);
    let server = serve(settings, Some(engine.clone()));
    // Far more than the sockets' buffers hold: each token comes with alternatives, for many choices.
    let body = json!({
        "messages": question("Count."), "ignore_eos": true, "stream": true, "logprobs": true, "top_logprobs": 20, "n": 128,
        "max_tokens": 900,
    });
    let stream = begin(&server, "/v1/chat/completions", &body);
    until("its answers begin", || engine.stats().computed_tokens > 500);
    until_idle(&engine);
    assert!(figure(&server, "qwen_cancelled_total") > 0.0, "they were not simply complete");
    drop(stream);
}

#[test]
fn a_server_that_ends_finishes_what_runs() {
    let engine = engine();
    let mut server = serve(Settings::default(), Some(engine.clone()));
    let mut stream = begin(&server, "/v1/chat/completions", &endless(true));
    let mut whole = begin(&server, "/v1/chat/completions", &endless(false));
    until("both run", || engine.stats().running == 2);
    let mut idle = server.connect();
    server.tell_to_end();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let events = Response::parse(&answer).events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    answer.clear();
    whole.read_to_end(&mut answer).unwrap();
    assert_eq!(Response::parse(&answer).ok()["choices"][0]["finish_reason"], "length");
    // Connections that are not used do not hold it up, and no new ones are accepted.
    assert_eq!(idle.read(&mut [0; 1]).unwrap_or(0), 0);
    server.join();
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn a_server_that_ends_waits_only_so_long() {
    let engine = engine();
    let mut settings = Settings::default();
    settings.shutdown_timeout = Duration::from_millis(50);
    let mut server = serve(settings, Some(engine.clone()));
    let mut stream = begin(
        &server,
        "/v1/chat/completions",
        &json!({
            "messages": question("Count."), "ignore_eos": true, "stream": true, "n": 64, "max_tokens": 900,
        }),
    );
    first_text(&mut stream);
    let told = Instant::now();
    server.join();
    assert!(told.elapsed() < Duration::from_secs(20));
    until_idle(&engine);
}
