//! Lists of prompts: all answers, in order, each as alone, whatever happens to the others.
#![cfg(feature = "cpu")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{demo, demo_engine, options};
use qwen::{Answer, ErrorKind, FinishReason, GenerateOptions, Message, StoppedBy};

fn sampled() -> GenerateOptions {
    GenerateOptions::new().temperature(2.0).seed(5).max_new_tokens(20)
}

fn prompts(n: usize) -> Vec<String> {
    // Of several lengths, so that they end in another order than they began.
    (0..n).map(|i| "The sky is blue. ".repeat(1 + i * 7 % 10) + &i.to_string()).collect()
}

#[test]
fn all_answers_come_in_order_and_as_alone() {
    let engine = demo_engine();
    let alone: Vec<Answer> =
        prompts(40).iter().map(|prompt| engine.generate_batch([prompt], &sampled()).remove(0).unwrap()).collect();
    for (prompt, answer) in prompts(40).iter().zip(&alone) {
        let mut stream = engine.generate(prompt, &sampled()).unwrap();
        let text: String = stream.by_ref().map(Result::unwrap).collect();
        assert_eq!((&text, stream.ids()), (&answer.text, answer.ids.as_slice()));
        assert_eq!(stream.finish_reason(), Some(answer.finish_reason));
        assert_eq!(answer.stats.new_tokens, answer.ids.len());
    }
    // Also where only one may wait, and where nobody but the caller steps the engine.
    for engine in [engine, options().max_waiting(1).load(demo()).unwrap(), options().manual().load(demo()).unwrap()] {
        let together: Vec<Answer> =
            engine.generate_batch(prompts(40), &sampled()).into_iter().map(Result::unwrap).collect();
        let figures = |answers: &[Answer]| {
            let figures = answers.iter().map(|answer| (answer.text.clone(), answer.ids.clone(), answer.finish_reason));
            figures.collect::<Vec<_>>()
        };
        assert_eq!(figures(&together), figures(&alone));
    }
    assert!(demo_engine().generate_batch(Vec::<String>::new(), &sampled()).is_empty());
}

#[test]
fn one_that_fails_loses_none_of_the_others() {
    let engine = options().context(64).load(demo()).unwrap();
    let long = "word ".repeat(1000);
    let answers = engine.generate_batch(["Hello", "", long.as_str(), "Bye"], &sampled().stop(["e"]));
    let kinds: Vec<Option<ErrorKind>> =
        answers.iter().map(|answer| answer.as_ref().err().map(qwen::Error::kind)).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::InvalidArgument), Some(ErrorKind::PromptTooLong), None]);
    for answer in answers.into_iter().flatten() {
        assert!(!answer.text.contains('e'));
        if answer.finish_reason == FinishReason::StopString {
            assert_eq!(answer.stopped_by, Some(StoppedBy::String("e".into())));
        }
    }
    // With nobody else to wait for, there is no room at all.
    let none = options().max_waiting(0).load(demo()).unwrap();
    let answers = none.generate_batch(["Hello", "Bye"], &sampled());
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy)));
}

#[test]
fn conversations_and_several_answers_are_batches_too() {
    let engine = demo_engine();
    let greedy = GenerateOptions::new().greedy().max_new_tokens(40);
    let questions = ["What is 3 + 4?", "What is the capital of Peru?", "Hello!"];
    let chats = questions.map(|question| vec![Message::system("You are terse."), Message::user(question)]);
    let answers = engine.chat_batch(&chats, &greedy);
    for (question, answer) in questions.iter().zip(answers) {
        let mut chat = engine.chat().system("You are terse.").options(greedy.clone());
        assert_eq!(chat.send(*question).unwrap().text().unwrap(), answer.unwrap().text);
    }
    // Seeds go up by one.
    let several = engine.generate_n("Hello", 4, &sampled());
    let texts: Vec<String> = several.into_iter().map(|answer| answer.unwrap().text).collect();
    let expected = (5..9).map(|seed| engine.generate("Hello", &sampled().seed(seed)).unwrap().text().unwrap());
    assert_eq!(texts, expected.collect::<Vec<_>>());
    // Without a seed each has one of its own, which says how to get it again.
    let mut free = sampled();
    free.seed = None;
    for answer in engine.generate_n("Hello", 3, &free) {
        let answer = answer.unwrap();
        let again = engine.generate("Hello", &free.clone().seed(answer.stats.seed.unwrap())).unwrap().text().unwrap();
        assert_eq!(again, answer.text);
    }
}

#[test]
fn the_best_of_several_answers_is_the_likeliest() {
    let engine = demo_engine();
    let all: Vec<Answer> =
        engine.generate_n("Hello", 5, &sampled().logprobs(0)).into_iter().map(Result::unwrap).collect();
    let best = engine.generate_best_of("Hello", 2, 5, &sampled()).unwrap();
    let mut means: Vec<f64> = all.iter().map(|answer| answer.mean_logprob().unwrap()).collect();
    means.sort_by(|a, b| b.total_cmp(a));
    let found: Vec<f64> = best.iter().map(|answer| answer.mean_logprob().unwrap()).collect();
    assert_eq!(found, means[..2]);
    assert!(all.iter().any(|answer| answer.text == best[0].text));
    assert!(engine.generate_best_of("Hello", 2, 5, &sampled().top_p(7.0)).is_err());
    assert!(engine.generate_best_of("Hello", 2, 0, &sampled()).unwrap().is_empty());
}

#[test]
fn several_batches_share_a_manual_engine_with_its_host() {
    let engine = options().manual().load(demo()).unwrap();
    let expected: Vec<String> =
        demo_engine().generate_batch(prompts(12), &sampled()).into_iter().map(|answer| answer.unwrap().text).collect();
    let done = Arc::new(AtomicBool::new(false));
    let host = std::thread::spawn({
        let (engine, done) = (engine.clone(), done.clone());
        move || {
            while !done.load(Ordering::SeqCst) {
                engine.step().unwrap();
                std::thread::yield_now();
            }
        }
    });
    let batches: Vec<_> = (0..3)
        .map(|_| {
            let engine = engine.clone();
            std::thread::spawn(move || engine.generate_batch(prompts(12), &sampled()))
        })
        .collect();
    for batch in batches {
        let texts: Vec<String> = batch.join().unwrap().into_iter().map(|answer| answer.unwrap().text).collect();
        assert_eq!(texts, expected);
    }
    done.store(true, Ordering::SeqCst);
    host.join().unwrap();
}

#[test]
fn an_answer_of_no_tokens_computes_its_prompt_for_later_ones() {
    let engine = demo_engine();
    let prompt = "The sky is blue. ".repeat(8);
    let none = sampled().max_new_tokens(0).stop(["x"]).logprobs(2);
    let answer = engine.generate_batch([&prompt], &none).remove(0).unwrap();
    let prompt_tokens = engine.tokenizer().unwrap().encode_prompt(&prompt, 1000).unwrap().len();
    assert_eq!((answer.text.as_str(), answer.ids.len(), answer.logprobs.len()), ("", 0, 0));
    assert_eq!((answer.finish_reason, answer.stopped_by), (FinishReason::Length, None));
    assert_eq!((answer.stats.prompt_tokens, answer.stats.cached_tokens), (prompt_tokens, 0));
    assert_eq!((answer.stats.new_tokens, answer.stats.first_token), (0, None));
    let mut stream = engine.generate(&prompt, &sampled()).unwrap();
    assert!(stream.by_ref().all(|piece| piece.is_ok()));
    assert_eq!(stream.stats().cached_tokens, prompt_tokens - 1);
    // A conversation's prompt can be computed before it is wanted, but an empty answer does not join one.
    let messages = [Message::user("What is the capital of Peru?")];
    engine.chat_batch([&messages], &none).remove(0).unwrap();
    let mut chat = engine.chat();
    let error = chat.send_with("What is the capital of Peru?", &none).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("max_new_tokens"), "{error}");
    assert!(chat.messages().is_empty());
    let mut reply = chat.send("What is the capital of Peru?").unwrap();
    assert!(reply.by_ref().all(|piece| piece.is_ok()));
    assert_eq!(reply.stats().cached_tokens, reply.prompt_ids().len() - 1);
}
