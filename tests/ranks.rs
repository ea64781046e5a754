//! One model over several ranks: the same answers, all ranks in sync, and an error on every rank when one fails.
//!
//! Ranks are threads here, which connect over the loopback interface as processes do; `tests/rank_processes.rs` has
//! processes.
#![cfg(feature = "cpu")]

mod common;

use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{Folder, SMALL, Shape, demo, free_port, options, write_checkpoint};
use qwen::core::Error as ModelError;
use qwen::core::backend::reference::Reference;
use qwen::{Engine, EngineOptions, Error, FinishReason, GenerateOptions, Precision, Ranks};

fn rank(rank: usize, world_size: usize, port: u16) -> Ranks {
    Ranks::new(rank, world_size).unwrap().at("127.0.0.1", port).rendezvous_timeout(Duration::from_secs(60))
}

type Workers = Vec<JoinHandle<qwen::Result<()>>>;

/// The options that the ranks have in common.
type Share = fn(Ranks) -> Ranks;
const HEADS: Share = |ranks| ranks;
const LAYERS: Share = Ranks::pipeline_parallel;

/// Load on ranks that are threads of this process.
fn load(
    path: &std::path::Path,
    (share, world_size): (Share, usize),
    options: impl Fn() -> EngineOptions,
) -> (qwen::Result<Engine>, Workers) {
    let port = free_port();
    let start = |number| {
        let (options, path) = (options().ranks(share(rank(number, world_size, port))), path.to_owned());
        thread::spawn(move || options.run_worker(path))
    };
    let workers = (1..world_size).map(start).collect();
    (options().ranks(share(rank(0, world_size, port))).load(path), workers)
}

/// Drop the engine, which ends the workers.
fn end(engine: Engine, workers: Workers) {
    drop(engine);
    for worker in workers {
        worker.join().unwrap().unwrap();
    }
}

fn ids(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> qwen::Result<Vec<u32>> {
    engine.generate_ids(prompt, options)?.collect()
}

fn prompt(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + seed * 11 + 5) % 290).collect()
}

/// The size of the difference of `a` and `b`, relative to that of `b`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let error = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (error / square(&mut b.iter().map(|b| f64::from(*b)))).sqrt()
}

#[test]
fn ranks_compute_what_one_process_computes() {
    for precision in [Precision::Exact, Precision::Fast] {
        let options = || options().threads(1).precision(precision).context(256);
        let whole = options().load(demo()).unwrap();
        let question = whole.tokenizer().unwrap().encode("What is 3 + 4? Hello, who are you?", true).unwrap();
        let expected = whole.logits(&question).unwrap();
        // The last number is more ranks than K/V heads: each of the two heads is on two ranks.
        for world_size in [2, 4] {
            let (engine, workers) = load(&demo(), (HEADS, world_size), options);
            let engine = engine.unwrap();
            let found = engine.logits(&question).unwrap();
            let limit = if precision == Precision::Exact { 1e-5 } else { 0.02 };
            let difference = difference(&found, &expected);
            assert!(difference < limit, "{world_size} ranks, {precision:?}: {difference}");
            assert_eq!(found, engine.logits(&question).unwrap());
            end(engine, workers);
        }
        // Each layer is whole on one rank: the bits are those of one process.
        for world_size in [2, 3, 6] {
            let (engine, workers) = load(&demo(), (LAYERS, world_size), options);
            let engine = engine.unwrap();
            assert!(expected == engine.logits(&question).unwrap(), "{world_size} ranks in a pipeline, {precision:?}");
            end(engine, workers);
        }
    }
}

/// Like the 3B model over 8 ranks: each of the K/V heads is on four of them.
#[test]
fn ranks_up_to_8_compute_what_one_process_computes() {
    let folder = Folder::new("ranks-8");
    let shape = Shape { hidden: 256, inner: 512, layers: 2, heads: 8, kv_heads: 2, ..SMALL };
    write_checkpoint(&folder.0, shape, |_, _| {});
    let options = || options().threads(1).precision(Precision::Exact).context(128);
    let whole = options().load(&folder.0).unwrap();
    let expected = whole.logits(&prompt(40, 3)).unwrap();
    for world_size in [2, 4, 8] {
        let (engine, workers) = load(&folder.0, (HEADS, world_size), options);
        let engine = engine.unwrap();
        let difference = difference(&engine.logits(&prompt(40, 3)).unwrap(), &expected);
        assert!(difference < 1e-5, "{world_size} ranks: {difference}");
        end(engine, workers);
    }
}

#[test]
fn answers_do_not_depend_on_the_crowd_over_ranks_either() {
    let folder = Folder::new("ranks-crowd");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let (engine, workers) = load(&folder.0, (HEADS, 2), || options().threads(1).batch(4).context(512));
    let engine = engine.unwrap();
    let ask = |n: usize| {
        let sampled = GenerateOptions::new().temperature(1.5).seed(n as u64).max_new_tokens(12).ignore_eos(true);
        (prompt(5 + 60 * n, n as u32), sampled)
    };
    let alone: Vec<_> = (0..4).map(ask).map(|(prompt, options)| ids(&engine, &prompt, &options).unwrap()).collect();
    let crowd: Vec<_> = (0..4)
        .map(|n| {
            let engine = engine.clone();
            thread::spawn(move || {
                let (prompt, options) = ask(n);
                ids(&engine, &prompt, &options).unwrap()
            })
        })
        .collect();
    for (alone, crowd) in alone.into_iter().zip(crowd) {
        assert_eq!(alone, crowd.join().unwrap());
    }
    end(engine, workers);
}

#[test]
fn a_cancelled_request_leaves_no_rank_out_of_step() {
    let folder = Folder::new("ranks-cancel");
    let shape = Shape { hidden: 128, inner: 512, layers: 4, heads: 4, kv_heads: 2, ..SMALL };
    write_checkpoint(&folder.0, shape, |_, _| {});
    for share in [HEADS, LAYERS] {
        let (engine, workers) =
            load(&folder.0, (share, 2), || options().threads(1).context(4096).max_num_batched_tokens(64));
        let engine = engine.unwrap();
        let options = GenerateOptions::new().greedy().max_new_tokens(4).ignore_eos(true);
        let expected = ids(&engine, &prompt(300, 1), &options).unwrap();
        for pause in [0, 1, 5, 20, 50] {
            let mut stream = engine.generate_ids(prompt(3000, 2), &options).unwrap();
            let canceller = stream.canceller();
            let cancel = thread::spawn(move || {
                thread::sleep(Duration::from_millis(pause));
                canceller.cancel();
            });
            assert!(stream.next().is_none());
            assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
            cancel.join().unwrap();
            assert_eq!(ids(&engine, &prompt(300, 1), &options).unwrap(), expected);
        }
        end(engine, workers);
    }
}

#[test]
fn damage_is_found_on_all_ranks_and_the_engine_goes_on() {
    // The first values of a matrix are on rank 0, the last ones on rank 1; in a pipeline rank 0 has the last layer.
    for (share, world_size, layer, at_end) in
        [(HEADS, 2, 1, false), (HEADS, 2, 1, true), (LAYERS, 2, 0, false), (LAYERS, 2, 2, false), (LAYERS, 3, 1, true)]
    {
        let folder = Folder::new(&format!("ranks-damage-{world_size}-{layer}-{at_end}"));
        write_checkpoint(&folder.0, Shape { layers: 3, ..SMALL }, |name, bytes| {
            if name == format!("model.layers.{layer}.mlp.up_proj.weight") {
                let at = if at_end { bytes.len() - 2 } else { 0 };
                bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
            }
        });
        let (engine, workers) = load(&folder.0, (share, world_size), || options().threads(1).context(128));
        let engine = engine.unwrap();
        for options in [GenerateOptions::new().greedy(), GenerateOptions::new().temperature(1.0)] {
            match ids(&engine, &prompt(9, 1), &options) {
                Err(Error::Model(ModelError::NonFinite { place, .. })) => assert_eq!(place, format!("layer {layer}")),
                other => panic!("{other:?}"),
            }
        }
        end(engine, workers);
    }
}

#[test]
fn a_rank_that_cannot_load_ends_the_others_with_its_reason() {
    let (folder, other) = (Folder::new("ranks-load"), Folder::new("ranks-load-other"));
    let shape = Shape { tied: false, ..SMALL };
    write_checkpoint(&folder.0, shape, |_, _| {});
    write_checkpoint(&other.0, shape, |name, bytes| {
        if name == "model.norm.weight" {
            bytes[0] ^= 1;
        }
    });
    let start = |other: &std::path::Path, worker: EngineOptions| {
        let (port, other) = (free_port(), other.to_owned());
        // With a secret a mismatch ends all ranks at once.
        let rank = move |number| rank(number, 2, port).secret("the secret of this test").unwrap();
        let worker = thread::spawn(move || worker.ranks(rank(1)).run_worker(other).unwrap_err());
        let leader = options().threads(1).ranks(rank(0)).load(&folder.0).unwrap_err();
        (leader.to_string(), worker.join().unwrap().to_string())
    };
    let (leader, worker) = start(&folder.0, options().threads(1).memory_budget(1000));
    assert!(leader.starts_with("rank 1 failed: needs ") && leader.contains("1000 bytes are available"), "{leader}");
    assert!(worker.starts_with("needs "), "{worker}");
    let (leader, worker) = start(&other.0, options().threads(1));
    assert!(leader.starts_with("the digest of the weights is "), "{leader}");
    assert_eq!(leader, worker);
    let (leader, worker) = start(&folder.0, options().threads(1).precision(Precision::Exact));
    assert_eq!(leader, "`precision` is Exact on rank 1 and Fast on rank 0: start all ranks alike");
    assert_eq!(leader, worker);
}

#[test]
fn a_context_that_nobody_asked_for_is_agreed_on() {
    let folder = Folder::new("ranks-context");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let port = free_port();
    let whole = qwen::plan(&folder.0, &options().threads(1).ranks(rank(1, 2, port))).unwrap();
    let budget = whole.weight_bytes + whole.activation_bytes + whole.kv_bytes / 3;
    let (path, tight) = (folder.0.clone(), options().threads(1).memory_budget(budget).ranks(rank(1, 2, port)));
    let worker = thread::spawn(move || tight.run_worker(path));
    let engine = options().threads(1).ranks(rank(0, 2, port)).load(&folder.0).unwrap();
    assert!(engine.context() < whole.context, "{} of {}", engine.context(), whole.context);
    assert_eq!(
        ids(&engine, &prompt(20, 1), &GenerateOptions::new().max_new_tokens(3).ignore_eos(true)).unwrap().len(),
        3
    );
    end(engine, vec![worker]);
}

#[test]
fn a_plan_is_that_of_one_rank() {
    let plan = |rank: usize, ranks: usize| {
        qwen::plan(demo(), &options().context(512).ranks(Ranks::new(rank, ranks).unwrap())).unwrap()
    };
    let (whole, half, quarter) = (plan(0, 1), plan(0, 2), plan(0, 4));
    assert_eq!(half.kv_bytes * 2, whole.kv_bytes);
    // Two K/V heads over four ranks: each rank has a whole one.
    assert_eq!(quarter.kv_bytes, half.kv_bytes);
    assert!(quarter.weight_bytes < half.weight_bytes && half.weight_bytes < whole.weight_bytes);
    let error = qwen::plan(demo(), &options().ranks(Ranks::new(0, 3).unwrap())).unwrap_err().to_string();
    assert!(error.ends_with("can be cut over this many ranks: 1, 2, 4"), "{error}");
    let layers = |rank: usize, ranks: usize| {
        qwen::plan(demo(), &options().context(512).ranks(Ranks::new(rank, ranks).unwrap().pipeline_parallel()))
    };
    let thirds = [0, 1, 2].map(|rank| layers(rank, 3).unwrap());
    assert_eq!(thirds.iter().map(|plan| plan.kv_bytes).sum::<u64>(), whole.kv_bytes);
    // Rank 1 embeds, rank 0 has the output head: both hold the table, which serves as both here.
    assert!(thirds[2].weight_bytes < thirds[1].weight_bytes && thirds[1].weight_bytes <= thirds[0].weight_bytes);
    let error = layers(0, 7).unwrap_err().to_string();
    assert!(error.ends_with("7 ranks cannot share 6 layers"), "{error}");
}

#[test]
fn each_rank_is_told_what_to_call() {
    let error = options().ranks(rank(1, 2, 1)).load(demo()).unwrap_err().to_string();
    assert!(error.contains("rank 1 of 2 has no engine"), "{error}");
    let error = options().ranks(rank(0, 2, 1)).run_worker(demo()).unwrap_err().to_string();
    assert!(error.contains("rank 0 has the engine"), "{error}");
}

#[test]
fn backends_of_the_program_run_over_ranks() {
    let folder = Folder::new("ranks-own");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let port = free_port();
    let path = folder.0.clone();
    let worker = thread::spawn(move || {
        EngineOptions::new().context(64).ranks(rank(1, 2, port)).run_worker_with_backend(Reference::new(), path)
    });
    let options = || EngineOptions::new().context(64);
    let engine = options().ranks(rank(0, 2, port)).load_with_backend(Reference::new(), &folder.0).unwrap();
    let whole = options().load_with_backend(Reference::new(), &folder.0).unwrap();
    let difference = difference(&engine.logits(&prompt(30, 4)).unwrap(), &whole.logits(&prompt(30, 4)).unwrap());
    assert!(difference < 1e-5, "{difference}");
    end(engine, vec![worker]);
}

#[test]
fn ranks_save_conversations_without_their_kv() {
    let folder = Folder::new("ranks-saved");
    let path = folder.0.join("one.chat");
    let (engine, workers) = load(&demo(), (HEADS, 2), options);
    let engine = engine.unwrap();
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(40).ignore_eos(true));
    chat.send("What is 3 + 4?").unwrap().text().unwrap();
    assert_eq!(chat.save(&path).unwrap(), 0);
    let whole = options().load(demo()).unwrap();
    let mut restored = whole.restore(&path).unwrap();
    assert_eq!(restored.state(), chat.state());
    // K/V of one process is refused by name, and its messages go on.
    restored.send("And 5 + 6?").unwrap().text().unwrap();
    assert!(restored.save(&path).unwrap() > 0);
    let error = engine.restore(&path).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::Unsupported { .. })), "{error}");
    assert!(error.to_string().contains("save the messages alone"), "{error}");
    let resumed = engine.resume(qwen::ChatState::load(&path).unwrap()).unwrap();
    assert_eq!(resumed.messages(), restored.messages());
    drop((chat, resumed));
    end(engine, workers);
}
