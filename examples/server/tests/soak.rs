//! Many clients at once, polite and rude ones: no answer is mixed up or cut, which its lone run tells, nothing fails but
//! by a polite 429, and memory does not grow. `QWEN_SERVER_SOAK_SECONDS` says how long (some minutes by hand),
//! `QWEN_SERVER_SOAK_CLIENTS` how many.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{DEMO, Request, Response, Running, options, question, serve, time_tool, until_idle};
use qwen_server::Settings;
use serde_json::{Value, json};

/// How much the process may grow in the second half, in bytes.
const MAX_GROWTH: u64 = 32 << 20;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Requests of all kinds, by path.
fn requests() -> Vec<(&'static str, Value)> {
    let mut requests = Vec::new();
    for (number, text) in
        ["What is 3 + 4?", "What is the capital of Peru?", "Hello!", "What colour is snow?"].iter().enumerate()
    {
        for stream in [false, true] {
            requests.push((
                "/v1/chat/completions",
                json!({
                    "messages": question(text), "temperature": 0, "stream": stream, "logprobs": true,
                }),
            ));
            requests.push((
                "/v1/chat/completions",
                json!({
                    "messages": question(text), "temperature": 1.3, "seed": number, "stream": stream, "max_tokens": 24,
                }),
            ));
            requests.push(("/v1/completions", json!({
                "prompt": format!("{text} {}", "and so on ".repeat(10 * number)), "seed": number, "temperature": 0.9,
                "stream": stream, "max_tokens": 16,
            })));
        }
        requests.push((
            "/v1/chat/completions",
            json!({
                "messages": question(text), "temperature": 1.1, "seed": number, "n": 2, "max_tokens": 12,
            }),
        ));
        requests.push(("/v1/embeddings", json!({"input": [text, "another"]})));
    }
    for stream in [false, true] {
        requests.push(("/v1/chat/completions", json!({
            "messages": question("Which time is it now in Cairo?"), "tools": [time_tool()], "temperature": 0, "stream": stream,
        })));
    }
    requests
}

/// What an answer says, without what differs each time.
fn essence(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{}", response.text());
    let streams = response.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
    let mut events = if streams { response.events() } else { vec![response.json()] };
    for event in &mut events {
        let event = event.as_object_mut().unwrap();
        event.remove("id");
        event.remove("created");
        event.remove("usage");
        for choice in event.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
            for place in ["message", "delta"] {
                for call in choice[place]["tool_calls"].as_array_mut().into_iter().flatten() {
                    call["id"] = Value::Null;
                }
            }
        }
    }
    events
}

/// Resident bytes of this process.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

struct Soak {
    server: Running,
    requests: Vec<(&'static str, Value)>,
    expected: Vec<Vec<Value>>,
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
    random: AtomicU64,
}

impl Soak {
    fn random(&self, below: u64) -> u64 {
        let mut x = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x ^ (x >> 27)) % below
    }

    fn count(&self, outcome: &'static str) {
        *self.outcomes.lock().unwrap().entry(outcome).or_default() += 1;
    }

    fn once(&self) {
        let index = self.random(self.requests.len() as u64) as usize;
        let (path, body) = &self.requests[index];
        let mut stream = self.server.connect();
        stream.write_all(&Request::post(path, body.to_string()).bytes()).unwrap();
        let mut answer = Vec::new();
        let mut bytes = [0; 256];
        match self.random(10) {
            // Leaves at once, or in the middle.
            0 => return self.count("left at once"),
            1 => {
                let _ = stream.read(&mut bytes);
                return self.count("left in the middle");
            }
            // Reads slowly.
            2 => {
                while let Ok(len @ 1..) = stream.read(&mut bytes) {
                    answer.extend_from_slice(&bytes[..len]);
                    std::thread::yield_now();
                }
            }
            _ => drop(stream.read_to_end(&mut answer)),
        }
        let response = Response::parse(&answer);
        if response.status == 429 {
            assert!(response.header("retry-after").is_some());
            return self.count("429");
        }
        assert_eq!(essence(&response), self.expected[index], "{path} {body}");
        self.count("200");
    }

    /// `clients` at once, until `end` but at least once each.
    fn run(&self, clients: u64, end: Instant) {
        std::thread::scope(|scope| {
            for _ in 0..clients {
                let client = || {
                    self.once();
                    while Instant::now() < end {
                        self.once();
                    }
                };
                std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, client).unwrap();
            }
        });
    }
}

#[test]
fn many_clients_get_the_answers_of_lone_ones() {
    let seconds = number("QWEN_SERVER_SOAK_SECONDS", 3);
    let clients = number("QWEN_SERVER_SOAK_CLIENTS", 200);
    let engine = options().batch(8).context(512).max_waiting(256).load(DEMO).unwrap();
    let server = serve(Settings::default(), Some(engine.clone()));
    let requests = requests();
    let expected = requests.iter().map(|(path, body)| essence(&server.post(path, body))).collect();
    let soak = Soak { server, requests, expected, outcomes: Mutex::default(), random: AtomicU64::new(1) };

    // The first half fills caches and pools.
    let half = Duration::from_secs(seconds) / 2;
    let start = resident();
    soak.run(clients, Instant::now() + half);
    let before = resident();
    soak.run(clients, Instant::now() + half);
    until_idle(&engine);
    let after = resident();
    let outcomes = soak.outcomes.lock().unwrap();
    println!("{clients} clients, {seconds} s: {outcomes:?}, memory {start:?} -> {before:?} -> {after:?} bytes");
    assert!(outcomes.get("200").is_some_and(|count| *count > clients / 2), "{outcomes:?}");
    if let (Some(before), Some(after)) = (before, after) {
        assert!(after.saturating_sub(before) < MAX_GROWTH, "{before} -> {after} bytes");
    }
}
