//! Choosing tokens through the facade: seeds, words, and what a checkpoint's defaults are used for.

mod common;

use std::sync::Arc;

use common::demo_engine;
use qwen::{Dry, Engine, ErrorKind, GenerateOptions, History, LogitsProcessor, Mirostat, Preset, Stage};

fn wild() -> GenerateOptions {
    GenerateOptions::new().temperature(4.0).top_k(0).max_new_tokens(24).ignore_eos(true)
}

/// The ids of an answer, and its seed.
fn answer(engine: &Engine, options: &GenerateOptions) -> (Vec<u32>, Option<u64>) {
    let mut stream = engine.generate_ids([1, 2, 3], options).unwrap();
    let ids = stream.by_ref().collect::<qwen::Result<_>>().unwrap();
    (ids, stream.stats().seed)
}

fn refused(engine: &Engine, options: &GenerateOptions) -> String {
    let error = engine.generate_ids([1, 2, 3], options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    error.to_string()
}

#[test]
fn an_answer_without_a_seed_is_another_one_each_time_and_can_be_had_again() {
    let engine = demo_engine();
    let (first, seed) = answer(&engine, &wild());
    let (second, other) = answer(&engine, &wild());
    assert_ne!(first, second);
    assert_ne!(seed, other);
    assert_eq!(answer(&engine, &wild().seed(seed.unwrap())), (first, seed));
    assert_eq!(answer(&engine, &wild().seed(other.unwrap())), (second, other));
    assert_eq!(answer(&engine, &wild().seed(0)).1, Some(0));
    // A greedy answer draws nothing.
    assert_eq!(answer(&engine, &wild().greedy()).1, None);
    let mut chat = engine.chat().options(wild());
    let replies: Vec<String> = (0..2).map(|_| chat.send("Hello!").unwrap().text().unwrap()).collect();
    assert_ne!(replies[0], replies[1]);
}

#[test]
fn words_are_not_written_and_others_come_first() {
    let engine = demo_engine();
    let ask = |options: GenerateOptions| {
        engine.chat().options(options.greedy().max_new_tokens(40)).send("What is 47 + 38?").unwrap().text().unwrap()
    };
    let plain = ask(GenerateOptions::new());
    assert!(plain.contains("85"), "{plain}");
    let other = ask(GenerateOptions::new().bad_words(["85"]));
    assert!(!other.contains("85") && !other.is_empty(), "{other}");
    let ids = engine.tokenizer().unwrap().encode("Hm, 8", false).unwrap();
    let forced = ask(GenerateOptions::new().forced_token_ids(ids.clone()));
    assert!(forced.starts_with("Hm, 8"), "{forced}");
    assert_eq!(
        answer(&engine, &wild().allowed_token_ids([40, 41])).0.iter().filter(|id| ![40, 41].contains(id)).count(),
        0
    );
    // The answer to a greeting is short.
    let stats = |options: GenerateOptions| {
        let mut reply = engine.chat().options(options.greedy()).send("Hello!").unwrap();
        reply.by_ref().for_each(|piece| drop(piece.unwrap()));
        reply.stats().new_tokens
    };
    assert!(stats(GenerateOptions::new()) < 30);
    assert!(stats(GenerateOptions::new().min_new_tokens(30).max_new_tokens(40)) >= 30);
}

#[test]
fn penalties_end_a_loop() {
    let engine = demo_engine();
    // The most likely token of the same few, again and again.
    let few = || GenerateOptions::new().greedy().allowed_token_ids([40, 41, 42]).max_new_tokens(30).ignore_eos(true);
    let longest_run = |options: GenerateOptions| {
        let (ids, _) = answer(&engine, &options);
        ids.chunk_by(|a, b| a == b).map(<[u32]>::len).max().unwrap()
    };
    assert!(longest_run(few()) >= 5);
    assert!(longest_run(few().frequency_penalty(100.0)) <= 2);
    assert!(longest_run(few().dry(Dry::new(1e5).sequence_breakers([""; 0]))) <= 4);
    assert_eq!(longest_run(few().no_repeat_ngram_size(2).max_new_tokens(5)), 2);
    // Breakers are found in the vocabulary, once.
    for _ in 0..2 {
        assert_eq!(answer(&engine, &few().dry(Dry::new(0.8))).0.len(), 30);
    }
}

#[test]
fn what_is_wrong_with_a_request_is_named() {
    let engine = demo_engine();
    let vocab = engine.config().vocab_size as u32;
    for (options, name) in [
        (wild().typical_p(0.0), "typical_p"),
        (wild().presence_penalty(f32::NAN), "presence_penalty"),
        (wild().banned_token_ids([vocab]), "banned_token_ids"),
        (wild().logit_bias([(vocab, 1.0)]), "logit_bias"),
        (wild().bad_words([" "]), "bad_words"),
        (wild().dry(Dry::new(0.5).sequence_breakers([""])), "dry.sequence_breakers"),
        (wild().mirostat(Mirostat::new(3.0, 0.1)).top_p(0.5), "mirostat"),
        (wild().min_p(0.5).stages(vec![Stage::Temperature]), "stages"),
    ] {
        let text = refused(&engine, &options);
        assert!(text.starts_with(&format!("`{name}`: ")), "{text}");
    }
    // What turns out only later ends the answer.
    let mut stream = engine.generate_ids([1], &wild().allowed_token_ids([5]).banned_token_ids([5])).unwrap();
    let error = stream.next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("no token is left"), "{error}");
    assert!(stream.next().is_none());
    assert_eq!(answer(&engine, &wild().seed(1)).0.len(), 24, "others go on");
}

#[test]
fn a_listed_order_leaves_the_checkpoints_other_values_alone() {
    let engine = demo_engine();
    let (ids, _) = answer(&engine, &wild().stages(vec![Stage::Temperature, Stage::MinP]).min_p(1.0));
    assert_eq!(ids, answer(&engine, &wild().greedy()).0);
    let options: GenerateOptions = serde_json::from_str(
        r#"{"preset": "llama_cpp", "stages": ["top_k", "temperature"], "logit_bias": {"7": -100}, "top_k": 3,
            "mirostat": null, "dry": {"multiplier": 0.8}}"#,
    )
    .unwrap();
    assert_eq!((options.preset, options.logit_bias[&7]), (Preset::LlamaCpp, -100.0));
    assert_eq!(options.dry, Some(Dry::new(0.8)));
    let back: GenerateOptions = serde_json::from_value(serde_json::to_value(&options).unwrap()).unwrap();
    assert_eq!(back, options);
}

#[derive(Debug)]
struct Panics;

impl LogitsProcessor for Panics {
    fn process(&self, history: &History<'_>, _: &mut [f32]) {
        assert!(history.position() < 3, "enough");
    }
}

#[test]
fn a_processor_that_panics_ends_its_own_answer() {
    let engine = demo_engine();
    let other = engine.generate_ids([1, 2, 3], &wild().seed(2)).unwrap();
    let mut stream = engine.generate_ids([1, 2, 3], &wild().seed(2).processor(Arc::new(Panics))).unwrap();
    assert_eq!(stream.by_ref().take(3).filter(|id| id.is_ok()).count(), 3);
    let error = stream.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("enough"), "{error}");
    assert_eq!(other.count(), 24);
    assert_eq!(answer(&engine, &wild().seed(2)).0.len(), 24);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let engine = demo_engine();
    let mut stream = engine.generate_ids([1, 2, 3], &wild().seed(5).logprobs(2)).unwrap();
    let ids: Vec<u32> = stream.by_ref().collect::<qwen::Result<_>>().unwrap();
    assert_eq!(ids, answer(&engine, &wild().seed(5)).0, "asking for them changes nothing");
    assert_eq!(stream.logprobs().len(), ids.len());
    let rows = engine.logits(&[1, 2, 3]).unwrap();
    let row = rows.chunks(engine.config().vocab_size).next_back().unwrap();
    let total = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    let first = &stream.logprobs()[0];
    assert_eq!(first.id, ids[0]);
    assert!((first.logprob - (f64::from(row[ids[0] as usize]) - total)).abs() < 1e-4, "{first:?}");
    assert!(first.top[0].logprob >= first.top[1].logprob && first.top[0].logprob >= first.logprob);
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().logprobs(0));
    let mut reply = chat.send("Hello!").unwrap();
    reply.by_ref().for_each(|piece| drop(piece.unwrap()));
    assert_eq!(reply.logprobs().len(), reply.ids().len());
    assert!(reply.logprobs().iter().all(|at| at.top.is_empty() && at.logprob <= 0.0));
    let json = serde_json::to_value(&reply.logprobs()[0]).unwrap();
    assert_eq!((&json["id"], &json["rank"]), (&reply.ids()[0].into(), &1.into()));
    assert!(refused(&engine, &wild().logprobs(101)).starts_with("`logprobs`: must be at most 100"));
}
