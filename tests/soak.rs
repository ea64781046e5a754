//! An engine under random clients that read, cancel and drop: answers stay right, blocks are freed, and memory does not
//! grow.
//!
//! A short run by default; `tools/soak.sh` runs it for minutes.
#![cfg(feature = "cpu")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Folder, SMALL, options, write_checkpoint};
use qwen::core::memory::resident_bytes;
use qwen::{Engine, Error, GenerateOptions};

/// Seconds to run; without it each client makes a fixed number of requests.
const SECONDS: &str = "QWEN_SOAK_SECONDS";
const CLIENTS: u64 = 6;
const BATCH: usize = 4;
const CONTEXT: usize = 512;

/// Allowed growth: what the allocator keeps for threads and the largest of the random requests.
const SLACK: u64 = 24 << 20;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

fn prompt(len: usize, seed: u64) -> Vec<u32> {
    (0..len as u64).map(|i| ((i * 37 + seed * 11 + 5) % 290) as u32).collect()
}

fn sampled(seed: u64, tokens: usize) -> GenerateOptions {
    GenerateOptions::new().temperature(1.5).seed(seed).max_new_tokens(tokens).ignore_eos(true)
}

/// Known answers, to compare with those under load.
fn known(engine: &Engine) -> Vec<Vec<u32>> {
    (0..8).map(|n| collect(engine, n).expect("an answer without company")).collect()
}

fn collect(engine: &Engine, n: u64) -> qwen::Result<Vec<u32>> {
    engine.generate_ids(prompt(3 + 45 * n as usize, n), &sampled(n, 12))?.collect()
}

/// One client's request, of a random kind.
fn request(engine: &Engine, known: &[Vec<u32>], random: &mut Random) -> qwen::Result<()> {
    let len = 1 + random.below(CONTEXT as u64 - 80) as usize;
    let (seed, tokens) = (random.below(1000), 1 + random.below(60) as usize);
    let stream = || engine.generate_ids(prompt(len, seed), &sampled(seed, tokens));
    match random.below(6) {
        0 | 1 => {
            let n = random.below(known.len() as u64);
            assert_eq!(collect(engine, n)?, known[n as usize], "known answer {n}");
        }
        // Dropped at once, or after some tokens.
        2 => drop(stream()?),
        3 => {
            let taken = random.below(tokens as u64) as usize;
            stream()?.take(taken).collect::<qwen::Result<Vec<_>>>()?;
        }
        // Cancelled by another thread while it is read.
        4 => {
            let mut stream = stream()?;
            let canceller = stream.canceller();
            std::thread::scope(|scope| {
                scope.spawn(move || canceller.cancel());
                let _ = (&mut stream).collect::<qwen::Result<Vec<_>>>();
            });
        }
        // Some rows of logits.
        _ => {
            let rows = engine.logits_rows(prompt(len, seed))?.take(random.below(20) as usize);
            for row in rows {
                assert!(row?.iter().all(|logit| logit.is_finite()));
            }
        }
    }
    Ok(())
}

#[test]
fn random_clients_leave_nothing_behind() {
    let seconds: Option<u64> = std::env::var(SECONDS).ok().map(|seconds| seconds.parse().expect("a number of seconds"));
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) | 1;
    println!("seed {seed}, {seconds:?} seconds");
    let folder = Folder::new("soak");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let load = || options().batch(BATCH).context(CONTEXT).load(&folder.0).unwrap();
    let known = known(&load());
    let requests = AtomicU64::new(0);
    // The first round warms up the allocator and the threads; later ones are measured against it.
    let mut baseline = 0;
    let mut growth = 0;
    for round in 0..4 {
        let engine = load();
        let end = seconds.map(|seconds| Instant::now() + Duration::from_millis(1000 * seconds / 4));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (engine, known, requests, over) = (&engine, &known, &requests, &over);
                scope.spawn(move || {
                    let mut random = Random(seed.wrapping_mul(0x9e37_79b9 + 2 * (round * CLIENTS + client)) | 1);
                    for made in 0.. {
                        let done = end.map_or(made >= 12, |end| Instant::now() >= end);
                        if done || over.load(Ordering::Relaxed) {
                            break;
                        }
                        match request(engine, known, &mut random) {
                            Ok(()) | Err(Error::Model(qwen::core::Error::Cancelled)) => {}
                            Err(error) => {
                                over.store(true, Ordering::Relaxed);
                                panic!("request {made} of client {client}: {error}");
                            }
                        }
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        // All blocks are free again: as many conversations as fit can run, each at full length.
        let full: Vec<_> = (0..BATCH as u64)
            .map(|n| engine.generate_ids(prompt(CONTEXT - 8, n), &sampled(n, 7)).expect("room for a request"))
            .collect();
        for stream in full {
            assert_eq!(stream.collect::<qwen::Result<Vec<_>>>().expect("a whole answer").len(), 7);
        }
        drop(engine);
        let resident = resident_bytes().unwrap_or_default();
        println!("round {round}: {requests:?} requests, {} KiB resident", resident >> 10);
        match round {
            0 => baseline = resident,
            _ => growth = resident.saturating_sub(baseline),
        }
    }
    assert!(growth <= SLACK, "{growth} bytes more than after the first round");
}
