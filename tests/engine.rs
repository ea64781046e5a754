//! What an application relies on: streams, cancelling, concurrency, reproducibility.
#![cfg(feature = "cpu")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Folder, SMALL, Shape, demo_engine, options, write_checkpoint};
use qwen::core::Error as ModelError;
use qwen::{Engine, Error, FinishReason, GenerateOptions, Precision};

fn ids(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    engine.generate_ids(prompt, options).unwrap().collect::<qwen::Result<_>>().unwrap()
}

fn prompt(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + seed * 11 + 5) % 290).collect()
}

/// Sampled, so that a difference in the logits shows.
fn sampled(seed: u64) -> GenerateOptions {
    GenerateOptions::new().temperature(1.5).seed(seed).max_new_tokens(24).ignore_eos(true)
}

fn small(name: &str) -> (Folder, Engine) {
    let folder = Folder::new(name);
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let engine = options().batch(4).context(512).load(&folder.0).unwrap();
    (folder, engine)
}

#[test]
fn answers_are_the_same_alone_in_a_crowd_and_on_any_threads() {
    let (folder, engine) = small("crowd");
    let alone: Vec<Vec<u32>> =
        (0..6).map(|n| ids(&engine, &prompt(5 + 60 * n, n as u32), &sampled(n as u64))).collect();
    let crowd: Vec<_> = (0..6)
        .map(|n| {
            let engine = engine.clone();
            std::thread::spawn(move || ids(&engine, &prompt(5 + 60 * n, n as u32), &sampled(n as u64)))
        })
        .collect();
    let crowd: Vec<Vec<u32>> = crowd.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(alone, crowd);
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap());
    for options in
        [options().threads(1), options().threads(3), options().pool(pool), options().max_num_batched_tokens(7)]
    {
        let engine = options.context(512).load(&folder.0).unwrap();
        let found: Vec<Vec<u32>> =
            (0..6).map(|n| ids(&engine, &prompt(5 + 60 * n, n as u32), &sampled(n as u64))).collect();
        assert_eq!(alone, found);
    }
}

#[test]
fn logits_do_not_depend_on_chunks() {
    let (folder, engine) = small("chunks");
    let prompt = prompt(70, 1);
    let bits = |engine: &Engine| engine.logits(&prompt).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let expected = bits(&engine);
    let wide = options().max_num_logits(70).context(512).load(&folder.0).unwrap();
    assert_eq!(expected, bits(&wide));
}

#[test]
fn a_stream_moves_into_a_thread_and_outlives_the_handle() {
    let (_folder, engine) = small("moved");
    let expected = ids(&engine, &prompt(9, 2), &sampled(7));
    let stream = engine.generate_ids(prompt(9, 2), &sampled(7)).unwrap();
    drop(engine);
    let found = std::thread::spawn(move || stream.collect::<qwen::Result<Vec<u32>>>().unwrap()).join().unwrap();
    assert_eq!(expected, found);
}

/// A checkpoint whose prompts take a while.
fn heavy(name: &str) -> Folder {
    let folder = Folder::new(name);
    let shape = Shape { hidden: 256, inner: 1024, layers: 8, heads: 4, kv_heads: 2, ..SMALL };
    write_checkpoint(&folder.0, shape, |_, _| {});
    folder
}

#[test]
fn a_cancel_inside_a_prompt_comes_through_within_a_chunk() {
    let folder = heavy("cancel");
    let engine = options().context(4096).prefix_cache(false).load(&folder.0).unwrap();
    let whole = ids(&engine, &prompt(4000, 1), &sampled(1).max_new_tokens(1));
    assert_eq!(whole.len(), 1);
    let before = engine.stats().work.tokens;
    let mut stream = engine.generate_ids(prompt(4000, 1), &sampled(1)).unwrap();
    let canceller = stream.canceller();
    let cancel = std::thread::spawn(move || canceller.cancel());
    assert!(stream.next().is_none());
    assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
    cancel.join().unwrap();
    let computed = engine.stats().work.tokens - before;
    assert!(computed < 2000, "{computed} of 4000 tokens");
    // The engine continues, and gives the same answers as before.
    assert_eq!(whole, ids(&engine, &prompt(4000, 1), &sampled(1).max_new_tokens(1)));
}

#[test]
fn a_client_that_asks_and_drops_costs_others_a_tenth_at_most() {
    let folder = heavy("storm");
    let load = || options().context(1024).batch(4).prefix_cache(false).load(&folder.0).unwrap();
    let (engine, asked) = (load(), prompt(900, 1));
    let started = Instant::now();
    let alone = ids(&engine, &asked, &sampled(1));
    let quiet = started.elapsed();
    for pause in [Duration::ZERO, Duration::from_millis(3)] {
        let engine = load();
        let done = Arc::new(AtomicBool::new(false));
        let noise: Vec<_> = (0..2)
            .map(|seed| {
                let (engine, done) = (engine.clone(), done.clone());
                std::thread::spawn(move || {
                    let mut dropped = 0;
                    while !done.load(Ordering::SeqCst) {
                        // With a full waiting list a request is refused at once, which costs other requests nothing.
                        let stream = engine.generate_ids(prompt(40, seed), &sampled(1));
                        std::thread::park_timeout(pause);
                        dropped += u32::from(stream.is_ok());
                    }
                    dropped
                })
            })
            .collect();
        let started = Instant::now();
        let answers: Vec<Vec<u32>> = (0..3).map(|_| ids(&engine, &asked, &sampled(1))).collect();
        let noisy = started.elapsed() / 3;
        done.store(true, Ordering::SeqCst);
        let dropped: u32 = noise.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(answers.iter().all(|answer| *answer == alone));
        let work = engine.stats().work;
        assert!(work.lost_steps * 10 <= work.steps && work.lost_tokens * 10 <= work.tokens, "{work:?}");
        println!("{dropped} streams dropped, {pause:?} each: {noisy:?} an answer, {quiet:?} when quiet; {work:?}");
    }
}

#[test]
fn rows_of_logits_are_those_of_the_whole_and_come_beside_answers() {
    let (_folder, engine) = small("rows");
    // The whole context: rows need no room for an answer.
    let text = prompt(512, 4);
    let expected = engine.logits(&text).unwrap();
    let answer = ids(&engine, &prompt(30, 1), &sampled(1));
    let mut rows = engine.logits_rows(text.as_slice()).unwrap();
    let first = rows.next().unwrap().unwrap();
    // Nobody reads further, and other answers still arrive.
    for _ in 0..3 {
        assert_eq!(ids(&engine, &prompt(30, 1), &sampled(1)), answer);
    }
    let rest: Vec<f32> = rows.by_ref().flat_map(Result::unwrap).collect();
    assert!(expected == [first, rest].concat());
    assert!(rows.next().is_none());
    // Cancels of other requests do not affect it, a reader that leaves frees its blocks, and a cancelled one is told.
    for _ in 0..20 {
        drop(engine.logits_rows(text.as_slice()).unwrap().next());
        drop(engine.generate_ids(prompt(30, 1), &sampled(1)).unwrap());
    }
    assert!(expected == engine.logits(&text).unwrap());
    let rows = engine.logits_rows(text.as_slice()).unwrap();
    rows.canceller().cancel();
    assert!(matches!(rows.last(), Some(Err(Error::Model(ModelError::Cancelled)))));
}

#[test]
fn damage_ends_its_own_sequence() {
    // In no prompt below, and too unlikely to be sampled in any of the answers.
    const BAD: u32 = 234;
    let folder = Folder::new("damage");
    let shape = Shape { tied: false, ..SMALL };
    write_checkpoint(&folder.0, shape, |name, bytes| {
        if name == "model.embed_tokens.weight" {
            let row = BAD as usize * 2 * shape.hidden;
            bytes[row..row + 2].copy_from_slice(&0x7f80u16.to_le_bytes());
        }
    });
    let without_bad = |len, seed| -> Vec<u32> { prompt(len, seed).into_iter().map(|id| id % 200).collect() };
    let choose = |seed: u64| match seed % 2 {
        0 => sampled(seed).temperature(0.7).top_k(3),
        _ => sampled(seed).temperature(0.0),
    };
    let engine = options().batch(8).context(512).max_num_batched_tokens(16).load(&folder.0).unwrap();
    let lens = [5, 40, 90, 17];
    let lone = |n: usize| ids(&engine, &without_bad(lens[n], n as u32), &choose(n as u64));
    let alone: Vec<Vec<u32>> = (0..4).map(lone).collect();
    assert!(alone.iter().flatten().all(|id| *id != BAD));
    for place in [0, 20, 44] {
        // In the first part of a prompt, in a later one, and in the last.
        let mut bad = without_bad(45, 9);
        bad[place] = BAD;
        let innocent: Vec<_> =
            (0..4).map(|n| engine.generate_ids(without_bad(lens[n], n as u32), &choose(n as u64)).unwrap()).collect();
        let guilty: Vec<_> = (0..2).map(|n| engine.generate_ids(bad.as_slice(), &choose(n)).unwrap()).collect();
        for mut stream in guilty {
            match stream.next() {
                Some(Err(Error::Model(error @ ModelError::NonFinite { .. }))) => {
                    assert!(error.to_string().starts_with("sequence "), "{error}");
                    assert_eq!(error.to_string().contains("in the embedding:"), place == 44, "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        let beside: Vec<Vec<u32>> = innocent.into_iter().map(|s| s.collect::<qwen::Result<_>>().unwrap()).collect();
        assert_eq!(alone, beside);
        // The blocks that held NaN belong to other sequences now.
        assert_eq!(alone, (0..4).map(lone).collect::<Vec<_>>());
        assert!(matches!(engine.logits(&bad), Err(Error::Model(ModelError::NonFinite { .. }))));
    }
}

#[test]
fn penalties_at_their_bounds_choose_tokens_and_beyond_them_are_refused() {
    let (_folder, engine) = small("penalties");
    for penalty in [0.01, 100.0] {
        for temperature in [0.0, 1.0, 1e-30, 1e30] {
            let options = sampled(1).temperature(temperature).repetition_penalty(penalty);
            let found = ids(&engine, &prompt(40, 1), &options);
            assert!(found.len() == 24 && found.iter().all(|id| *id < 300), "{found:?}");
        }
    }
    for penalty in [1e-45, 3e38, 0.0, f32::NAN] {
        let refused = engine.generate_ids(prompt(4, 1), &sampled(1).repetition_penalty(penalty)).map(drop);
        let Err(Error::Model(ModelError::InvalidArgument { name: "repetition_penalty", .. })) = refused else {
            panic!("{refused:?}")
        };
    }
}

#[test]
fn too_many_waiting_requests_are_refused() {
    let (folder, _) = small("waiting");
    let engine = options().context(512).max_waiting(2).load(&folder.0).unwrap();
    let whole_context = GenerateOptions::new().ignore_eos(true);
    let ask = || engine.generate_ids(prompt(9, 1), &whole_context);
    let mut running = ask().unwrap();
    // It runs, and has all the blocks.
    running.next().unwrap().unwrap();
    let waiting = [ask().unwrap(), ask().unwrap()];
    match ask() {
        Err(Error::Model(error @ ModelError::QueueFull { waiting: 2, max_waiting: 2 })) => {
            assert!(error.to_string().starts_with("2 requests are waiting"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let lens: Vec<usize> = [running].into_iter().chain(waiting).map(Iterator::count).collect();
    assert_eq!(lens, [502, 503, 503]);
    assert_eq!(ask().unwrap().count(), 503);
}

#[test]
fn the_checkpoints_min_p_and_max_length_have_their_meaning() {
    let (folder, plain) = small("generation");
    let load = |config: &str| {
        std::fs::write(folder.0.join("generation_config.json"), config).unwrap();
        options().context(512).load(&folder.0).unwrap()
    };
    let free = GenerateOptions::new().ignore_eos(true);
    let greedy = ids(&plain, &prompt(9, 1), &free.clone().greedy().max_new_tokens(24));
    let short = free.clone().max_new_tokens(24);
    let wide = load(r#"{"do_sample": true, "temperature": 5.0, "top_k": 0}"#);
    assert_ne!(ids(&wide, &prompt(9, 1), &short), greedy);
    // With min_p 1 only the most likely token remains.
    let narrow = load(r#"{"do_sample": true, "temperature": 5.0, "top_k": 0, "min_p": 1.0}"#);
    assert_eq!(ids(&narrow, &prompt(9, 1), &short), greedy);
    assert_ne!(ids(&narrow, &prompt(9, 1), &short.clone().min_p(0.0)), greedy);
    let bounded = load(r#"{"max_length": 20}"#);
    assert_eq!(ids(&bounded, &prompt(9, 1), &free).len(), 11);
    assert_eq!(ids(&bounded, &prompt(9, 1), &short).len(), 24);
    let refused = bounded.generate_ids(prompt(20, 1), &free).map(drop).unwrap_err().to_string();
    assert!(refused.starts_with("`max_length`: ") && refused.contains("20"), "{refused}");
}

#[test]
fn dropping_a_stream_frees_its_place() {
    let (_folder, engine) = small("drop");
    for _ in 0..50 {
        // Each reserves the whole context: the next one can only run if the last one has been freed.
        let mut stream = engine.generate_ids(prompt(9, 1), &GenerateOptions::new().ignore_eos(true)).unwrap();
        stream.next().unwrap().unwrap();
    }
    assert_eq!(ids(&engine, &prompt(9, 1), &sampled(1)).len(), 24);
}

#[test]
fn the_end_of_an_answer_says_why() {
    let (_folder, engine) = small("reasons");
    let run = |options: GenerateOptions| {
        let mut stream = engine.generate_ids(prompt(9, 1), &options).unwrap();
        let tokens: Vec<u32> = (&mut stream).collect::<qwen::Result<_>>().unwrap();
        (tokens, stream.finish_reason().unwrap())
    };
    let (tokens, reason) = run(sampled(1));
    assert_eq!((tokens.len(), reason), (24, FinishReason::Length));
    let stop = tokens[10];
    let first = tokens.iter().position(|token| *token == stop).unwrap();
    let (stopped, reason) = run(sampled(1).stop_token_ids([stop]));
    assert_eq!((stopped.as_slice(), reason), (&tokens[..first], FinishReason::Stop));
    // Without a limit, the context is the limit.
    let (tokens, reason) = run(GenerateOptions::new().ignore_eos(true));
    assert_eq!((tokens.len(), reason), (512 - 9, FinishReason::ContextFull));
}

#[test]
fn a_chat_remembers_and_refuses_to_talk_over_itself() {
    let engine = demo_engine();
    let mut chat = engine.chat().options(GenerateOptions::new().max_new_tokens(16));
    let reply = chat.send("Hello!").unwrap();
    assert!(chat.send("Hello?").is_err(), "a second question while the answer is arriving");
    let text = reply.text().unwrap();
    assert!(!text.is_empty());
    let messages = chat.messages();
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[1].text().unwrap(), text);
    let mut again = engine.chat().options(GenerateOptions::new().max_new_tokens(16));
    assert_eq!(again.send("Hello!").unwrap().text().unwrap(), text);
    // A message that could not be sent is not in the conversation.
    assert!(chat.send("word ".repeat(20_000)).is_err());
    assert_eq!(chat.messages().len(), 2);
}

#[test]
fn pieces_are_the_text() {
    let engine = demo_engine();
    let options = GenerateOptions::new().temperature(3.0).seed(5).max_new_tokens(200).ignore_eos(true);
    let tokens: Vec<u32> = {
        let prompt = engine.tokenizer().unwrap().encode("Hello", true).unwrap();
        ids(&engine, &prompt, &options)
    };
    let pieces: Vec<String> = engine.generate("Hello", &options).unwrap().collect::<qwen::Result<_>>().unwrap();
    assert_eq!(pieces.concat(), engine.tokenizer().unwrap().decode(&tokens, true));
}

#[test]
fn exact_and_fast_are_both_deterministic_and_differ() {
    let (folder, fast) = small("precisions");
    let exact = options().precision(Precision::Exact).context(512).load(&folder.0).unwrap();
    let prompt = prompt(40, 3);
    let (a, b) = (fast.logits(&prompt).unwrap(), exact.logits(&prompt).unwrap());
    assert_eq!(a, fast.logits(&prompt).unwrap());
    assert_eq!(b, exact.logits(&prompt).unwrap());
    let error = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    let size = b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
    assert!(error / size < 0.02, "{}", error / size);
}
