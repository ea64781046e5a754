//! The checkpoint's own tokenizer against ids and texts that Python's transformers gives.
//!
//! The goldens are found by `QWEN_GOLDEN`, else in `../shared/golden` beside the workspace; where they are absent
//! these tests say so and pass. The fixture's tests in `fixture.rs` run everywhere.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use qwen_tokenizer::{ChatInput, Error, Message, Tokenizer, Tool};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

fn golden_dir() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    let folder = std::env::var_os("QWEN_GOLDEN").map_or_else(default, PathBuf::from);
    if folder.join("tokenizer.json").exists() {
        return Some(folder);
    }
    eprintln!(
        "SKIPPED: no goldens in {}; set QWEN_GOLDEN to their folder",
        folder.display()
    );
    None
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn cases<T: DeserializeOwned>(folder: &Path, file: &str) -> Vec<T> {
    serde_json::from_str(&read(&folder.join(file))).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn tokenizer(folder: &Path) -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_dir(folder.join("../qwen2.5-tokenizer")).unwrap())
}

/// All failing cases in one report.
fn report(failures: &[String], count: usize) {
    eprintln!("{} of {count} cases pass", count - failures.len());
    assert!(
        failures.is_empty(),
        "{} of {count} cases fail:\n{}",
        failures.len(),
        failures.join("\n")
    );
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
    let tokenizer = tokenizer(&folder);
    let cases: Vec<TextCase> = cases(&folder, "tokenizer.json");
    let mut failures = Vec::new();
    for case in &cases {
        let (want, parse) = match &case.ids_plain {
            Some(plain) => (plain, false),
            None => (&case.ids, !case.split_special),
        };
        let ids = tokenizer.encode(&case.text, parse).unwrap();
        if &ids != want {
            failures.push(format!("{}: {ids:?}, not {want:?}", case.name));
        }
        let decoded = tokenizer.decode(&case.ids, false);
        let skipped = tokenizer.decode(&case.ids, true);
        if decoded != case.decoded
            || &skipped != case.decoded_skip_special.as_ref().unwrap_or(&case.decoded)
        {
            failures.push(format!(
                "{}: decodes to {decoded:?} and {skipped:?}",
                case.name
            ));
        }
    }
    report(&failures, cases.len());
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
    let tokenizer = tokenizer(&folder);
    let cases: Vec<DecodeCase> = cases(&folder, "decode.json");
    let mut failures = Vec::new();
    for case in &cases {
        for (skip, want) in [(false, &case.decoded), (true, &case.decoded_skip_special)] {
            let whole = tokenizer.decode(&case.ids, skip);
            let mut stream = tokenizer.decode_stream(skip);
            let mut streamed: String = case.ids.iter().filter_map(|&id| stream.push(id)).collect();
            streamed.extend(stream.finish());
            if &whole != want || &streamed != want {
                failures.push(format!(
                    "{}: {whole:?} and {streamed:?}, not {want:?}",
                    case.name
                ));
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
    let tokenizer = tokenizer(&folder);
    let cases: Vec<ChatCase> = cases(&folder, "chat_template.json");
    let control: Vec<String> = tokenizer
        .control_ids()
        .filter_map(|id| tokenizer.id_to_token(id))
        .collect();
    let mut failures = Vec::new();
    for case in &cases {
        let source = read(&folder.join(format!(
            "../qwen2.5-tokenizer/templates/{}.jinja",
            case.template
        )));
        let tokenizer = tokenizer.with_chat_template(&source).unwrap();
        let verbatim = ChatInput::from_json(case.messages.get()).tools_json(case.tools.get());
        let messages: Vec<Message> = serde_json::from_str(case.messages.get()).unwrap();
        let tools: Option<Vec<Tool>> = serde_json::from_str(case.tools.get()).unwrap();
        let tools = tools.unwrap_or_default();
        let typed = ChatInput::new(&messages).tools(&tools);
        let has_control = |json: &RawValue| {
            control
                .iter()
                .any(|token| json.get().contains(token.as_str()))
        };
        for (kind, input) in [("verbatim", verbatim), ("typed", typed)] {
            // What typed messages do on purpose: a call's arguments are an object, and text parts are text.
            if kind == "typed"
                && (case.name.ends_with("args-string") || case.name.ends_with("content-list"))
            {
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
                failures.push(format!(
                    "{} {kind}: {:?}, not {:?}",
                    case.name, trusted.text, case.text
                ));
            } else if trusted.ids != case.ids {
                failures.push(format!(
                    "{} {kind}: {:?}, not {:?}",
                    case.name, trusted.ids, case.ids
                ));
            }
            let has_control = has_control(&case.messages) || has_control(&case.tools);
            if plain.text != trusted.text || (plain.ids == trusted.ids) == has_control {
                failures.push(format!(
                    "{} {kind}: untrusted ids {:?}",
                    case.name, plain.ids
                ));
            }
            if has_control && tokenizer.decode(&plain.ids, false) != case.text {
                failures.push(format!(
                    "{} {kind}: untrusted ids are another text",
                    case.name
                ));
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
    let tokenizer = tokenizer(&folder);
    let cases: Vec<ErrorCase> = cases(&folder, "chat_template_errors.json");
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
    let tokenizer = tokenizer(&folder);
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.len()),
        (151_643, 151_665)
    );
    assert_eq!(tokenizer.eos_token_id(), Some(151_645));
    assert_eq!(tokenizer.pad_token_id(), Some(151_643));
    assert_eq!(tokenizer.token_to_id("<tool_call>"), Some(151_657));
    assert!(tokenizer.is_special(151_643) && !tokenizer.is_special(151_657));
    assert_eq!(
        tokenizer.control_ids().collect::<Vec<_>>(),
        (151_643..=151_664).collect::<Vec<_>>()
    );
    assert_eq!(
        (
            tokenizer.id_to_token(151_665),
            tokenizer.token_bytes(151_665)
        ),
        (None, vec![])
    );
}

#[test]
fn a_megabyte_of_white_space_is_encoded_whole() {
    let Some(folder) = golden_dir() else { return };
    let tokenizer = tokenizer(&folder);
    // More than a backtracking engine's budget of a million steps.
    let text = format!("{}word 1", " ".repeat(1_100_000));
    let ids = tokenizer.encode(&text, true).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), text);
    let tail = tokenizer.encode("  word 1", true).unwrap();
    assert_eq!(ids[ids.len() - 3..], tail[tail.len() - 3..]);
}
