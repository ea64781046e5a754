//! Ranks as threads that meet over the loopback device: what they agree on, what they compute, how they are lost.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::frame::{self, Kind};
use super::values::PIECE;
use super::*;
use crate::collective::{Collective, ThreadGroup};
use crate::error::Error;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn rank(rank: usize, world_size: usize, port: u16) -> Ranks {
    let (meet, lost) = (Duration::from_secs(20), Duration::from_secs(2));
    Ranks::new(rank, world_size).unwrap().at("127.0.0.1", port).meet_within(meet).lost_after(lost)
}

fn same() -> Vec<(&'static str, String)> {
    vec![("model", "demo".into()), ("precision", "Fast".into())]
}

/// Run `act` on each rank, and give what they returned.
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

fn values(rank: usize, len: usize) -> Vec<f32> {
    let mut state = rank as u32 + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Of very different sizes, so that the order of additions shows.
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
            let group = TcpGroup::new(Arc::new(ranks.meet(&same())?));
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
fn all_get_what_rank_0_has_and_the_least_number() {
    let outcomes = on_ranks(4, |ranks| {
        let link = ranks.meet(&same())?;
        let mut bytes = if link.rank() == 0 { vec![7; 128] } else { Vec::new() };
        link.broadcast(&mut bytes)?;
        Ok((bytes, link.least(100 - 3 * link.rank() as u64)?))
    });
    for outcome in outcomes {
        assert_eq!(outcome.unwrap(), (vec![7; 128], 91));
    }
}

#[test]
fn ranks_that_were_started_differently_all_say_so() {
    let outcomes = on_ranks(3, |ranks| {
        let mut fingerprint = same();
        if ranks.rank() == 2 {
            fingerprint[1].1 = "Exact".into();
        }
        ranks.meet(&fingerprint)
    });
    // Rank 1 may come after rank 0 has ended; it is told or finds nobody there.
    let told = |outcome: &Result<Link>| match outcome {
        Err(error @ Error::RankMismatch { rank: 2, .. }) => {
            error.to_string() == "precision is Exact on rank 2 and Fast on rank 0: start all ranks alike"
        }
        _ => false,
    };
    assert!(told(&outcomes[0]) && told(&outcomes[2]), "{outcomes:?}");
    assert!(outcomes[1].is_err());
}

#[test]
fn another_number_of_ranks_is_refused_on_both_sides() {
    let port = free_port();
    let other = thread::spawn(move || rank(1, 3, port).meet(&same()));
    for outcome in [rank(0, 2, port).meet(&same()), other.join().unwrap()] {
        let text = outcome.unwrap_err().to_string();
        assert!(text.starts_with("the number of ranks is 3 on rank 1 and 2 on rank 0"), "{text}");
    }
}

#[test]
fn one_rank_twice_is_refused() {
    let port = free_port();
    let twins = [1, 1].map(|number| thread::spawn(move || rank(number, 3, port).meet(&same())));
    let text = rank(0, 3, port).meet(&same()).unwrap_err().to_string();
    assert!(text.contains("1 again on rank 1"), "{text}");
    for twin in twins {
        assert!(twin.join().unwrap().is_err());
    }
}

#[test]
fn who_does_not_come_is_named() {
    let port = free_port();
    let short = move |number| rank(number, 3, port).meet_within(Duration::from_millis(300));
    let other = thread::spawn(move || short(2).meet(&same()).map(drop));
    let text = short(0).meet(&same()).unwrap_err().to_string();
    assert!(text.contains("did not come within 0.3 seconds: 1;"), "{text}");
    assert!(matches!(other.join().unwrap(), Err(Error::RankFailed { rank: 0, .. } | Error::Rendezvous { .. })));
    let text = short(1).meet(&same()).unwrap_err().to_string();
    assert!(text.contains(&format!("rank 1 at 127.0.0.1:{port}: cannot reach rank 0")), "{text}");
}

#[test]
fn strangers_are_passed_over_and_other_programs_noticed() {
    let port = free_port();
    let other = thread::spawn(move || {
        // A scanner that hangs up, a browser, a rank that lies about a length; then a rank.
        let connect = || {
            let started = Instant::now();
            loop {
                match TcpStream::connect(("127.0.0.1", port)) {
                    Ok(stream) => return stream,
                    Err(error) => assert!(started.elapsed() < Duration::from_secs(10), "{error}"),
                }
            }
        };
        drop(connect());
        connect().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        connect().write_all(b"qwenrank\xff\xff\xff\xff\x01").unwrap();
        rank(1, 2, port).meet(&same()).map(drop)
    });
    rank(0, 2, port).meet(&same()).unwrap();
    other.join().unwrap().unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example ready\r\n").unwrap();
        // What was not read would reset the connection before the greeting arrives.
        let _ = stream.read(&mut [0; 1000]);
    });
    let text = rank(1, 2, port).meet(&same()).unwrap_err().to_string();
    assert!(text.contains("another program answers there"), "{text}");
    server.join().unwrap();
}

#[test]
fn a_program_that_answers_with_what_it_hears_is_no_rank() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        std::io::copy(&mut &stream, &mut &stream)
    });
    let text = rank(1, 2, port).meet(&same()).unwrap_err().to_string();
    assert!(text.contains("another program answers there"), "{text}");
    // How it ended is the other program's concern.
    let _ = echo.join().unwrap();
}

#[test]
fn a_slow_stranger_does_not_stop_the_clock() {
    let port = free_port();
    let leader = rank(0, 2, port).meet_within(Duration::from_millis(500));
    let stranger = thread::spawn(move || {
        let started = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(10), "{error}"),
            }
        };
        // A long hello, byte by byte, until nobody listens any more.
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.write_all(b"qwenrank\0\x40\0\0\x01").unwrap();
        while started.elapsed() < Duration::from_secs(10) && stream.write_all(&[0]).is_ok() {
            if matches!(stream.read(&mut [0]), Ok(0)) {
                break;
            }
        }
    });
    let started = Instant::now();
    let text = leader.meet(&same()).unwrap_err().to_string();
    assert!(text.contains("did not come within 0.5 seconds"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    stranger.join().unwrap();
}

#[test]
fn rank_0_waits_for_its_name_to_appear() {
    let nameless = rank(0, 2, 1).at("", 1).meet_within(Duration::from_millis(300));
    let started = Instant::now();
    let text = nameless.meet(&same()).unwrap_err().to_string();
    assert!(started.elapsed() >= Duration::from_millis(250), "{:?}", started.elapsed());
    assert!(text.contains("cannot listen"), "{text}");
}

#[test]
fn ranks_of_different_patience_do_not_begin() {
    let outcomes = on_ranks(2, |ranks| {
        let seconds = 2 + 28 * ranks.rank() as u64;
        ranks.lost_after(Duration::from_secs(seconds)).meet(&same())
    });
    for outcome in outcomes {
        let text = outcome.unwrap_err().to_string();
        assert_eq!(text, "`lost_after` is 30s on rank 1 and 2s on rank 0: start all ranks alike");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = rank(0, 2, port).meet(&same()).unwrap_err().to_string();
    assert!(text.contains("another program has this port"), "{text}");
}

#[test]
fn a_rank_that_goes_is_an_error_on_the_others() {
    let outcomes = on_ranks(3, |ranks| {
        let link = Arc::new(ranks.meet(&same())?);
        let (woken, wakes) = mpsc::channel();
        link.on_loss(move || woken.send(()).expect("the test waits"));
        let group = TcpGroup::new(link.clone());
        let mut values = vec![1.0; 10];
        group.all_reduce(&mut values)?;
        if link.rank() == 1 {
            return Ok(());
        }
        let outcome = group.all_reduce(&mut values).inspect_err(|error| link.fail(error));
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
fn who_waits_for_a_rank_hears_of_its_loss_before_the_hook() {
    let port = free_port();
    let (go, goes) = mpsc::channel::<()>();
    let gone = thread::spawn(move || {
        let streams = rank(1, 2, port).meet(&same()).unwrap().into_silence();
        let _ = goes.recv();
        streams[0].shutdown(Shutdown::Both).unwrap();
    });
    let link = rank(0, 2, port).meet(&same()).unwrap();
    let (let_go, held) = mpsc::channel::<()>();
    link.on_loss(move || {
        let _ = held.recv();
    });
    drop(go);
    let (said, says) = mpsc::channel();
    let waiting = thread::spawn(move || {
        said.send(link.least(0).unwrap_err().to_string()).expect("the test waits");
        link
    });
    let text = says.recv_timeout(Duration::from_secs(10));
    // Before anything that may fail: the end of the link waits for the hook.
    drop(let_go);
    assert_eq!(text.expect("who waits is woken"), "rank 1 failed: its process has ended");
    drop(waiting.join().unwrap());
    gone.join().unwrap();
}

/// Rank 0 does nothing on the link while rank 2 goes.
#[test]
fn a_loss_is_spread_where_that_is_wanted_and_its_first_words_are_the_cause() {
    let (ended, ends) = mpsc::channel();
    let ends = Arc::new(std::sync::Mutex::new(ends));
    let outcomes = on_ranks(3, move |ranks| {
        let link = ranks.meet(&same())?;
        match link.rank() {
            0 => {
                link.spread_losses();
                link.least(0)?;
                ends.lock().unwrap().recv_timeout(Duration::from_secs(10)).expect("rank 1 ends");
                // Rank 1 is gone as well now, because of rank 2.
                link.receive(1, Kind::Done).map(drop)
            }
            1 => {
                link.least(0)?;
                let outcome = link.receive(0, Kind::Step).map(drop);
                ended.send(()).expect("rank 0 waits");
                outcome
            }
            _ => link.least(0).map(drop),
        }
    });
    for outcome in &outcomes[..2] {
        assert_eq!(outcome.as_ref().unwrap_err().to_string(), "rank 2 failed: its process has ended");
    }
}

#[test]
fn a_loss_is_the_cause_of_what_a_device_reports() {
    let outcomes = on_ranks(2, |ranks| {
        let link = ranks.meet(&same())?;
        let aborted = || Error::Device { device: "card".into(), op: "sum".into(), reason: "aborted".into() };
        if link.rank() == 0 {
            let own = aborted().to_string();
            assert_eq!(link.cause(&aborted()).error().to_string(), format!("rank 0 failed: {own}"));
        }
        // Rank 1 is there until here, and goes then.
        link.least(0)?;
        if link.rank() == 0 {
            let lost = link.least(0).unwrap_err().to_string();
            assert_eq!(link.end_with(aborted()).to_string(), lost);
        }
        Ok(())
    });
    outcomes.into_iter().for_each(|outcome| outcome.unwrap());
}

#[test]
fn a_rank_that_falls_silent_is_lost() {
    let port = free_port();
    let (finish, finished) = mpsc::channel::<()>();
    // A rank that meets, and then neither speaks nor closes.
    let silent = thread::spawn(move || {
        let ranks = rank(1, 2, port).lost_after(Duration::from_millis(400));
        let streams = ranks.meet(&same()).unwrap().into_silence();
        let _ = finished.recv();
        drop(streams);
    });
    let link = rank(0, 2, port).lost_after(Duration::from_millis(400)).meet(&same()).unwrap();
    let started = Instant::now();
    let text = link.least(0).unwrap_err().to_string();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(text, "rank 1 failed: it has given no sign of life for 0.4 seconds");
    drop(finish);
    silent.join().unwrap();
}

#[test]
fn a_rank_that_computes_for_long_is_not_lost() {
    let outcomes = on_ranks(2, |ranks| {
        let link = ranks.lost_after(Duration::from_millis(400)).meet(&same())?;
        if link.rank() == 1 {
            thread::sleep(Duration::from_millis(1500));
        }
        link.least(link.rank() as u64 + 5)
    });
    for outcome in outcomes {
        assert_eq!(outcome.unwrap(), 5);
    }
}

#[test]
fn what_is_not_due_is_refused() {
    let outcomes = on_ranks(2, |ranks| {
        let link = Arc::new(ranks.meet(&same())?);
        match link.rank() {
            0 => TcpGroup::new(link).all_reduce(&mut [0.0; 4]),
            // The right kind with another length.
            _ => TcpGroup::new(link).all_reduce(&mut [0.0; 5]),
        }
    });
    let text = outcomes[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("20 bytes of values where 4 values are due"), "{text}");
    assert!(outcomes[1].is_err());
    let outcomes = on_ranks(2, |ranks| {
        let link = ranks.meet(&same())?;
        if link.rank() == 1 { link.send(Kind::Step, &[]) } else { link.least(1).map(drop) }
    });
    let text = outcomes[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("Step where Number is due"), "{text}");
}

#[test]
fn bytes_that_are_no_message_end_the_link() {
    let port = free_port();
    let other = thread::spawn(move || {
        let stream = &mut rank(1, 2, port).meet(&same()).unwrap().into_silence()[0];
        stream.write_all(&[9, 9, 9, 9, 200]).unwrap();
        // Until the other end has read it.
        while frame::read(stream, 1000).is_ok() {}
    });
    let link = rank(0, 2, port).meet(&same()).unwrap();
    let text = link.least(1).unwrap_err().to_string();
    assert!(text.contains("a kind that this version does not know"), "{text}");
    drop(link);
    other.join().unwrap();
}
