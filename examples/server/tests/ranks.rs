//! The program as several processes that share the model: rank 0 serves, and all end together.

mod common;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use common::{Running, question, server, until};
use serde_json::json;

/// Processes that end with the test.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

fn start(rank: usize, world_size: usize, port: u16) -> Child {
    Command::new(env!("CARGO_BIN_EXE_qwen-server"))
        .args(["--port", "0", "--device", "cpu", "--threads", "1", "--pipeline-parallel", "--context", "512"])
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", world_size.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("LOCAL_WORLD_SIZE", world_size.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

#[test]
fn rank_0_serves_what_all_compute() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut ranks = Ranks((0..2).map(|rank| start(rank, 2, port)).collect());
    let mut said = BufReader::new(ranks.0[0].stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").expect("an address");
    let served = Running::at(address.parse().unwrap());
    until("the model is loaded", || served.get("/health").status == 200);

    let body = json!({"messages": question("What is 3 + 4?"), "temperature": 0, "max_tokens": 20});
    // Each has whole layers, so the bits are those of one process.
    assert_eq!(served.chat(body.clone()).ok()["choices"], server().chat(body).ok()["choices"]);

    // Without rank 0 there is nothing to compute.
    ranks.0[0].kill().unwrap();
    assert!(!ranks.0[1].wait().unwrap().success());
}
