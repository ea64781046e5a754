//! The checkpoint's own tokenizer against ids and texts that Python's transformers gives.
//!
//! It is taken from tokenizer.json and from the metadata of a GGUF file that llama.cpp made. The goldens are found by
//! `QWEN_GOLDEN`, else in `../shared/golden` beside the workspace; where they are absent these tests say so and pass.
//! The tests of `fixture.rs`, `gguf.rs` and `properties.rs` run everywhere.

mod common;

use std::path::Path;
use std::sync::OnceLock;

use common::{Form, golden_dir, streamed};
use qwen_tokenizer::{ChatInput, Error, Message, Tokenizer, Tool};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn cases<T: DeserializeOwned>(folder: &Path, file: &str) -> Vec<T> {
    serde_json::from_str(&read(&folder.join(file))).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The tokenizer from either of its forms.
fn tokenizers(folder: &Path) -> &'static [(&'static str, Tokenizer)] {
    static TOKENIZERS: OnceLock<Vec<(&str, Tokenizer)>> = OnceLock::new();
    TOKENIZERS.get_or_init(|| {
        let files = folder.join("../qwen2.5-tokenizer");
        let mut form = Form::read(&folder.join("qwen2-vocab-gguf/ggml-vocab-qwen2.gguf"));
        // The file has Qwen2's first three control tokens only, and padding in the rows of the others.
        form.add_tokens(&serde_json::from_str(&read(&files.join("tokenizer.json"))).unwrap());
        let gguf = form.load(|vocabulary| vocabulary.eos_token_id = Some(151_645)).unwrap();
        vec![("tokenizer.json", Tokenizer::from_dir(files).unwrap()), ("GGUF", gguf)]
    })
}

/// Every case with every tokenizer.
fn each<'a, T>(
    tokenizers: &'a [(&'a str, Tokenizer)],
    cases: &'a [T],
) -> impl Iterator<Item = (&'a str, &'a Tokenizer, &'a T)> {
    tokenizers.iter().flat_map(move |(form, tokenizer)| cases.iter().map(move |case| (*form, tokenizer, case)))
}

/// All failing cases in one report.
fn report(failures: &[String], count: usize) {
    eprintln!("{} of {count} cases pass", count - failures.len());
    assert!(failures.is_empty(), "{} of {count} cases fail:\n{}", failures.len(), failures.join("\n"));
}

#[derive(Deserialize)]
struct TextCase {
    name: String,
    text: String,
    ids: Vec<u32>,
    ids_plain: Option<Vec<u32>>,
    split_special: bool,
    decoded: String,
    decoded_skip_special: Option<String>,
}

#[test]
fn texts_have_the_reference_ids() {
    let Some(folder) = golden_dir() else { return };
    let cases: Vec<TextCase> = cases(&folder, "tokenizer.json");
    let mut failures = Vec::new();
    for (form, tokenizer, case) in each(tokenizers(&folder), &cases) {
        let (want, parse) = match &case.ids_plain {
            Some(plain) => (plain, false),
            None => (&case.ids, !case.split_special),
        };
        let ids = tokenizer.encode(&case.text, parse).unwrap();
        if &ids != want {
            failures.push(format!("{form}: {}: {ids:?}, not {want:?}", case.name));
        }
        let decoded = tokenizer.decode(&case.ids, false);
        let skipped = tokenizer.decode(&case.ids, true);
        if decoded != case.decoded || &skipped != case.decoded_skip_special.as_ref().unwrap_or(&case.decoded) {
            failures.push(format!("{form}: {}: decodes to {decoded:?} and {skipped:?}", case.name));
        }
    }
    report(&failures, 2 * cases.len());
}

#[derive(Deserialize)]
struct DecodeCase {
    name: String,
    ids: Vec<u32>,
    decoded: String,
    decoded_skip_special: String,
}

#[test]
fn ids_have_the_reference_text_whole_and_streamed() {
    let Some(folder) = golden_dir() else { return };
    let cases: Vec<DecodeCase> = cases(&folder, "decode.json");
    let mut failures = Vec::new();
    for (form, tokenizer, case) in each(tokenizers(&folder), &cases) {
        for (skip, want) in [(false, &case.decoded), (true, &case.decoded_skip_special)] {
            let whole = tokenizer.decode(&case.ids, skip);
            let streamed = streamed(tokenizer, &case.ids, skip);
            if &whole != want || &streamed != want {
                failures.push(format!("{form}: {}: {whole:?} and {streamed:?}, not {want:?}", case.name));
            }
        }
    }
    report(&failures, cases.len());
}

#[derive(Deserialize)]
struct ChatCase {
    name: String,
    template: String,
    messages: Box<RawValue>,
    tools: Box<RawValue>,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

#[test]
fn chats_have_the_reference_text_and_ids() {
    let Some(folder) = golden_dir() else { return };
    let cases: Vec<ChatCase> = cases(&folder, "chat_template.json");
    let mut failures = Vec::new();
    for (form, tokenizer, case) in each(tokenizers(&folder), &cases) {
        let control: Vec<String> = tokenizer.control_ids().filter_map(|id| tokenizer.id_to_token(id)).collect();
        let source = read(&folder.join(format!("../qwen2.5-tokenizer/templates/{}.jinja", case.template)));
        let tokenizer = tokenizer.with_chat_template(&source).unwrap();
        let verbatim = ChatInput::from_json(case.messages.get()).tools_json(case.tools.get());
        let messages: Vec<Message> = serde_json::from_str(case.messages.get()).unwrap();
        let tools: Option<Vec<Tool>> = serde_json::from_str(case.tools.get()).unwrap();
        let tools = tools.unwrap_or_default();
        let typed = ChatInput::new(&messages).tools(&tools);
        let has_control = |json: &RawValue| control.iter().any(|token| json.get().contains(token.as_str()));
        for (kind, input) in [("verbatim", verbatim), ("typed", typed)] {
            // What typed messages do on purpose: a call's arguments are an object, and text parts are text.
            if kind == "typed" && (case.name.ends_with("args-string") || case.name.ends_with("content-list")) {
                continue;
            }
            // The one thing a `serde_json::Value` cannot hold is an integer beyond 64 bits.
            if kind == "typed" && case.name.ends_with("args-types") {
                continue;
            }
            let input = input.add_generation_prompt(case.add_generation_prompt);
            let plain = tokenizer.encode_chat(&input).unwrap();
            let trusted = tokenizer.encode_chat(&input.trust_contents(true)).unwrap();
            if trusted.text != case.text {
                failures.push(format!("{form}: {} {kind}: {:?}, not {:?}", case.name, trusted.text, case.text));
            } else if trusted.ids != case.ids {
                failures.push(format!("{form}: {} {kind}: {:?}, not {:?}", case.name, trusted.ids, case.ids));
            }
            let has_control = has_control(&case.messages) || has_control(&case.tools);
            if plain.text != trusted.text || (plain.ids == trusted.ids) == has_control {
                failures.push(format!("{form}: {} {kind}: untrusted ids {:?}", case.name, plain.ids));
            }
            if has_control && tokenizer.decode(&plain.ids, false) != case.text {
                failures.push(format!("{form}: {} {kind}: untrusted ids are another text", case.name));
            }
        }
    }
    report(&failures, cases.len());
}

#[derive(Deserialize)]
struct ErrorCase {
    name: String,
    messages: Box<RawValue>,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn chats_that_the_reference_refuses_are_errors() {
    let Some(folder) = golden_dir() else { return };
    let cases: Vec<ErrorCase> = cases(&folder, "chat_template_errors.json");
    let (_, tokenizer) = &tokenizers(&folder)[0];
    for case in &cases {
        let result = tokenizer.encode_chat(&ChatInput::from_json(case.messages.get()));
        match (&case.error, &result) {
            (Some(_), Err(Error::Render { line, .. })) => assert!(*line > 0, "{}", case.name),
            (None, Ok(chat)) => assert_eq!(Some(&chat.text), case.text.as_ref(), "{}", case.name),
            _ => panic!("{}: {result:?}", case.name),
        }
    }
}

#[test]
fn the_real_tokenizer_knows_its_tokens() {
    let Some(folder) = golden_dir() else { return };
    for (form, tokenizer) in tokenizers(&folder) {
        let sizes = (tokenizer.vocab_size(), tokenizer.len(), tokenizer.num_ids());
        assert_eq!(sizes, (151_643, 151_665, 151_665), "{form}");
        assert_eq!(tokenizer.eos_token_id(), Some(151_645), "{form}");
        assert_eq!(tokenizer.pad_token_id(), Some(151_643), "{form}");
        assert_eq!(tokenizer.encode_prompt("", 0), Ok(vec![]), "{form}");
        assert_eq!(tokenizer.token_to_id("<tool_call>"), Some(151_657), "{form}");
        assert!(tokenizer.is_special(151_643) && !tokenizer.is_special(151_657), "{form}");
        assert_eq!(tokenizer.control_ids().collect::<Vec<_>>(), (151_643..=151_664).collect::<Vec<_>>(), "{form}");
        assert_eq!((tokenizer.id_to_token(151_665), tokenizer.token_bytes(151_665)), (None, vec![]), "{form}");
    }
    let [(_, json), (_, gguf)] = tokenizers(&folder) else { panic!("two forms") };
    for id in 0..152_064 {
        assert_eq!(json.id_to_token(id), gguf.id_to_token(id), "{id}");
        assert_eq!(json.token_bytes(id), gguf.token_bytes(id), "{id}");
        assert_eq!(json.is_special(id), gguf.is_special(id), "{id}");
    }
}

#[test]
fn a_megabyte_of_white_space_is_encoded_whole() {
    let Some(folder) = golden_dir() else { return };
    for (form, tokenizer) in tokenizers(&folder) {
        // More than a backtracking engine's budget of a million steps.
        let text = format!("{}word 1", " ".repeat(1_100_000));
        let ids = tokenizer.encode(&text, true).unwrap();
        assert!(tokenizer.decode(&ids, false) == text, "{form}");
        let tail = tokenizer.encode("  word 1", true).unwrap();
        assert_eq!(ids[ids.len() - 3..], tail[tail.len() - 3..], "{form}");
    }
}

/// A file of 2024 as it is: three control tokens, padding marked as user-defined, no `add_bos_token`, an old template.
#[test]
fn an_old_file_has_the_ids_of_its_time() {
    let Some(folder) = golden_dir() else { return };
    let path = folder.join("qwen2-vocab-gguf/ggml-vocab-qwen2.gguf");
    let form = Form::read(&path);
    let tokenizer = form.load(|_| ()).unwrap();
    assert_eq!((tokenizer.len(), tokenizer.num_ids()), (151_646, 151_646));
    assert_eq!(tokenizer.encode("[PAD151700]", true), tokenizer.encode("[PAD151700]", false));

    // llama.cpp's pairs of texts and ids, the ids by Python's transformers.
    let texts = read(&path.with_extension("gguf.inp"));
    let ids = read(&path.with_extension("gguf.out"));
    let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
    assert_eq!(texts.len(), ids.lines().count());
    for (text, ids) in texts.iter().zip(ids.lines()) {
        let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
    }

    // The same tokenizer.json without what came later.
    let mut json: Value = serde_json::from_str(&read(&folder.join("../qwen2.5-tokenizer/tokenizer.json"))).unwrap();
    json["added_tokens"].as_array_mut().unwrap().truncate(3);
    let reference = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    for case in cases::<TextCase>(&folder, "tokenizer.json") {
        for parse_special in [false, true] {
            let ids = tokenizer.encode(&case.text, parse_special).unwrap();
            assert_eq!(ids, reference.encode(&case.text, parse_special).unwrap(), "{}", case.name);
            assert_eq!(streamed(&tokenizer, &ids, true), reference.decode(&ids, true), "{}", case.name);
        }
    }

    // Files without a known name for their rule have Qwen2.5's where they have its merges.
    for pre in [None, Some("default")] {
        let unnamed = form.load(|vocabulary| vocabulary.pre = pre).unwrap();
        let text = "It's 123 e\u{301}\n\n 天地";
        assert_eq!(unnamed.encode(text, true), reference.encode(text, true));
    }

    let messages = [Message::user("Hi")];
    let chat = tokenizer.encode_chat(&ChatInput::new(&messages)).unwrap();
    let text = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
                <|im_start|>assistant\n";
    assert_eq!((chat.text.as_str(), &chat.ids), (text, &reference.encode(text, true).unwrap()));
}

/// The made-up vocabulary of the goldens' models, which a peer's writer put into GGUF files and into tokenizer.json.
#[test]
fn the_models_of_the_goldens_have_one_tokenizer() {
    let Some(folder) = golden_dir() else { return };
    let gguf = Form::read(&folder.join("gguf-q8_0/model.gguf")).load(|_| ()).unwrap();
    let json = Tokenizer::from_dir(folder.join("dense-bf16")).unwrap();
    assert_eq!((gguf.len(), gguf.num_ids()), (json.len(), json.num_ids()));
    for case in cases::<TextCase>(&folder, "tokenizer.json") {
        assert_eq!(gguf.encode(&case.text, true), json.encode(&case.text, true), "{}", case.name);
    }
}
