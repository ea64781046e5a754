//! Unrelated processes can neither end nor delay the rendezvous, or what follows it. With a secret, a process that does
//! not know it cannot take the place of a rank.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{SECRET, admitted, connect, free_port, hello, rank, same};
use crate::error::{Error, Result};
use crate::ranks::frame::{self, Kind};
use crate::ranks::{Ranks, Transport};

/// Rank 0 of `world_size`, on a thread.
fn leader(world_size: usize, port: u16) -> JoinHandle<Result<Transport>> {
    thread::spawn(move || rank(0, world_size, port).rendezvous(&same()))
}

/// Assert that the rank joins, and that the leader's rendezvous succeeds.
fn joins(ranks: &Ranks, leader: JoinHandle<Result<Transport>>) {
    let other = ranks.rendezvous(&same());
    leader.join().unwrap().unwrap();
    other.unwrap();
}

#[test]
fn other_programs_are_turned_away_and_noticed() {
    let port = free_port();
    let other = thread::spawn(move || {
        // A scanner that hangs up, a browser, a hello with a wrong length, another message first; then a rank.
        drop(connect(port));
        connect(port).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        connect(port).write_all(b"qwenrank\xff\xff\xff\xff\x01").unwrap();
        connect(port).write_all(b"qwenrank\0\0\0\0\x0e").unwrap();
        rank(1, 2, port).rendezvous(&same()).map(drop)
    });
    rank(0, 2, port).rendezvous(&same()).unwrap();
    other.join().unwrap().unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example ready\r\n").unwrap();
        // Unread data would reset the connection before the greeting arrives.
        let _ = stream.read(&mut [0; 1000]);
    });
    let text = rank(1, 2, port).rendezvous(&same()).unwrap_err().to_string();
    assert!(text.contains("another program answers there"), "{text}");
    server.join().unwrap();
}

#[test]
fn a_program_that_echoes_is_no_rank() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        std::io::copy(&mut &stream, &mut &stream)
    });
    let text = rank(1, 2, port).rendezvous(&same()).unwrap_err().to_string();
    assert!(text.contains("another program answers there"), "{text}");
    // The echo may end with an error.
    let _ = echo.join().unwrap();
}

#[test]
fn a_slow_stranger_does_not_stop_the_clock() {
    let port = free_port();
    let leader = rank(0, 2, port).rendezvous_timeout(Duration::from_millis(500));
    let stranger = thread::spawn(move || {
        let started = Instant::now();
        let mut stream = connect(port);
        // A long hello, byte by byte, until rank 0 closes the connection.
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.write_all(b"qwenrank\0\x30\0\0\x01").unwrap();
        while started.elapsed() < Duration::from_secs(10) && stream.write_all(&[0]).is_ok() {
            if matches!(stream.read(&mut [0]), Ok(0)) {
                break;
            }
        }
    });
    let started = Instant::now();
    let text = leader.rendezvous(&same()).unwrap_err().to_string();
    assert!(text.contains("did not connect within 0.5 seconds"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    stranger.join().unwrap();
}

#[test]
fn a_stranger_that_differs_is_turned_away_and_the_rendezvous_goes_on() {
    let port = free_port();
    let leader = leader(2, port);
    let mut other_model = same();
    other_model[0].1 = "other".into();
    let mut longer = same();
    longer.push(("more", "1".into()));
    let strangers = [
        rank(1, 2, port).rendezvous(&other_model),
        rank(1, 2, port).rendezvous(&same()[..1]),
        rank(1, 2, port).rendezvous(&longer),
        rank(1, 3, port).rendezvous(&same()),
        rank(2, 3, port).rendezvous(&same()),
        rank(1, 2, port).heartbeat_timeout(Duration::from_secs(9)).rendezvous(&same()),
        rank(1, 2, port).secret(SECRET).unwrap().rendezvous(&same()),
    ];
    for stranger in strangers {
        assert!(matches!(stranger, Err(Error::RankMismatch { .. })), "{stranger:?}");
    }
    joins(&rank(1, 2, port), leader);
}

#[test]
fn another_version_is_told_so_and_turned_away() {
    let port = free_port();
    let leader = leader(2, port);
    let mut stream = connect(port);
    // A short hello of version 9.
    stream.write_all(b"qwenrank\x03\0\0\0\x01\x09\x01\x02").unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    assert_eq!(frame::read(&mut stream, 1000).unwrap().kind, Kind::Mismatch);
    joins(&rank(1, 2, port), leader);
}

/// Many more connections than are handled at a time, silent at each stage of the handshake.
#[test]
fn silent_connections_do_not_use_up_the_rendezvous() {
    let port = free_port();
    let leader = leader(2, port);
    let hello = hello(&rank(1, 2, port));
    let silent_after = |sent: usize| {
        let mut stream = connect(port);
        // Rank 0 may close it before all is sent.
        let _ = stream.write_all(&hello[..sent]);
        stream
    };
    let silent: Vec<_> = (0..40).flat_map(|_| [0, 5, 8, 11, hello.len() - 1, hello.len()].map(silent_after)).collect();
    joins(&rank(1, 2, port), leader);
    // All of them are closed afterwards, the ones that were never accepted as well.
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn a_second_rank_of_the_same_number_is_turned_away_and_the_first_one_stays() {
    let port = free_port();
    let leader = leader(3, port);
    let first = admitted(&rank(1, 3, port), port);
    let text = rank(1, 3, port).rendezvous(&same()).unwrap_err().to_string();
    assert!(text.starts_with("the number of a rank is 1 again on rank 1"), "{text}");
    joins(&rank(2, 3, port), leader);
    drop(first);
}

#[test]
fn a_rank_that_leaves_or_speaks_before_the_start_makes_room_for_another() {
    let port = free_port();
    let leader = leader(3, port);
    drop(admitted(&rank(1, 3, port), port));
    let mut talkative = admitted(&rank(2, 3, port), port);
    talkative.write_all(&[0]).unwrap();
    let other = thread::spawn(move || rank(1, 3, port).rendezvous(&same()));
    joins(&rank(2, 3, port), leader);
    other.join().unwrap().unwrap();
}

#[test]
fn nobody_is_heard_after_the_rendezvous() {
    let port = free_port();
    let leader = leader(2, port);
    let other = rank(1, 2, port).rendezvous(&same()).unwrap();
    let transport = leader.join().unwrap().unwrap();
    assert_eq!(TcpStream::connect(("127.0.0.1", port)).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    drop((transport, other));
}

#[test]
fn with_a_secret_only_those_who_know_it_are_admitted() {
    let port = free_port();
    let leader = thread::spawn(move || rank(0, 2, port).secret(SECRET).unwrap().rendezvous(&same()));
    let text = |ranks: Ranks| ranks.rendezvous(&same()).unwrap_err().to_string();
    let without = text(rank(1, 2, port));
    assert_eq!(without, "the shared secret is not set on rank 1 and set on rank 0: start all ranks alike");
    let wrong = text(rank(1, 2, port).secret("another secret of the tests").unwrap());
    assert_eq!(wrong, "the shared secret is one value on rank 1 and another on rank 0: start all ranks alike");
    // A process that does not know the secret learns nothing else about the ranks.
    let no_longer_alike = text(rank(1, 3, port).secret("another secret of the tests").unwrap());
    assert_eq!(no_longer_alike, wrong);
    joins(&rank(1, 2, port).secret(SECRET).unwrap(), leader);
}

#[test]
fn a_rank_with_a_secret_joins_nobody_who_does_not_prove_it() {
    let without = free_port();
    let leader = thread::spawn(move || {
        rank(0, 2, without).rendezvous_timeout(Duration::from_millis(1000)).rendezvous(&same()).map(drop)
    });
    let text = rank(1, 2, without).secret(SECRET).unwrap().rendezvous(&same()).unwrap_err().to_string();
    assert_eq!(text, "the shared secret is set on rank 1 and not set on rank 0: start all ranks alike");
    let text = leader.join().unwrap().unwrap_err().to_string();
    let turned_away = "the shared secret is set on rank 1 and not set on rank 0: start all ranks alike";
    assert!(text.ends_with(&format!("one was rejected: {turned_away}")), "{text}");

    // A listener at rank 0's address that answers with nothing, with something, and with an echo.
    for answer in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let impostor = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            frame::read(&mut stream, 10_000).unwrap();
            stream.write_all(b"qwenlead").unwrap();
            frame::write(&mut stream, Kind::Challenge, &[3; 32]).unwrap();
            let proof = frame::read(&mut stream, 100).unwrap();
            let answer = [&[][..], &[9; 32], &proof.payload][answer];
            frame::write(&mut stream, Kind::Proof, answer).unwrap();
            frame::write(&mut stream, Kind::Welcome, &[]).unwrap();
        });
        let text = rank(1, 2, port).secret(SECRET).unwrap().rendezvous(&same()).unwrap_err().to_string();
        assert!(text.contains("does not know the shared secret"), "{text}");
        impostor.join().unwrap();
    }
}

/// The bytes of one rendezvous: to rank 0, and from it.
fn recorded() -> [Vec<u8>; 2] {
    let (port, proxy) = (free_port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let proxy_port = proxy.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
    let copies = seen.clone();
    let forwarding = thread::spawn(move || {
        let (inner, outer) = (proxy.accept().unwrap().0, connect(port));
        let forward = |mut from: TcpStream, mut to: TcpStream, direction: usize| {
            let copies = copies.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(len @ 1..) = from.read(&mut buffer) {
                    copies.lock().unwrap()[direction].extend_from_slice(&buffer[..len]);
                    if to.write_all(&buffer[..len]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            })
        };
        let there = forward(inner.try_clone().unwrap(), outer.try_clone().unwrap(), 0);
        let back = forward(outer, inner, 1);
        there.join().unwrap();
        back.join().unwrap();
    });
    let leader = thread::spawn(move || rank(0, 2, port).secret(SECRET).unwrap().rendezvous(&same()));
    joins(&rank(1, 2, proxy_port).secret(SECRET).unwrap(), leader);
    forwarding.join().unwrap();
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

#[test]
fn the_secret_is_never_sent_and_recorded_proofs_are_worth_nothing() {
    let [to_leader, from_leader] = recorded();
    for bytes in [&to_leader, &from_leader] {
        assert!(bytes.len() > 64 && !bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
    }
    let port = free_port();
    let leader = thread::spawn(move || rank(0, 2, port).secret(SECRET).unwrap().rendezvous(&same()));
    let mut replay = connect(port);
    replay.write_all(&to_leader).unwrap();
    replay.read_exact(&mut [0; 8]).unwrap();
    assert_eq!(frame::read(&mut replay, 1000).unwrap().kind, Kind::Challenge);
    assert_eq!(frame::read(&mut replay, 1000).unwrap().kind, Kind::Mismatch);
    joins(&rank(1, 2, port).secret(SECRET).unwrap(), leader);
}

/// A listener at rank 0's address may send anything: a rank's waiting time and memory stay bounded.
#[test]
fn a_false_rank_0_costs_a_rank_no_more_than_its_time() {
    let answers: [&'static [u8]; 4] =
        [b"", b"qwenlead\xff\xff\xff\xff\x02", b"qwenlead\0\0\0\0\xff", b"qwenlead\x01\0\0\0\x05\x07"];
    for answer in answers {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        listener.set_nonblocking(true).unwrap();
        let server = thread::spawn(move || {
            let mut held = Vec::new();
            while finished.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let _ = stream.write_all(answer);
                        held.push(stream);
                    }
                    Err(_) => thread::yield_now(),
                }
            }
        });
        let short = rank(1, 2, port).rendezvous_timeout(Duration::from_millis(200));
        let text = short.rendezvous(&same()).unwrap_err().to_string();
        assert!(text.contains("cannot reach rank 0 within 0.2 seconds"), "{text}");
        drop(finish);
        server.join().unwrap();
    }
}
