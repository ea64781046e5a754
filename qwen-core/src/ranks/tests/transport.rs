//! Collective calls over a transport, and how ranks learn that one has failed.

use std::io::Write;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{free_port, on_ranks, rank, same, welcomed};
use crate::backend::collective::{Collective, ThreadGroup};
use crate::error::Error;
use crate::error::Result;
use crate::ranks::TcpGroup;
use crate::ranks::frame::{self, Kind};
use crate::ranks::values::PIECE;

fn values(rank: usize, len: usize) -> Vec<f32> {
    let mut state = rank as u32 + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Of very different magnitudes, so that the order of additions matters.
        (state as i32 as f32) * [1e-9, 1.0, 1e9][(state >> 20) as usize % 3]
    };
    let mut values: Vec<f32> = (0..len).map(next).collect();
    values[0] = -0.0;
    values
}

#[test]
fn sums_have_the_bits_of_those_of_threads() {
    let lengths = [1, 7, PIECE, 2 * PIECE + 3];
    for world_size in [1, 2, 3, 5] {
        let over_tcp = on_ranks(world_size, move |ranks| {
            let number = ranks.rank();
            let group = TcpGroup::new(Arc::new(ranks.rendezvous(&same())?));
            let sum = |len| {
                let mut values = values(number, len);
                group.all_reduce(&mut values)?;
                Ok(values.into_iter().map(f32::to_bits).collect())
            };
            lengths.into_iter().map(sum).collect::<Result<Vec<Vec<u32>>>>()
        });
        let in_threads: Vec<_> = ThreadGroup::new(world_size)
            .into_iter()
            .enumerate()
            .map(|(number, group)| {
                thread::spawn(move || {
                    lengths.map(|len| {
                        let mut values = values(number, len);
                        group.all_reduce(&mut values).unwrap();
                        values.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                    })
                })
            })
            .collect();
        for (over_tcp, in_threads) in over_tcp.into_iter().zip(in_threads) {
            assert!(over_tcp.unwrap() == in_threads.join().unwrap(), "{world_size} ranks");
        }
    }
}

#[test]
fn all_get_the_bytes_of_rank_0_and_the_smallest_number() {
    let outcomes = on_ranks(4, |ranks| {
        let transport = ranks.rendezvous(&same())?;
        let mut bytes = if transport.rank() == 0 { vec![7; 128] } else { Vec::new() };
        transport.broadcast(&mut bytes)?;
        Ok((bytes, transport.all_reduce_min(100 - 3 * transport.rank() as u64)?))
    });
    for outcome in outcomes {
        assert_eq!(outcome.unwrap(), (vec![7; 128], 91));
    }
}

#[test]
fn a_rank_that_ends_is_an_error_on_the_others() {
    let outcomes = on_ranks(3, |ranks| {
        let transport = Arc::new(ranks.rendezvous(&same())?);
        let (woken, wakes) = mpsc::channel();
        transport.on_peer_failure(move || woken.send(()).expect("the test waits"));
        let group = TcpGroup::new(transport.clone());
        let mut values = vec![1.0; 10];
        group.all_reduce(&mut values)?;
        if transport.rank() == 1 {
            return Ok(());
        }
        let outcome = group.all_reduce(&mut values).inspect_err(|error| transport.fail(error));
        wakes.recv_timeout(Duration::from_secs(10)).expect("the hook is called");
        outcome
    });
    assert!(outcomes[1].is_ok());
    for rank in [0, 2] {
        match &outcomes[rank] {
            Err(Error::RankFailed { rank: 1, reason }) => assert_eq!(reason, "its process has ended"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_call_that_waits_for_a_rank_fails_before_the_hook_runs() {
    let port = free_port();
    let (leave, leaves) = mpsc::channel::<()>();
    let leaving = thread::spawn(move || {
        let stream = welcomed(&rank(1, 2, port), port);
        let _ = leaves.recv();
        stream.shutdown(Shutdown::Both).unwrap();
    });
    let transport = rank(0, 2, port).rendezvous(&same()).unwrap();
    let (release, held) = mpsc::channel::<()>();
    transport.on_peer_failure(move || {
        let _ = held.recv();
    });
    drop(leave);
    let (said, says) = mpsc::channel();
    let waiting = thread::spawn(move || {
        said.send(transport.all_reduce_min(0).unwrap_err().to_string()).expect("the test waits");
        transport
    });
    let text = says.recv_timeout(Duration::from_secs(10));
    // Release it before anything that may panic: dropping the transport waits for the hook.
    drop(release);
    assert_eq!(text.expect("the call returns"), "rank 1 failed: its process has ended");
    drop(waiting.join().unwrap());
    leaving.join().unwrap();
}

/// Rank 0 makes no call on the transport while rank 2 ends.
#[test]
fn a_failure_is_reported_to_all_and_the_first_one_is_the_cause() {
    let (ended, ends) = mpsc::channel();
    let ends = Arc::new(Mutex::new(ends));
    let outcomes = on_ranks(3, move |ranks| {
        let transport = ranks.rendezvous(&same())?;
        match transport.rank() {
            0 => {
                transport.report_failures();
                transport.all_reduce_min(0)?;
                ends.lock().unwrap().recv_timeout(Duration::from_secs(10)).expect("rank 1 ends");
                // Rank 1 has ended too by now, because of rank 2.
                transport.receive(1, Kind::Done).map(drop)
            }
            1 => {
                transport.all_reduce_min(0)?;
                let outcome = transport.receive(0, Kind::Step).map(drop);
                ended.send(()).expect("rank 0 waits");
                outcome
            }
            _ => transport.all_reduce_min(0).map(drop),
        }
    });
    for outcome in &outcomes[..2] {
        assert_eq!(outcome.as_ref().unwrap_err().to_string(), "rank 2 failed: its process has ended");
    }
}

#[test]
fn a_failed_rank_is_the_cause_of_what_a_device_reports() {
    let outcomes = on_ranks(2, |ranks| {
        let transport = ranks.rendezvous(&same())?;
        let aborted = || Error::Device { device: "card".into(), op: "sum".into(), reason: "aborted".into() };
        if transport.rank() == 0 {
            let own = aborted().to_string();
            assert_eq!(transport.cause(&aborted()).error().to_string(), format!("rank 0 failed: {own}"));
        }
        // Rank 1 ends after this.
        transport.all_reduce_min(0)?;
        if transport.rank() == 0 {
            let failed = transport.all_reduce_min(0).unwrap_err().to_string();
            assert_eq!(transport.end_with(aborted()).to_string(), failed);
        }
        Ok(())
    });
    outcomes.into_iter().for_each(|outcome| outcome.unwrap());
}

#[test]
fn a_rank_that_falls_silent_has_failed() {
    let port = free_port();
    let (finish, finished) = mpsc::channel::<()>();
    // A rank that connects, and then neither sends anything nor closes.
    let silent = thread::spawn(move || {
        let stream = welcomed(&rank(1, 2, port).heartbeat_timeout(Duration::from_millis(400)), port);
        let _ = finished.recv();
        drop(stream);
    });
    let transport = rank(0, 2, port).heartbeat_timeout(Duration::from_millis(400)).rendezvous(&same()).unwrap();
    let started = Instant::now();
    let text = transport.all_reduce_min(0).unwrap_err().to_string();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(text, "rank 1 failed: it has sent no heartbeat or complete message for 0.4 seconds");
    drop(finish);
    silent.join().unwrap();
}

/// It sends heartbeats and nothing else for many times the timeout.
#[test]
fn a_rank_that_computes_for_long_has_not_failed() {
    let (port, timeout) = (free_port(), Duration::from_secs(1));
    let computing = thread::spawn(move || {
        let stream = &mut welcomed(&rank(1, 2, port).heartbeat_timeout(timeout), port);
        // Each heartbeat of rank 0 is answered by one, until three times the timeout has passed.
        for _ in 0..12 {
            assert_eq!(frame::read(stream, 10).unwrap().kind, Kind::Heartbeat);
            frame::write(stream, Kind::Heartbeat, &[]).unwrap();
        }
        frame::write(stream, Kind::Number, &[5]).unwrap();
        // Until rank 0 closes the connection.
        while frame::read(stream, 10).is_ok() {}
    });
    let transport = rank(0, 2, port).heartbeat_timeout(timeout).rendezvous(&same()).unwrap();
    assert_eq!(transport.all_reduce_min(7).unwrap(), 5);
    drop(transport);
    computing.join().unwrap();
}

/// A message that never ends, with a byte arriving often enough that the connection is never silent for long.
#[test]
fn a_rank_that_sends_a_message_byte_by_byte_has_failed() {
    let (port, timeout) = (free_port(), Duration::from_millis(400));
    let slow = thread::spawn(move || {
        let stream = &mut welcomed(&rank(1, 2, port).heartbeat_timeout(timeout), port);
        stream.write_all(&[0, 0, 1, 0, Kind::Number as u8]).unwrap();
        // A byte for each heartbeat of rank 0, which sends four per timeout.
        while frame::read(stream, 1000).is_ok() && stream.write_all(&[0]).is_ok() {}
    });
    let transport = rank(0, 2, port).heartbeat_timeout(timeout).rendezvous(&same()).unwrap();
    let text = transport.all_reduce_min(0).unwrap_err().to_string();
    assert_eq!(text, "rank 1 failed: it has sent no heartbeat or complete message for 0.4 seconds");
    drop(transport);
    slow.join().unwrap();
}

#[test]
fn a_length_beyond_the_bound_ends_the_transport() {
    let port = free_port();
    let other = thread::spawn(move || {
        let stream = &mut welcomed(&rank(1, 2, port), port);
        stream.write_all(&[0xff, 0xff, 0xff, 0xff, Kind::Number as u8]).unwrap();
        while frame::read(stream, 1000).is_ok() {}
    });
    let transport = rank(0, 2, port).rendezvous(&same()).unwrap();
    let text = transport.all_reduce_min(1).unwrap_err().to_string();
    assert!(text.contains("a message of 4.00 GiB, more than 64.0 MiB"), "{text}");
    drop(transport);
    other.join().unwrap();
}

#[test]
fn messages_out_of_turn_are_refused() {
    let outcomes = on_ranks(2, |ranks| {
        let transport = Arc::new(ranks.rendezvous(&same())?);
        match transport.rank() {
            0 => TcpGroup::new(transport).all_reduce(&mut [0.0; 4]),
            // The right kind with another length.
            _ => TcpGroup::new(transport).all_reduce(&mut [0.0; 5]),
        }
    });
    let text = outcomes[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("20 bytes instead of 4 values"), "{text}");
    assert!(outcomes[1].is_err());
    let outcomes = on_ranks(2, |ranks| {
        let transport = ranks.rendezvous(&same())?;
        if transport.rank() == 1 { transport.send(Kind::Step, &[]) } else { transport.all_reduce_min(1).map(drop) }
    });
    let text = outcomes[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("Step instead of Number"), "{text}");
}

#[test]
fn bytes_that_are_no_message_end_the_transport() {
    let port = free_port();
    let other = thread::spawn(move || {
        let stream = &mut welcomed(&rank(1, 2, port), port);
        stream.write_all(&[9, 9, 9, 9, 200]).unwrap();
        // Until the other end has read them.
        while frame::read(stream, 1000).is_ok() {}
    });
    let transport = rank(0, 2, port).rendezvous(&same()).unwrap();
    let text = transport.all_reduce_min(1).unwrap_err().to_string();
    assert!(text.contains("a kind that this version does not know"), "{text}");
    drop(transport);
    other.join().unwrap();
}
