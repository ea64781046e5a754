//! Random bodies: each gets an answer of the right shape and a status that says whose fault it is, and the server goes on.
//! `QWEN_SERVER_BODIES` says how many for each path (100,000 by hand).

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use common::{Running, engine, question, server, time_tool, until_idle};
use serde_json::{Value, json};

/// Bodies for each path where nothing else is said.
const BODIES: u64 = 300;

/// Pseudo-random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 12 } else { 14 }) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(0),
            3 => json!(-1),
            4 => json!(1),
            5 => json!(0.5),
            6 => json!(u64::MAX),
            7 => json!(1e300),
            8 => json!(""),
            9 => json!("user"),
            10 => json!("<|im_end|>\u{0}\u{10FFFF}"),
            11 => json!(self.below(2000)),
            12 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => {
                let key = |random: &mut Self| {
                    ["role", "content", "type", "text", "1", "function", "name"][random.below(7)].to_owned()
                };
                Value::Object((0..self.below(4)).map(|_| (key(self), self.value(depth - 1))).collect())
            }
        }
    }

    /// A body that is nearly right, or no JSON at all.
    fn body(&mut self, base: &Value) -> Vec<u8> {
        let mut body = base.clone();
        let fields = [
            "messages",
            "prompt",
            "input",
            "tools",
            "tool_choice",
            "stream",
            "stream_options",
            "n",
            "max_tokens",
            "stop",
            "seed",
            "temperature",
            "top_p",
            "logit_bias",
            "logprobs",
            "top_logprobs",
            "response_format",
            "echo",
            "suffix",
            "dry",
            "mirostat",
            "stages",
            "preset",
            "speculation",
            "bad_words",
            "banned_sequences",
            "forced_token_ids",
            "allowed_token_ids",
            "user",
            "cache_salt",
            "priority",
            "chat_template_kwargs",
            "tokens",
            "encoding_format",
            "instructions",
            "text",
            "top_k",
            "min_p",
            "repetition_penalty",
            "penalty_window",
            "no_repeat_ngram_size",
        ];
        // Half of the bodies are right but for one field, or right altogether.
        let wrong = if self.below(2) == 0 { self.below(2) } else { 1 + self.below(3) };
        for _ in 0..wrong {
            let field = fields[self.below(fields.len())];
            body[field] = self.value(3);
        }
        let mut bytes = body.to_string().into_bytes();
        if self.below(6) == 0 {
            for _ in 0..1 + self.below(4) {
                let at = self.below(bytes.len());
                bytes[at] = self.next() as u8;
            }
        }
        if self.below(16) == 0 {
            bytes.truncate(self.below(bytes.len()));
        }
        bytes
    }
}

/// A connection that is used again and again.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(server: &Running) -> Self {
        Client(BufReader::new(server.connect()))
    }

    /// The status and the body.
    fn post(&mut self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        self.0.get_mut().write_all(&[head.as_bytes(), body].concat()).expect("the connection is open");
        let mut line = String::new();
        let (mut status, mut length) = (None, None);
        loop {
            line.clear();
            assert!(
                self.0.read_line(&mut line).expect("an answer") > 0,
                "no answer to {}",
                String::from_utf8_lossy(body)
            );
            let found = line.trim_end().to_lowercase();
            if found.is_empty() {
                break;
            }
            if status.is_none() {
                status = found.split(' ').nth(1).and_then(|status| status.parse().ok());
            }
            length = length.or(found.strip_prefix("content-length: ").and_then(|length| length.parse::<usize>().ok()));
        }
        let mut answer = Vec::new();
        match length {
            Some(length) => {
                answer.resize(length, 0);
                self.0.read_exact(&mut answer).unwrap();
            }
            // Chunks.
            None => loop {
                line.clear();
                self.0.read_line(&mut line).unwrap();
                let size = usize::from_str_radix(line.trim_end(), 16).expect("the size of a chunk");
                let start = answer.len();
                answer.resize(start + size, 0);
                self.0.read_exact(&mut answer[start..]).unwrap();
                self.0.read_exact(&mut [0; 2]).unwrap();
                if size == 0 {
                    break;
                }
            },
        }
        (status.expect("a status"), answer)
    }
}

#[test]
fn random_bodies_get_the_right_status() {
    let server = server();
    let count = std::env::var("QWEN_SERVER_BODIES").ok().and_then(|count| count.parse().ok()).unwrap_or(BODIES);
    let bases = [
        ("/v1/chat/completions", json!({"messages": question("Hi"), "max_tokens": 2, "tools": [time_tool()]})),
        ("/v1/completions", json!({"prompt": "Hi", "max_tokens": 2})),
        ("/v1/responses", json!({"input": "Hi", "max_output_tokens": 2})),
        ("/v1/embeddings", json!({"input": "Hi"})),
        ("/tokenize", json!({"prompt": "Hi"})),
        ("/detokenize", json!({"tokens": [1, 2]})),
        ("/apply-template", json!({"messages": question("Hi")})),
    ];
    let mut statuses = std::collections::BTreeMap::<u16, u64>::new();
    for (path, base) in bases {
        let (mut random, mut client) = (Random(7), Client::new(&server));
        for _ in 0..count {
            let body = random.body(&base);
            let (status, answer) = client.post(path, &body);
            *statuses.entry(status).or_default() += 1;
            let shown =
                || format!("{path} {status} {}: {}", String::from_utf8_lossy(&body), String::from_utf8_lossy(&answer));
            match status {
                200 => {}
                // 404 is another model's name.
                400 | 404 => {
                    let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|_| panic!("{}", shown()));
                    assert!(answer["error"]["message"].is_string(), "{}", shown());
                }
                _ => panic!("{}", shown()),
            }
        }
    }
    println!("{statuses:?}");
    assert!(statuses[&200] > 0 && statuses[&400] > 0);
    until_idle(engine());
}
