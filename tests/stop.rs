//! Stop strings: what is shown of an answer, what the engine computes of it, and what a conversation keeps of it.
#![cfg(feature = "cpu")]

mod common;

use common::demo_engine;
use qwen::{Engine, ErrorKind, FinishReason, GenerateOptions, StoppedBy, TextStream};

/// Sampled at a high temperature, texts are wild: characters over several tokens, and pieces that are no words.
fn wild(seed: u64) -> GenerateOptions {
    GenerateOptions::new().temperature(3.0).seed(seed).max_new_tokens(60).ignore_eos(true)
}

fn pieces(stream: &mut TextStream) -> Vec<String> {
    stream.collect::<qwen::Result<_>>().unwrap()
}

fn answer(engine: &Engine, options: &GenerateOptions) -> (String, TextStream) {
    let mut stream = engine.generate("Hello", options).unwrap();
    (pieces(&mut stream).concat(), stream)
}

#[test]
fn an_answer_is_shown_up_to_its_first_stop_string_wherever_tokens_end() {
    let engine = demo_engine();
    let mut inside_tokens = 0;
    for seed in 0..12 {
        let (whole, _) = answer(&engine, &wild(seed));
        let chars: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
        // Strings of the text itself, of each length and from each part of it.
        for (from, len) in [(3, 1), (10, 4), (17, 9), (30, 2)] {
            let Some((start, end)) = chars.get(from).zip(chars.get(from + len)) else { continue };
            let stop = &whole[*start..*end];
            let expected = &whole[..whole.find(stop).unwrap()];
            let (shown, stream) = answer(&engine, &wild(seed).stop(["never said", stop]));
            assert_eq!(shown, expected, "{stop:?} of {whole:?}");
            assert_eq!(stream.finish_reason(), Some(FinishReason::StopString));
            assert_eq!(stream.stopped_by(), Some(&StoppedBy::String(stop.into())));
            // The ids go as far as the stop string, and no further.
            let decode = |ids: &[u32]| engine.tokenizer().unwrap().decode(ids, true);
            let (last, before) = stream.ids().split_last().unwrap();
            assert!(decode(stream.ids()).contains(stop) && !decode(before).contains(stop), "{last}");
            inside_tokens += usize::from(!decode(stream.ids()).ends_with(stop));
            assert_eq!(stream.stats().new_tokens, stream.ids().len());
            // The ids alone end there, too.
            let prompt = engine.tokenizer().unwrap().encode_prompt("Hello", 100).unwrap();
            let mut tokens = engine.generate_ids(prompt, &wild(seed).stop(["never said", stop])).unwrap();
            assert_eq!(tokens.by_ref().map(Result::unwrap).collect::<Vec<u32>>(), stream.ids());
            assert_eq!(tokens.stopped_by(), stream.stopped_by());
        }
        // What only looked like the beginning of a stop string is shown at last.
        let end: String = whole.chars().skip(chars.len() - 5).chain(['!', '?']).collect();
        let (shown, stream) = answer(&engine, &wild(seed).stop([end]));
        assert_eq!((shown, stream.finish_reason()), (whole, Some(FinishReason::Length)));
        assert_eq!(stream.stopped_by(), None);
    }
    assert!(inside_tokens > 0, "some end in the middle of a token");
}

#[test]
fn nothing_is_computed_behind_a_stop_string_that_nobody_has_read() {
    let engine = demo_engine();
    let (whole, _) = answer(&engine, &wild(1));
    let stop = whole.chars().skip(3).take(3).collect::<String>();
    let before = engine.stats().work.tokens;
    let endless = GenerateOptions::new().temperature(3.0).seed(1).ignore_eos(true);
    let mut stream = engine.generate("Hello", &endless.stop([stop])).unwrap();
    // Another request, which is behind it, ends long after it.
    assert!(!engine.generate("Hello", &wild(2)).unwrap().text().unwrap().is_empty());
    let text = pieces(&mut stream).concat();
    assert!(whole.starts_with(&text));
    let computed = engine.stats().work.tokens - before;
    assert!(computed < 200, "{computed} tokens, for two prompts and answers of {} and 60", stream.ids().len());
}

#[test]
fn the_token_that_stopped_an_answer_is_named() {
    let engine = demo_engine();
    let mut stream = engine.generate("Hello", &wild(4)).unwrap();
    assert!(!pieces(&mut stream).is_empty());
    let stop = stream.ids()[20];
    let (_, stream) = answer(&engine, &wild(4).stop_token_ids([stop]));
    assert_eq!(stream.finish_reason(), Some(FinishReason::Stop));
    assert_eq!(stream.stopped_by(), Some(&StoppedBy::Token(stop)));
    assert!(!stream.ids().contains(&stop));
}

#[test]
fn senseless_stop_strings_are_refused() {
    let engine = demo_engine();
    for stop in [vec![String::new()], vec!["a".into(), String::new()], vec!["a".into(); 129]] {
        let error = engine.generate("Hello", &wild(1).stop(stop)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().starts_with("`stop`: "), "{error}");
    }
    assert!(engine.generate("Hello", &wild(1).stop(vec!["a"; 128])).is_ok());
}

#[test]
fn a_conversation_keeps_what_was_shown_and_goes_on_with_its_ids() {
    let engine = demo_engine();
    let tokenizer = engine.tokenizer().unwrap();
    let (mut kept, mut cut) = (0, 0);
    for seed in 0..12 {
        let whole = engine.chat().options(wild(seed)).send("Hello!").unwrap().text().unwrap();
        let stop: String = whole.chars().skip(8).take(2).collect();
        let mut chat = engine.chat().options(wild(seed).stop([stop.as_str()]));
        let mut reply = chat.send("Hello!").unwrap();
        let shown = reply.by_ref().collect::<qwen::Result<String>>().unwrap();
        assert_eq!(shown, whole[..whole.find(&stop).unwrap()]);
        assert_eq!(reply.stopped_by(), Some(&StoppedBy::String(stop)));
        if shown.is_empty() {
            continue;
        }
        assert_eq!(chat.messages()[1].text().as_deref(), Some(shown.as_str()));
        let next = chat.send("And now?").unwrap();
        // Where the text ends with a token, the model reads what it wrote; elsewhere the text is encoded.
        let known = (1..=reply.ids().len()).rev().map(|len| &reply.ids()[..len]);
        let known = known.into_iter().find(|ids| tokenizer.decode(ids, true) == shown);
        let before = [reply.prompt_ids(), known.unwrap_or_default()].concat();
        assert!(next.prompt_ids().starts_with(&before), "{shown:?}");
        let text = tokenizer.decode(next.prompt_ids(), false);
        assert!(text.contains(&shown), "{text:?}");
        *if known.is_some() { &mut kept } else { &mut cut } += 1;
    }
    assert!(kept > 0 && cut > 0, "{kept} at the end of a token, {cut} inside of one");
}
