//! What ranks have to agree on before they start, and which ranks learn of a mismatch.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use super::{SECRET, free_port, on_ranks, rank, same};
use crate::error::{Error, Result};
use crate::ranks::Transport;

#[test]
fn with_a_secret_ranks_that_were_started_differently_all_say_so() {
    let outcomes = on_ranks(3, |ranks| {
        let ranks = ranks.secret(SECRET)?.rendezvous_timeout(Duration::from_secs(5));
        let mut fingerprint = same();
        if ranks.rank() == 2 {
            fingerprint[1].1 = "Exact".into();
        }
        ranks.rendezvous(&fingerprint)
    });
    // Rank 1 may connect before rank 0 has ended, or find nobody there.
    let told = |outcome: &Result<Transport>| match outcome {
        Err(error @ Error::RankMismatch { rank: 2, .. }) => {
            error.to_string() == "precision is Exact on rank 2 and Fast on rank 0: start all ranks alike"
        }
        _ => false,
    };
    assert!(told(&outcomes[0]) && told(&outcomes[2]), "{outcomes:?}");
    assert!(outcomes[1].is_err());
}

#[test]
fn without_a_secret_a_rank_that_differs_is_named_when_the_time_is_up() {
    let port = free_port();
    let other = thread::spawn(move || {
        let different = vec![("model", "demo".to_owned()), ("precision", "Exact".to_owned())];
        rank(1, 2, port).rendezvous(&different).map(drop).unwrap_err().to_string()
    });
    let leader = rank(0, 2, port).rendezvous_timeout(Duration::from_millis(1500));
    let text = leader.rendezvous(&same()).unwrap_err().to_string();
    let different = "precision is Exact on rank 1 and Fast on rank 0: start all ranks alike";
    assert!(text.contains("did not connect within 1.5 seconds: 1;"), "{text}");
    assert!(text.ends_with(&format!("one was rejected: {different}")), "{text}");
    assert_eq!(other.join().unwrap(), different);
}

#[test]
fn with_a_secret_another_number_of_ranks_is_refused_on_both_sides() {
    let port = free_port();
    let start = move |number, size| rank(number, size, port).secret(SECRET)?.rendezvous(&same());
    let other = thread::spawn(move || start(1, 3));
    for outcome in [start(0, 2), other.join().unwrap()] {
        let text = outcome.unwrap_err().to_string();
        assert!(text.starts_with("the number of ranks is 3 on rank 1 and 2 on rank 0"), "{text}");
    }
}

#[test]
fn with_a_secret_one_rank_twice_is_refused_on_all() {
    let port = free_port();
    let start = move |number| rank(number, 3, port).secret(SECRET)?.rendezvous(&same());
    let twins = [1, 1].map(|number| thread::spawn(move || start(number)));
    let text = start(0).unwrap_err().to_string();
    assert!(text.contains("1 again on rank 1"), "{text}");
    for twin in twins {
        assert!(twin.join().unwrap().is_err());
    }
}

#[test]
fn missing_ranks_are_named() {
    let port = free_port();
    let short = move |number| rank(number, 3, port).rendezvous_timeout(Duration::from_millis(300));
    let other = thread::spawn(move || short(2).rendezvous(&same()).map(drop));
    let text = short(0).rendezvous(&same()).unwrap_err().to_string();
    assert!(text.contains("did not connect within 0.3 seconds: 1;"), "{text}");
    assert!(matches!(other.join().unwrap(), Err(Error::RankFailed { rank: 0, .. } | Error::Rendezvous { .. })));
    let text = short(1).rendezvous(&same()).unwrap_err().to_string();
    assert!(text.contains(&format!("rank 1 at 127.0.0.1:{port}: cannot reach rank 0")), "{text}");
}

#[test]
fn rank_0_waits_for_its_name_to_appear() {
    let nameless = rank(0, 2, 1).at("", 1).rendezvous_timeout(Duration::from_millis(300));
    let started = Instant::now();
    let text = nameless.rendezvous(&same()).unwrap_err().to_string();
    assert!(started.elapsed() >= Duration::from_millis(250), "{:?}", started.elapsed());
    assert!(text.contains("cannot listen"), "{text}");
}

#[test]
fn ranks_with_different_heartbeat_timeouts_do_not_start() {
    let outcomes = on_ranks(2, |ranks| {
        let seconds = 2 + 28 * ranks.rank() as u64;
        ranks.secret(SECRET)?.heartbeat_timeout(Duration::from_secs(seconds)).rendezvous(&same())
    });
    for outcome in outcomes {
        let text = outcome.unwrap_err().to_string();
        assert_eq!(text, "`heartbeat_timeout` is 30s on rank 1 and 2s on rank 0: start all ranks alike");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = rank(0, 2, port).rendezvous(&same()).unwrap_err().to_string();
    assert!(text.contains("another program has this port"), "{text}");
}
