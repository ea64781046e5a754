//! What an application relies on: streams, cancelling, concurrency, reproducibility.
#![cfg(feature = "cpu")]

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::{Folder, SMALL, Shape, demo_engine, options, write_checkpoint};
use qwen::{Engine, FinishReason, GenerateOptions, Precision};

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

#[test]
fn a_cancel_inside_a_prompt_comes_through_within_a_chunk() {
    let folder = Folder::new("cancel");
    let shape = Shape { hidden: 256, inner: 1024, layers: 8, heads: 4, kv_heads: 2, ..SMALL };
    write_checkpoint(&folder.0, shape, |_, _| {});
    let engine = options().context(4096).load(&folder.0).unwrap();
    let started = Instant::now();
    let whole = ids(&engine, &prompt(4000, 1), &sampled(1).max_new_tokens(1));
    let uncancelled = started.elapsed();
    assert_eq!(whole.len(), 1);
    let mut stream = engine.generate_ids(prompt(4000, 1), &sampled(1)).unwrap();
    let canceller = stream.canceller();
    let started = Instant::now();
    let cancel = std::thread::spawn(move || canceller.cancel());
    assert!(stream.next().is_none());
    assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
    assert!(started.elapsed() < uncancelled / 2, "{:?} of {uncancelled:?}", started.elapsed());
    cancel.join().unwrap();
    // The engine goes on, and gives what it gave before.
    assert_eq!(whole, ids(&engine, &prompt(4000, 1), &sampled(1).max_new_tokens(1)));
}

#[test]
fn dropping_a_stream_frees_its_place() {
    let (_folder, engine) = small("drop");
    for _ in 0..50 {
        // Each reserves the whole context: the next could not run if the last had not gone.
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
    // Without a limit the context is one.
    let (tokens, reason) = run(GenerateOptions::new().ignore_eos(true));
    assert_eq!((tokens.len(), reason), (512 - 9, FinishReason::Length));
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
    // What could not be sent was not said.
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
