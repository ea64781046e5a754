//! A server that speaks the hub's endpoints, for one repository, with the faults that a test asks for.
#![allow(unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request, as far as a test looks at it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// With names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Whether this asks for the contents of a file.
    pub fn gets(&self, file: &str) -> bool {
        self.method == "GET" && self.path.ends_with(file)
    }

    /// Where the range begins that is asked for.
    pub fn from(&self) -> Option<usize> {
        let (from, _) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        from.parse().ok()
    }

    /// The last byte of the range that is asked for, if it does not go on to the end.
    pub fn last(&self) -> Option<usize> {
        self.header("range")?.split_once('-')?.1.parse().ok()
    }
}

/// An answer. Its length is announced as that of the body unless a header says otherwise.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send so much of the body, then close.
    pub cut: Option<usize>,
    /// What happens before the connection is closed.
    pub hold: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Reply { status, headers: Vec::new(), body: Vec::new(), cut: None, hold: None }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    pub fn hold(mut self, hold: impl Fn() + Send + Sync + 'static) -> Self {
        self.hold = Some(Arc::new(hold));
        self
    }
}

/// A listening server. Its threads end with the test program.
pub struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// A server that answers with what `answer` returns.
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let Some(request) = read(&connection) else { return };
                    log.lock().expect("the log").push(request.clone());
                    let is_head = request.method == "HEAD";
                    write(&connection, &answer(&request), is_head);
                });
            }
        });
        Server { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("the log").clone()
    }

    /// How often the contents of a file were asked for.
    pub fn gets(&self, file: &str) -> usize {
        self.asked().iter().filter(|asked| asked.gets(file)).count()
    }
}

fn read(connection: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Asked { method, path, headers })
}

fn write(mut connection: &TcpStream, reply: &Reply, is_head: bool) {
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    head += "\r\n";
    let body = if is_head { &[] } else { &reply.body[..reply.cut.unwrap_or(reply.body.len())] };
    // The client may have gone, as some tests want.
    let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(body));
    reply.hold.iter().for_each(|hold| hold());
}

/// The files of a repository, and how the hub answers for them.
#[derive(Debug, Clone, Default)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Files {
    pub fn of(files: &[(&str, &[u8])]) -> Self {
        Files(files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect())
    }

    /// The answer of a hub without faults.
    pub fn reply(&self, asked: &Asked) -> Reply {
        if asked.path.starts_with("/api/models/") {
            let siblings: Vec<_> = self.0.keys().map(|name| json!({ "rfilename": name })).collect();
            return Reply::status(200).body(json!({ "sha": COMMIT, "siblings": siblings }).to_string());
        }
        let file = asked.path.split_once(COMMIT).map_or("", |(_, file)| file.trim_start_matches('/'));
        let Some(bytes) = self.0.get(file) else {
            return Reply::status(404).header("x-error-code", "EntryNotFound");
        };
        let mut reply = Reply::status(200).header("x-repo-commit", COMMIT);
        if asked.method == "HEAD" {
            reply = reply.header("etag", format!("\"{}\"", sha256(bytes)));
        }
        match asked.from() {
            Some(from) if from >= bytes.len() => Reply::status(416),
            Some(from) => {
                let last = asked.last().unwrap_or(usize::MAX).min(bytes.len() - 1);
                let range = format!("bytes {from}-{last}/{}", bytes.len());
                Reply { status: 206, ..reply.header("content-range", range).body(&bytes[from..=last]) }
            }
            None => reply.body(bytes.as_slice()),
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hmac_sha256::Hash::hash(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
