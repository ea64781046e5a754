//! Requests beside each other and after each other on a real model: K/V that is shared, and too little of it for all.
#![cfg(feature = "cpu")]

mod common;

use common::{Folder, SMALL, options, write_checkpoint};
use qwen::{Engine, EngineOptions, GenerateOptions, Precision, Speculation};

fn ids(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    engine.generate_ids(prompt, options).unwrap().collect::<qwen::Result<_>>().unwrap()
}

fn prompt(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + if i < 70 { 0 } else { seed * 11 } + 5) % 290).collect()
}

/// Sampled, so that a difference in the logits shows.
fn sampled(seed: u64, max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions::new().temperature(1.5).seed(seed).max_new_tokens(max_new_tokens).ignore_eos(true)
}

#[test]
fn answers_have_the_same_bits_with_and_without_the_prefix_cache() {
    let folder = Folder::new("prefix");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    for precision in [Precision::Exact, Precision::Fast] {
        let load = |on| options().precision(precision).context(512).prefix_cache(on).load(&folder.0).unwrap();
        let (with, without) = (load(true), load(false));
        let mut history = prompt(100, 1);
        for turn in 0..5 {
            let asked = sampled(turn, 20);
            let answer = ids(&with, &history, &asked);
            assert_eq!(answer, ids(&without, &history, &asked), "turn {turn} in {precision}");
            history.extend(answer);
            history.extend(prompt(9, turn as u32));
        }
        assert_eq!(without.stats().cached_tokens, 0);
        // Each turn computes its own tokens alone.
        let stats = with.stats();
        assert!(stats.computed_tokens < 100 + 5 * (20 + 9), "{stats:?}");
    }
}

#[test]
fn a_turn_says_how_much_of_its_prompt_was_there() {
    let engine = common::demo_engine();
    let mut chat = engine.chat().options(GenerateOptions::new().greedy());
    let mut first = chat.send("What is the capital of Peru? ".repeat(3)).unwrap();
    assert!(first.by_ref().all(|piece| piece.is_ok()));
    assert_eq!(first.stats().cached_tokens, 0);
    let told = first.stats().prompt_tokens + first.stats().new_tokens;
    drop(first);
    let mut second = chat.send("And of Chile?").unwrap();
    assert!(second.by_ref().all(|piece| piece.is_ok()));
    // The last token of an answer is never computed: here the one that stopped it.
    assert_eq!(second.stats().cached_tokens, told);
    let salted = GenerateOptions::new().greedy().cache_salt("another tenant");
    drop(second);
    let mut third = chat.send_with("And of Chile?", &salted).unwrap();
    assert!(third.by_ref().all(|piece| piece.is_ok()));
    assert_eq!(third.stats().cached_tokens, 0);
}

#[test]
fn answers_that_give_way_to_others_are_those_of_a_lone_request() {
    let folder = Folder::new("company");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    // Blocks for 512 positions; eight requests that end at 300 need five times as many. Without a thread of its own the
    // engine begins when all of them are there.
    let engine = EngineOptions::new().context(512).manual().load(&folder.0).unwrap();
    let asked = |n: u32| (prompt(40 + 20 * n as usize, n), sampled(u64::from(n), 300 - 40 - 20 * n as usize));
    let crowd: Vec<_> = (0..8)
        .map(|n| {
            let (prompt, options) = asked(n);
            engine.generate_ids(prompt, &options).unwrap()
        })
        .collect();
    let crowd: Vec<Vec<u32>> = crowd.into_iter().map(|stream| stream.collect::<qwen::Result<_>>().unwrap()).collect();
    let stats = engine.stats();
    assert!(stats.num_preemptions > 0, "{stats:?}");
    assert_eq!((stats.running, stats.waiting, stats.preempted), (0, 0, 0));
    let lone = EngineOptions::new().context(512).prefix_cache(false).load(&folder.0).unwrap();
    for (n, found) in (0..8).zip(&crowd) {
        let (prompt, options) = asked(n);
        assert_eq!(*found, ids(&lone, &prompt, &options), "request {n}");
    }
}

#[test]
fn guessed_answers_have_the_same_tokens() {
    let folder = Folder::new("speculation");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    for precision in [Precision::Exact, Precision::Fast] {
        let engine = options().precision(precision).context(512).load(&folder.0).unwrap();
        // A prompt that repeats itself, so that there is something to guess, at temperatures that do and do not.
        let repeated = prompt(20, 3).repeat(4);
        for (seed, temperature) in [(1, 0.0), (2, 0.2), (3, 1.0)] {
            let plain = sampled(seed, 150).temperature(temperature);
            let guessed = plain.clone().speculation(Speculation::PromptLookup);
            assert_eq!(ids(&engine, &repeated, &plain), ids(&engine, &repeated, &guessed), "{precision} {temperature}");
        }
        // How much is guessed depends on measured times.
        println!("{precision}: {:?}", engine.stats());
    }
}

#[test]
fn an_answer_whose_time_is_over_ends_with_a_kind_of_its_own() {
    let engine = common::demo_engine();
    let options = GenerateOptions::new().timeout(std::time::Duration::ZERO);
    let error = engine.generate("What is the capital of Peru?", &options).unwrap().text().unwrap_err();
    assert_eq!(error.kind(), qwen::ErrorKind::DeadlineExceeded);
    let json = serde_json::json!({"timeout_seconds": 0.5, "user": "a", "priority": 3});
    let options: GenerateOptions = serde_json::from_value(json).unwrap();
    assert_eq!(options.timeout, Some(std::time::Duration::from_millis(500)));
    assert!(engine.generate("What is the capital of Peru?", &options.timeout(std::time::Duration::MAX)).is_ok());
}
