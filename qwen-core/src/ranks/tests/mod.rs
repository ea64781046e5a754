//! Ranks as threads that connect over the loopback interface.

mod rendezvous;
mod strangers;
mod transport;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::Ranks;
use super::frame::{self, Kind};
use super::handshake::Hello;
use crate::error::Result;

const SECRET: &str = "the secret of these tests";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn rank(rank: usize, world_size: usize, port: u16) -> Ranks {
    let (rendezvous, heartbeat) = (Duration::from_secs(20), Duration::from_secs(2));
    let ranks = Ranks::new(rank, world_size).unwrap().at("127.0.0.1", port);
    ranks.rendezvous_timeout(rendezvous).heartbeat_timeout(heartbeat)
}

/// What all ranks have in common.
fn same() -> Vec<(&'static str, String)> {
    vec![("model", "demo".into()), ("precision", "Fast".into())]
}

/// Run `act` on each rank, and return the results.
fn on_ranks<T: Send + 'static>(
    world_size: usize,
    act: impl Fn(Ranks) -> Result<T> + Send + Clone + 'static,
) -> Vec<Result<T>> {
    let port = free_port();
    let start = |number| {
        let act = act.clone();
        thread::spawn(move || act(rank(number, world_size, port)))
    };
    let threads: Vec<_> = (0..world_size).map(start).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// A connection to `port`, once somebody listens there.
fn connect(port: u16) -> TcpStream {
    let started = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(10), "{error}"),
        }
    }
}

/// The first message of `ranks`, as it would send it itself.
fn hello(ranks: &Ranks) -> Vec<u8> {
    let timeout = ("`heartbeat_timeout`", format!("{:?}", ranks.heartbeat_timeout));
    let mut bytes = b"qwenrank".to_vec();
    let hello = Hello::to_bytes(ranks, &[7; 32], &[same(), vec![timeout]].concat());
    frame::write(&mut bytes, Kind::Hello, &hello).unwrap();
    bytes
}

/// A connection on which rank 0 has admitted `ranks`, which have no secret.
fn admitted(ranks: &Ranks, port: u16) -> TcpStream {
    let mut stream = connect(port);
    stream.write_all(&hello(ranks)).unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 8]).unwrap();
    assert_eq!(frame::read(&mut stream, 100).unwrap().kind, Kind::Challenge);
    frame::write(&mut stream, Kind::Proof, &[]).unwrap();
    assert_eq!(frame::read(&mut stream, 100).unwrap().kind, Kind::Proof);
    stream
}

/// A connection of `ranks` after the rendezvous, on which only the test sends and reads.
fn welcomed(ranks: &Ranks, port: u16) -> TcpStream {
    let mut stream = admitted(ranks, port);
    assert_eq!(frame::read(&mut stream, 100).unwrap().kind, Kind::Welcome);
    stream
}
