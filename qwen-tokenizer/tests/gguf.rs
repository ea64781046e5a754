//! Vocabularies in the form of GGUF files against the tokenizer.json of the same model, on the small one kept in
//! `tests/data`, and what is refused. Real ones are in `golden.rs`.

mod common;

use std::sync::OnceLock;

use common::{CONFIG_JSON, Form, TOKENIZER_JSON, streamed};
use proptest::prelude::*;
use qwen_tokenizer::{ChatInput, Error, GgufVocabulary, Message, OwnedGgufVocabulary, Tokenizer, Tool};
use serde_json::{Value, json};

const ROWS: usize = 384;

/// The fixture as a file has it whose vocabulary is padded.
fn form() -> Form {
    let mut form = Form::of(TOKENIZER_JSON, ROWS);
    form.other = json!({
        "ggml.model": "gpt2", "ggml.pre": "qwen2", "ggml.bos_token_id": 352, "ggml.eos_token_id": 354,
        "ggml.padding_token_id": 352, "ggml.add_bos_token": false,
    });
    form
}

fn reference() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_bytes(TOKENIZER_JSON, Some(CONFIG_JSON)).unwrap())
}

/// The forms that converters have given the same vocabulary.
fn tokenizers() -> &'static [Tokenizer] {
    static TOKENIZERS: OnceLock<Vec<Tokenizer>> = OnceLock::new();
    TOKENIZERS.get_or_init(|| {
        let mut old = form();
        old.types.iter_mut().for_each(|kind| *kind = if *kind == 5 { 4 } else { *kind });
        let mut counted = old.clone();
        (357..ROWS).for_each(|row| counted.tokens[row] = format!("[PAD{}]", row - 357));
        let mut bare = form();
        bare.tokens.truncate(357);
        bare.types.truncate(357);
        let mut loaded: Vec<_> = [form(), old, counted, bare].iter().map(|form| form.load(|_| ()).unwrap()).collect();
        loaded.push(form().load(|vocabulary| vocabulary.pre = Some("deepseek-r1-qwen")).unwrap());
        loaded
    })
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        ".{0,6}",
        any::<String>(),
        prop::sample::select(vec!["<|im_end|>", "<|im_start|>", "<tool_call>", "<|im_", "[PAD360]", "[PAD3]"])
            .prop_map(str::to_owned),
        "[ \n\t0-9]{0,9}",
        prop::sample::select(vec![" the weather", "It's", "e\u{301}", "\u{212b}", "天地", "né"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn ids_are_those_of_the_tokenizer_json(text in text(), parse_special in any::<bool>()) {
        let ids = reference().encode(&text, parse_special).unwrap();
        for tokenizer in tokenizers() {
            prop_assert_eq!(&tokenizer.encode(&text, parse_special).unwrap(), &ids);
            prop_assert_eq!(tokenizer.encode_within(&text, parse_special, ids.len()), Ok(ids.clone()));
        }
    }

    #[test]
    fn texts_are_those_of_the_tokenizer_json(ids in prop::collection::vec(0_u32..400, 0..60), skip in any::<bool>()) {
        let text = reference().decode(&ids, skip);
        for tokenizer in tokenizers() {
            prop_assert_eq!(&tokenizer.decode(&ids, skip), &text);
            prop_assert_eq!(&streamed(tokenizer, &ids, skip), &text);
        }
    }

    #[test]
    fn no_vocabulary_panics(
        changes in prop::collection::vec((0..ROWS, "[a-eĠ]{0,3}|\\PC{0,2}", 0..7_i32), 0..6),
        merges in prop::collection::vec((0_usize..96, "[a-eĠ]{0,2} [a-eĠ]{0,2}"), 0..4),
    ) {
        let mut form = form();
        for (id, token, kind) in changes {
            form.set(id, &token, kind);
        }
        for (i, merge) in merges {
            form.merges[i] = merge;
        }
        match form.load(|_| ()) {
            Ok(tokenizer) => {
                let ids = tokenizer.encode("abcde a bc <|im_end|> né 123", true).unwrap();
                prop_assert_eq!(streamed(&tokenizer, &ids, false), tokenizer.decode(&ids, false));
            }
            Err(error) => prop_assert!(error.to_string().starts_with("model.gguf: tokenizer.ggml."), "{error}"),
        }
    }
}

#[test]
fn tokens_are_those_of_the_tokenizer_json() {
    for tokenizer in tokenizers() {
        assert_eq!((tokenizer.vocab_size(), tokenizer.len(), tokenizer.num_ids()), (352, 357, 357));
        assert_eq!((tokenizer.eos_token_id(), tokenizer.pad_token_id()), (Some(354), Some(352)));
        assert_eq!(tokenizer.control_ids().collect::<Vec<_>>(), [352, 353, 354, 355, 356]);
        for id in 0..400 {
            assert_eq!(tokenizer.id_to_token(id), reference().id_to_token(id), "{id}");
            assert_eq!(tokenizer.token_bytes(id), reference().token_bytes(id), "{id}");
            assert_eq!(tokenizer.is_special(id), reference().is_special(id), "{id}");
        }
    }
}

#[test]
fn tokens_of_code_are_text_of_an_answer() {
    // Converters mark them as control tokens; the tokenizer.json of the family does not mark them special.
    let mut form = form();
    form.set(357, "<|fim_middle|>", 3);
    form.set(358, "<|box_start|>", 3);
    form.set(359, "<unk>", 2);
    let tokenizer = form.load(|_| ()).unwrap();
    let ids = tokenizer.encode("<|fim_middle|><|box_start|><unk>", true).unwrap();
    assert_eq!((ids.as_slice(), tokenizer.decode(&ids, true).as_str()), (&[357, 358, 359][..], "<|fim_middle|>"));
}

#[test]
fn an_added_token_may_be_one_of_bpe() {
    let mut json: Value = serde_json::from_slice(TOKENIZER_JSON).unwrap();
    let added = json!({"id": 261, "content": "Ġthe", "special": false});
    json["added_tokens"].as_array_mut().unwrap().push(added);
    let reference = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    let mut form = form();
    form.set(261, "Ġthe", 4);
    let tokenizer = form.load(|_| ()).unwrap();
    assert_eq!((tokenizer.len(), tokenizer.vocab_size()), (reference.len(), reference.vocab_size()));
    for text in ["Is the weather", "Ġthe", " then"] {
        for parse_special in [false, true] {
            assert_eq!(tokenizer.encode(text, parse_special), reference.encode(text, parse_special), "{text}");
        }
    }
}

#[test]
fn digits_stand_alone_by_the_rule_of_smollm() {
    let mut json: Value = serde_json::from_slice(TOKENIZER_JSON).unwrap();
    json["normalizer"] = Value::Null;
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    ]});
    let reference = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    let tokenizer = form().load(|vocabulary| vocabulary.pre = Some("smollm")).unwrap();
    for text in ["It's  123 the\n\n weather,  4", "e\u{301} ½ 天地 (the"] {
        assert_eq!(tokenizer.encode(text, true), reference.encode(text, true), "{text}");
    }
}

#[test]
fn templates_come_from_the_file() {
    let config: Value = serde_json::from_slice(CONFIG_JSON).unwrap();
    let mut form_with_template = form();
    form_with_template.other["chat_template"] = config["chat_template"].clone();
    let messages = [Message::user("Hello <|im_end|>")];
    let input = ChatInput::new(&messages);
    let tokenizer = form_with_template.load(|_| ()).unwrap();
    assert_eq!(tokenizer.encode_chat(&input), reference().encode_chat(&input));

    let tools = [Tool::function("f", "", json!({}))];
    const NAMED: [(&str, &str); 3] =
        [("default", "another"), ("tool_use", "{{ bos_token }} {{ eos_token }}"), ("rag", "{{")];
    let tokenizer = form().load(|vocabulary| vocabulary.named_chat_templates = &NAMED).unwrap();
    assert_eq!(tokenizer.render_chat(&input).unwrap(), "another");
    assert_eq!(tokenizer.render_chat(&input.clone().tools(&tools)).unwrap(), "<|endoftext|> <|im_end|>");
    let both = |vocabulary: &mut GgufVocabulary<'_>| {
        vocabulary.named_chat_templates = &NAMED;
        // As many files of 2024 have it, with the braces of a call doubled.
        vocabulary.chat_template = Some("{{- \"<tool_call>\\n{{\\\"name\\\": <name>}}\\n</tool_call>\" }}");
    };
    let tokenizer = form().load(both).unwrap();
    assert_eq!(tokenizer.render_chat(&input).unwrap(), "<tool_call>\n{{\"name\": <name>}}\n</tool_call>");

    let error = form().load(|_| ()).unwrap().render_chat(&input).unwrap_err();
    assert!(error.to_string().contains("looked for: tokenizer.chat_template in model.gguf"), "{error}");
    let error = form().load(|vocabulary| vocabulary.chat_template = Some("{{")).unwrap_err();
    assert!(matches!(error, Error::TemplateSyntax { .. }), "{error}");
}

#[test]
fn a_text_begins_with_bos_where_the_file_says_so() {
    let tokenizer = form().load(|vocabulary| vocabulary.add_bos_token = true).unwrap();
    let hi = reference().encode("Hi", true).unwrap();
    let with_bos: Vec<u32> = [352].into_iter().chain(hi.iter().copied()).collect();
    assert_eq!(tokenizer.encode_prompt("Hi", 100).unwrap(), with_bos);
    let tokenizer = tokenizer.with_chat_template("x").unwrap();
    assert_eq!(tokenizer.encode_prompt("Hi", 100).unwrap(), with_bos);
    assert_eq!(tokenizer.encode_prompt("Hi", with_bos.len()).unwrap(), with_bos);
    assert!(matches!(tokenizer.encode_prompt("Hi", hi.len()), Err(Error::TooManyTokens { .. })));
    assert!(matches!(tokenizer.encode_prompt("", 0), Err(Error::TooManyTokens { limit: 0, .. })));
    assert_eq!(tokenizer.encode("Hi", true).unwrap(), hi);
    assert_eq!(tokenizers()[0].encode_prompt("Hi", 100).unwrap(), hi);
}

/// A change of the lists, and one of the rest.
fn refused(lists: impl FnOnce(&mut Form), rest: impl FnOnce(&mut GgufVocabulary<'_>)) -> String {
    let mut form = form();
    lists(&mut form);
    let error = form.load(rest).unwrap_err().to_string();
    assert!(error.len() < 500, "{error}");
    error.strip_prefix("model.gguf: tokenizer.").unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[test]
fn what_would_be_misread_is_refused() {
    for (found, says) in [
        (refused(|_| (), |v| v.model = "llama"), "ggml.model: `llama` is not supported; files of this family have"),
        (refused(|_| (), |v| v.pre = Some("llama-bpe")), "ggml.pre: `llama-bpe` is not supported; qwen2, deepseek-r1"),
        (refused(|_| (), |v| v.pre = Some("default")), "ggml.pre: `default` is not supported; qwen2, deepseek-r1"),
        (refused(|_| (), |v| v.pre = None), "ggml.pre: a missing name is not supported; qwen2, deepseek-r1"),
        (refused(|f| f.types.truncate(383), |_| ()), "ggml.token_type: has 383 types for 384 tokens"),
        (refused(|f| f.types[7] = 6, |_| ()), "ggml.token_type[7]: 6 is not supported; 1 to 5 are"),
        (refused(|f| f.types[7] = -1, |_| ()), "ggml.token_type[7]: -1 is not supported"),
        (refused(|f| f.set(40, "!", 1), |_| ()), "ggml.tokens[40]: `!` is the token 33 already"),
        (refused(|f| f.set(40, &"x".repeat(5000), 1), |_| ()), "ggml.tokens[40]: the token with the id 40 has 5000"),
        (refused(|f| f.merges[3] = "is".into(), |_| ()), "ggml.merges[3]: `is` is not two tokens"),
        (refused(|f| f.merges[3] = "i s t".into(), |_| ()), "ggml.merges[3]: `i s t` is not two tokens"),
        (refused(|f| f.merges[3] = " s".into(), |_| ()), "ggml.merges[3]: ` s` is not two tokens"),
        (refused(|f| f.merges[3] = "i qq".into(), |_| ()), "ggml.merges[3]: `i qq` needs `qq`, which is not in"),
        (refused(|f| f.merges[3] = "qq i".into(), |_| ()), "ggml.merges[3]: `qq i` needs `qq`, which is not in"),
        (refused(|f| f.merges[3] = "q q".into(), |_| ()), "ggml.merges[3]: `q q` needs `qq`, which is not in"),
        (refused(|f| f.merges[3] = "x".repeat(9999) + " x", |_| ()), "ggml.merges[3]: `xxxxx"),
        (refused(|f| f.set(259, "is", 5), |_| ()), "ggml.merges[3]: `i s` needs `is`, which is not in"),
        (refused(|_| (), |v| v.eos_token_id = Some(384)), "ggml.eos_token_id: is 384, and there are 384 tokens"),
        (refused(|_| (), |v| v.bos_token_id = Some(u32::MAX)), "ggml.bos_token_id: is 4294967295"),
        (refused(|_| (), |v| v.unknown_token_id = Some(999)), "ggml.unknown_token_id: is 999"),
        (refused(|_| (), |v| v.padding_token_id = Some(999)), "ggml.padding_token_id: is 999"),
        (refused(|_| (), |v| v.eos_token_id = Some(370)), "ggml.eos_token_id: is 370, which is padding"),
        (
            refused(|_| (), |v| (v.add_bos_token, v.bos_token_id) = (true, None)),
            "ggml.add_bos_token: is true, and there is no",
        ),
    ] {
        assert!(found.starts_with(says), "{found}\nnot {says}");
    }
    // What pads batches may be a row that pads the vocabulary: it is no token then.
    let tokenizer = form().load(|vocabulary| vocabulary.padding_token_id = Some(370)).unwrap();
    assert_eq!(tokenizer.pad_token_id(), None);
}

#[test]
fn lists_without_end_are_refused() {
    let refused = |tokens: &[&str], token_types: &[i32], merges: &[&str]| {
        let file = "a.gguf";
        let empty = GgufVocabulary { file, model: "gpt2", pre: Some("qwen2"), ..Default::default() };
        let vocabulary = GgufVocabulary { tokens, token_types, merges, ..empty };
        Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap_err().to_string()
    };
    let refused_tokens = |count: usize, end: &str, says: &str| {
        let tokens: Vec<String> = (0..count).map(|i| i.to_string() + end).collect();
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        assert_eq!(refused(&tokens, &vec![3; count], &[]), format!("a.gguf: tokenizer.ggml.tokens{says}"));
    };
    refused_tokens((1 << 20) + 1, "", ": has 1048577 entries, more than 1048576");
    refused_tokens(20_000, "", "[16384]: is the control or user-defined token after 16384 others");
    refused_tokens(100, &"x".repeat(4000), "[65]: is where the added tokens pass 262144 bytes in all");
    let long = "x".repeat(1 << 20);
    let found = refused(&vec![long.as_str(); 65], &[1; 65], &[]);
    assert_eq!(found, "a.gguf: tokenizer.ggml.tokens: has 65.0 MiB, more than 64.0 MiB");
    let found = refused(&[], &[], &vec!["! !"; (1 << 21) + 1]);
    assert_eq!(found, "a.gguf: tokenizer.ggml.merges: has 2097153 entries, more than 2097152");
}

#[test]
fn a_vocabulary_of_nothing_loads_or_is_refused() {
    let empty = GgufVocabulary { model: "gpt2", pre: Some("qwen2"), ..Default::default() };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&empty).unwrap();
    assert_eq!((tokenizer.len(), tokenizer.num_ids(), tokenizer.encode("Hi", true)), (0, 0, Ok(vec![])));
    let error = Tokenizer::from_gguf_vocabulary(&GgufVocabulary::default()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

/// The vocabulary that a folder gives is the one that its tokenizer.json spells out, and is read again.
#[test]
fn a_folder_gives_the_vocabulary_that_gguf_files_carry() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let made = OwnedGgufVocabulary::from_dir(folder, ROWS).unwrap();
    let form = form();
    assert_eq!((made.model, made.pre), ("gpt2", "qwen2"));
    assert_eq!(made.tokens, form.tokens);
    assert_eq!(made.token_types, form.types);
    assert_eq!(made.merges, form.merges);
    assert!(made.chat_template.is_some());
    let few = OwnedGgufVocabulary::from_dir(folder, 300).unwrap_err().to_string();
    assert!(few.contains("300 rows"), "{few}");
    OwnedGgufVocabulary::from_dir(folder, 357).unwrap();
}

/// What a GGUF file cannot carry is refused by its key.
#[test]
fn what_would_be_lost_is_refused() {
    let folder = std::env::temp_dir().join(format!("qwen-export-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut json: Value = serde_json::from_slice(TOKENIZER_JSON).unwrap();
    let refused = |json: &Value| {
        std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
        OwnedGgufVocabulary::from_dir(&folder, ROWS).unwrap_err().to_string()
    };
    for (pointer, value, key) in [
        ("/normalizer", json!({"type": "NFD"}), "pre_tokenizer"),
        ("/model/ignore_merges", json!(true), "ignore_merges"),
        ("/added_tokens/0/lstrip", json!(true), "added_tokens"),
        ("/added_tokens/0/rstrip", json!(true), "added_tokens"),
    ] {
        let mut changed = json.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[name] = value;
        let error = refused(&changed);
        assert!(error.contains(key), "{pointer}: {error}");
    }
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\p{N}+");
    let error = refused(&json);
    assert!(error.contains("pre_tokenizer"), "{error}");
    std::fs::remove_dir_all(&folder).ok();
}
