//! A server in the test's own process, and a client that can also be rude.
#![allow(dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use qwen::{Device, Engine, EngineOptions};
use qwen_server::{Server, Settings};
use serde_json::{Value, json};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The demo checkpoint of this repository.
pub const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo-model");

/// Options for small tests.
pub fn options() -> EngineOptions {
    EngineOptions::new().device(Device::Cpu).threads(2).batch(4)
}

/// The demo model, loaded once for a test program.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| options().load(DEMO).expect("the demo checkpoint loads"))
}

/// A server that ends with the test.
pub struct Running {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A server of the demo model.
pub fn server() -> Running {
    serve(Settings::default(), Some(engine().clone()))
}

/// A server with these settings, and this engine if there is one.
pub fn serve(settings: Settings, engine: Option<Engine>) -> Running {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (started, address) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::bind("127.0.0.1:0", settings).await.expect("a free port");
            if let Some(engine) = engine {
                server.loader().set(engine);
            }
            started.send(server.address()).unwrap();
            server.run(async { drop(stopped.await) }).await;
        });
    });
    Running { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
}

impl Running {
    /// A server that somebody else runs.
    pub fn at(address: SocketAddr) -> Self {
        Running { address, stop: None, thread: None }
    }

    /// Tell the server to end, without waiting for it.
    pub fn tell_to_end(&mut self) {
        drop(self.stop.take());
    }

    /// Wait until the server has ended, and learn whether it panicked.
    pub fn join(&mut self) {
        self.tell_to_end();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends without a panic");
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Send bytes, and read whatever comes until the server closes.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The server may close before it has read all.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    pub fn send(&self, request: &Request) -> Response {
        Response::parse(&self.raw(&request.bytes()))
    }

    pub fn get(&self, path: &str) -> Response {
        self.send(&Request::get(path))
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.send(&Request::post(path, body.to_string()))
    }

    /// A request of a chat with one question.
    pub fn chat(&self, body: Value) -> Response {
        self.post("/v1/chat/completions", &body)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tell_to_end();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().expect("the server ends without a panic");
        }
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub fn get(path: &str) -> Self {
        Request { method: "GET", path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Request { method: "POST", body: body.into(), ..Self::get(path) }
    }

    pub fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let Request { method, path, headers, body } = self;
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| name == "host") {
            head += "host: localhost\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        [head.as_bytes(), b"\r\n", body].concat()
    }
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no response: {:?}", String::from_utf8_lossy(bytes)));
        let head = std::str::from_utf8(&bytes[..end]).expect("a head of ASCII");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let headers: Vec<_> = lines.filter_map(header).collect();
        let mut body = bytes[end + 4..].to_vec();
        if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
            body = unchunked(&body);
        }
        Response { status, headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body of a response that has to be a success.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The error of a response that has to have this status.
    #[track_caller]
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        error
    }

    /// The events of a stream that has to be complete, without the last one.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let mut events: Vec<&str> = self.text().split("\n\n").filter(|event| event.starts_with("data: ")).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.text());
        events.into_iter().map(|event| serde_json::from_str(&event["data: ".len()..]).unwrap()).collect()
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let Ok(size) = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap_or("x"), 16) else { break };
        let chunk = &body[end + 2..];
        if size == 0 || chunk.len() < size {
            break;
        }
        whole.extend_from_slice(&chunk[..size]);
        body = chunk.get(size + 2..).unwrap_or_default();
    }
    whole
}

/// The messages of one question.
pub fn question(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// A tool of the demo model.
pub fn time_tool() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!({"type": "function", "function": {
        "name": "get_time", "description": "Current local time of a city", "parameters": parameters,
    }})
}

/// Wait until `is_so`, which has to be soon.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Wait until nothing runs on the engine, and all blocks are given back.
#[track_caller]
pub fn until_idle(engine: &Engine) {
    until("the engine is idle", || {
        let stats = engine.stats();
        stats.running == 0 && stats.waiting == 0 && stats.used_blocks == 0
    });
}
