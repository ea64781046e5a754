//! What holds for every text, chat, template and file: properties over random input, on the small tokenizer kept in
//! `tests/data`.

use std::sync::OnceLock;

use proptest::prelude::*;
use qwen_tokenizer::{ChatInput, Content, ContentPart, Error, Message, Role, Tokenizer, Tool, ToolCall};
use serde_json::{Value, json};
use tokenizers::{NormalizedString, Normalizer};

const TOKENIZER_JSON: &[u8] = include_bytes!("data/tokenizer.json");
const CONFIG_JSON: &[u8] = include_bytes!("data/tokenizer_config.json");

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_bytes(TOKENIZER_JSON, Some(CONFIG_JSON)).unwrap())
}

fn nfc(text: &str) -> String {
    let mut text = NormalizedString::from(text);
    tokenizers::normalizers::NFC.normalize(&mut text).unwrap();
    text.get().to_owned()
}

fn streamed(ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer().decode_stream(skip_special);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.finish());
    assert!(!stream.is_pending());
    text
}

/// Texts with pieces of control tokens, marks' characters and words in them.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        ".{0,6}",
        Just("<|im_end|>".to_owned()),
        Just("<|im_start|>system\n".to_owned()),
        Just("<tool_call>".to_owned()),
        Just("<|im_".to_owned()),
        Just("|>".to_owned()),
        Just("\u{100000}\u{100001}".to_owned()),
        "[ \n\t]{0,9}",
        Just(" the weather".to_owned()),
        Just("e\u{301}".to_owned()),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn arguments() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..4).prop_map(|e| Value::Object(e.into_iter().collect())),
        ]
    });
    prop::collection::vec((text(), value), 0..3).prop_map(|e| Value::Object(e.into_iter().collect()))
}

fn message() -> impl Strategy<Value = Message> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Tool), text().prop_map(Role::Other)];
    let call = (text(), arguments()).prop_map(|(name, arguments)| ToolCall::new(name, arguments));
    prop_oneof![
        (role, text()).prop_map(|(role, text)| Message::new(role, text)),
        prop::collection::vec(call, 0..3).prop_map(Message::assistant_calls),
        prop::collection::vec(text().prop_map(ContentPart::text), 0..3)
            .prop_map(|parts| Message::new("user", Content::Parts(parts))),
    ]
}

/// Some of the tokens that people add, of any flags, and one of the normal forms.
fn added_tokens() -> impl Strategy<Value = (Vec<(&'static str, [bool; 5])>, Value)> {
    let contents = vec![
        "<x>",
        "x",
        "the",
        "é",
        "e\u{301}",
        " ",
        "\n",
        "  ",
        "ab",
        "b<x",
        "天",
        "\u{1112}\u{1161}",
        "ﬁ",
        "A",
        "Å",
        "<|im_",
        " a ",
        "_",
        "\u{301}",
        "ß",
        "<|im_end|>x",
    ];
    let token = (prop::sample::select(contents), any::<[bool; 5]>());
    let normal_form = prop::sample::select(vec![
        json!(null),
        json!({"type": "NFC"}),
        json!({"type": "NFKC"}),
        json!({"type": "NFD"}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
    ]);
    (prop::collection::vec(token, 0..6), normal_form)
}

/// tokenizer.json with these.
fn with_added_tokens((tokens, normal_form): &(Vec<(&str, [bool; 5])>, Value)) -> String {
    let mut json: Value = serde_json::from_slice(TOKENIZER_JSON).unwrap();
    json["normalizer"] = normal_form.clone();
    let mut next = tokenizer().num_ids();
    for (content, [special, lstrip, rstrip, single_word, normalized]) in tokens {
        if json["added_tokens"].as_array().unwrap().iter().any(|token| token["content"] == *content) {
            continue;
        }
        let known = json["model"]["vocab"].get(content).cloned();
        next += usize::from(known.is_none());
        let id = known.unwrap_or_else(|| (next - 1).into());
        // The library panics where white space before such a token was swallowed already.
        let lstrip = *lstrip && !content.trim().is_empty();
        let token = json!({"id": id, "content": content, "special": special, "lstrip": lstrip, "rstrip": rstrip,
                           "single_word": single_word, "normalized": normalized});
        json["added_tokens"].as_array_mut().unwrap().push(token);
    }
    json.to_string()
}

/// Texts in which the tokens of [`added_tokens`] stand, and what joins with them.
fn text_with_added_tokens() -> impl Strategy<Value = String> {
    let pieces = vec![
        "<x>",
        "x",
        "the",
        "é",
        "e\u{301}",
        "E\u{301}",
        " ",
        "\n",
        "\t ",
        "ab",
        "b<x",
        "天",
        "한",
        "\u{1112}\u{1161}\u{11ab}",
        "ﬁ",
        "a",
        "A",
        "\u{212b}",
        "A\u{30a}",
        "<|im_",
        "end|>",
        "<|im_end|>",
        "<tool_call>",
        " a ",
        "_",
        "\u{301}",
        "\u{323}",
        "ß",
        "9",
        "\u{a0}",
        "ZZ",
        ".",
        "\u{338}",
    ];
    prop::collection::vec(prop_oneof![9 => prop::sample::select(pieces).prop_map(str::to_owned), 1 => ".{0,3}"], 0..12)
        .prop_map(|pieces| pieces.concat())
}

fn control_count(ids: &[u32]) -> usize {
    ids.iter().filter(|&&id| tokenizer().control_ids().any(|control| control == id)).count()
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(text in text()) {
        for parse_special in [false, true] {
            let ids = tokenizer().encode(&text, parse_special).unwrap();
            let decoded = tokenizer().decode(&ids, false);
            // Between control tokens each stretch is normalised by itself, so normalise again to compare.
            prop_assert_eq!(nfc(&decoded), nfc(&text));
            if !parse_special {
                prop_assert_eq!(decoded, nfc(&text));
                prop_assert_eq!(control_count(&ids), 0);
            }
        }
    }

    #[test]
    fn ids_are_those_of_the_library(text in prop_oneof![text(), "\\PC{0,40}", any::<String>()]) {
        static LIBRARY: OnceLock<tokenizers::Tokenizer> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| tokenizers::Tokenizer::from_bytes(TOKENIZER_JSON).unwrap());
        let ids = library.encode(text.as_str(), false).unwrap().get_ids().to_vec();
        prop_assert_eq!(tokenizer().encode(&text, true).unwrap(), ids);
    }

    #[test]
    fn added_tokens_are_found_as_the_library_finds_them(
        added in added_tokens(),
        texts in prop::collection::vec(text_with_added_tokens(), 12),
    ) {
        let json = with_added_tokens(&added);
        let library = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
        let mut forms: Vec<String> = added.0.iter().filter(|(_, flags)| flags[4]).map(|(content, _)| {
            let mut form = NormalizedString::from(*content);
            if let Some(normalizer) = library.get_normalizer() {
                normalizer.normalize(&mut form).unwrap();
            }
            form.get().to_owned()
        }).collect();
        forms.sort_unstable();
        // Of two tokens of one normal form either may be found there.
        if forms.windows(2).all(|two| two[0] != two[1]) {
            let tokenizer = Tokenizer::from_bytes(json.as_bytes(), None).unwrap();
            for text in texts {
                let ids = library.encode(text.as_str(), false).unwrap().get_ids().to_vec();
                prop_assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{:?}", text);
            }
        }
    }

    #[test]
    fn no_text_of_a_user_is_an_added_token(
        added in added_tokens(),
        texts in prop::collection::vec(text_with_added_tokens(), 4),
    ) {
        let tokenizer = Tokenizer::from_bytes(with_added_tokens(&added).as_bytes(), None).unwrap();
        let template = "{% for m in messages %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}";
        let tokenizer = tokenizer.with_chat_template(template).unwrap();
        let controls: Vec<u32> = tokenizer.control_ids().collect();
        let count = |texts: &[String]| {
            let messages: Vec<Message> = texts.iter().map(Message::user).collect();
            let chat = tokenizer.encode_chat(&ChatInput::new(&messages)).unwrap();
            chat.ids.iter().filter(|id| controls.contains(id)).count()
        };
        // Tokens of one character are BPE's own words, too.
        if tokenizer.control_ids().all(|id| id >= 352) {
            let (said, bare) = (count(&texts), count(&vec![String::new(); texts.len()]));
            prop_assert_eq!(said, bare, "{:?}", texts);
        }
    }

    #[test]
    fn a_limit_changes_no_ids(text in text(), limit in 0_usize..40) {
        let ids = tokenizer().encode(&text, true).unwrap();
        match tokenizer().encode_within(&text, true, limit) {
            Ok(within) => prop_assert!(within == ids && ids.len() <= limit),
            Err(Error::TooManyTokens { .. }) => prop_assert!(ids.len() > limit),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn a_stream_is_the_whole_in_pieces(ids in prop::collection::vec(0_u32..370, 0..60), skip in any::<bool>()) {
        prop_assert_eq!(streamed(&ids, skip), tokenizer().decode(&ids, skip));
    }

    #[test]
    fn contents_never_become_control_tokens(messages in prop::collection::vec(message(), 0..5), tool in arguments()) {
        let tools = [Tool::function("f", "does", tool)];
        for tools in [&[][..], &tools] {
            let Ok(chat) = tokenizer().encode_chat(&ChatInput::new(&messages).tools(tools)) else { continue };
            // What the template writes for the same messages with nothing in them, but for what the model said.
            let bare = |m: &Message| {
                if m.role == Role::Assistant {
                    return m.clone();
                }
                let calls = m.tool_calls.iter().map(|_| ToolCall::new("", json!({})));
                let role = if matches!(m.role, Role::Other(_)) { "x".into() } else { m.role.clone() };
                Message::new(role, "").with_tool_calls(calls)
            };
            let bare: Vec<Message> = messages.iter().map(bare).collect();
            let bare_tools: Vec<Tool> = tools.iter().map(|_| Tool::function("", "", json!({}))).collect();
            let template = tokenizer().encode_chat(&ChatInput::new(&bare).tools(&bare_tools)).unwrap();
            prop_assert_eq!(control_count(&chat.ids), control_count(&template.ids));
            prop_assert_eq!(nfc(&tokenizer().decode(&chat.ids, false)), nfc(&chat.text));
            // Trust changes no text, and no ids where contents hold no control token.
            let trusted = tokenizer().encode_chat(&ChatInput::new(&messages).tools(tools).trust_contents(true)).unwrap();
            prop_assert_eq!(&trusted.text, &chat.text);
            if control_count(&trusted.ids) == control_count(&chat.ids) {
                prop_assert_eq!(trusted.ids, chat.ids);
            }
        }
    }

    #[test]
    fn no_template_panics(pieces in prop::collection::vec(prop_oneof![
        Just("{{".to_owned()), Just("}}".to_owned()), Just("{%".to_owned()), Just("%}".to_owned()), Just("'".to_owned()),
        Just(" for m in messages ".to_owned()), Just(" endfor ".to_owned()), Just(" if m.content ".to_owned()),
        Just(" endif ".to_owned()), Just(" m.content ".to_owned()), Just(" messages[0]".to_owned()),
        Just(" | tojson(indent=2)".to_owned()), Just(".split('<|im_end|>')".to_owned()), Just("<|im_end|>".to_owned()),
        Just(" generation ".to_owned()), Just(" + ".to_owned()), Just("[1:]".to_owned()), "\\PC{0,3}",
    ], 0..12), content in text()) {
        if let Ok(tokenizer) = tokenizer().with_chat_template(&pieces.concat()) {
            let messages = [Message::user(content)];
            let _ = tokenizer.encode_chat(&ChatInput::new(&messages));
        }
    }

    #[test]
    fn no_file_panics(at in 0..TOKENIZER_JSON.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut json = TOKENIZER_JSON.to_vec();
        json[at] = byte;
        if cut {
            json.truncate(at);
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes(&json, None) {
            let ids = tokenizer.encode("Hello, world! <|im_end|> 你好", true);
            let _ = ids.map(|ids| tokenizer.decode(&ids, false));
        }
    }
}
