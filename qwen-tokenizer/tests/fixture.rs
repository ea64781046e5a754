//! What holds for every tokenizer, on the small one kept in `tests/data`: the forms a checkpoint's files
//! may have, templates, and errors that say what to do. Random input is in `properties.rs`.

use std::sync::OnceLock;

use qwen_tokenizer::{ChatInput, ChatTemplate, Error, Message, Tokenizer, Tool, ToolCall};
use serde_json::{Value, json};

const TOKENIZER_JSON: &[u8] = include_bytes!("data/tokenizer.json");
const CONFIG_JSON: &[u8] = include_bytes!("data/tokenizer_config.json");

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_bytes(TOKENIZER_JSON, Some(CONFIG_JSON)).unwrap())
}

fn control_count(ids: &[u32]) -> usize {
    ids.iter().filter(|&&id| tokenizer().control_ids().any(|control| control == id)).count()
}

/// The fixture with one value of tokenizer.json replaced.
fn with(pointer: &str, value: Value) -> Result<Tokenizer, Error> {
    let mut json: Value = serde_json::from_slice(TOKENIZER_JSON).unwrap();
    *json.pointer_mut(pointer).unwrap() = value;
    Tokenizer::from_bytes(json.to_string().as_bytes(), None)
}

#[test]
fn merges_may_be_pairs() {
    let json: Value = serde_json::from_slice(TOKENIZER_JSON).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    let pairs: Vec<Value> = merges.map(|m| m.as_str().unwrap().split(' ').collect()).collect();
    let other = with("/model/merges", pairs.into()).unwrap();
    let text = "the weather of a city";
    assert_eq!(other.encode(text, false), tokenizer().encode(text, false));
    assert!(other.encode(text, false).unwrap().len() < text.len());
}

#[test]
fn other_components_of_byte_level_models_are_read() {
    let text = "It's  a\t\tWAY, 12345 né x";
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    let sequence = |steps: Value| with("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": steps})).unwrap();
    let split = |pattern: Value, behavior: &str, invert: bool| json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
    let want = tokenizer().encode(text, false).unwrap();
    let pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    for (behavior, invert) in [("Isolated", false), ("Isolated", true), ("Removed", true)] {
        let other = sequence(json!([split(json!({"Regex": pattern}), behavior, invert), bytes]));
        assert_eq!(other.encode(text, false).unwrap(), want, "{behavior} {invert}");
    }
    let digits = sequence(
        json!([{"type": "Digits", "individual_digits": true}, split(json!({"String": ", "}), "Isolated", false), bytes]),
    );
    assert_eq!(digits.decode(&digits.encode(text, false).unwrap(), false), text);
    let lower =
        with("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}))
            .unwrap();
    assert_eq!(lower.decode(&lower.encode("ﬁ É", false).unwrap(), false), "fi é");
}

#[test]
fn what_would_be_misread_is_refused() {
    let split = |pattern: Value, behavior: &str| {
        let split = json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": false}]})
    };
    for (pointer, value, says) in [
        ("/model/type", json!("Unigram"), "model.type: Unigram is not supported"),
        ("/model/dropout", json!(0.1), "model.dropout: 0.1 is not supported"),
        ("/model/byte_fallback", json!(true), "model.byte_fallback"),
        ("/model/continuing_subword_prefix", json!("##"), "model.continuing_subword_prefix"),
        ("/model/unk_token", json!("?!?"), "`?!?` is not in `model.vocab`"),
        ("/model/merges", json!(["a"]), "a merge: two tokens"),
        ("/model/merges", json!([["a", "b", "c"]]), "a merge: two tokens"),
        ("/model/merges", json!(["a qqqqqqqqqqqqqqqqqqqqqqqqqqqq"]), "model.merges[0]"),
        ("/model/merges", json!(["q q"]), "model.merges"),
        ("/model/vocab", json!(null), "has no `vocab` or no `merges`"),
        ("/decoder", json!(null), "decoder.type: none is not supported"),
        ("/pre_tokenizer", json!({"type": "Sequence"}), "pre_tokenizer.pretokenizers"),
        ("/pre_tokenizer", json!({"type": "Nonsense"}), "pre_tokenizer.type: Nonsense is not supported"),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "FixedLength is not supported"),
        ("/pre_tokenizer", json!({"type": "Metaspace"}), "Metaspace is not supported"),
        ("/pre_tokenizer", json!(null), "pre_tokenizer.type: none is not supported"),
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}), "without ByteLevel"),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "Digits"}); 17]}),
            "17 steps",
        ),
        ("/pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": true}), "add_prefix_space"),
        ("/pre_tokenizer", split(json!({"Regex": r"(?:\p{L}{1000}){1000}"}), "Isolated"), "patterns of linear time"),
        ("/pre_tokenizer", split(json!({"Regex": "(?<=a)b"}), "Isolated"), "patterns of linear time"),
        ("/pre_tokenizer", split(json!({"Regex": "a".repeat(5000)}), "Isolated"), "has 5000 bytes"),
        ("/pre_tokenizer", split(json!({"String": ""}), "Isolated"), "has 0 bytes"),
        ("/pre_tokenizer", split(json!({"String": " "}), "MergedWithPrevious"), "behavior"),
        ("/normalizer", json!({"type": "Nonsense"}), "normalizer.type: Nonsense is not supported"),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""}), "Precompiled is not supported"),
        (
            "/normalizer",
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
            "Replace is not supported",
        ),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}),
            "normalizers[1].type: Strip",
        ),
        ("/post_processor", json!({"type": "BertProcessing"}), "BertProcessing is not supported"),
        ("/decoder", json!({"type": "Metaspace"}), "decoder.type: Metaspace is not supported"),
        ("/added_tokens/0/id", json!(u32::MAX), "the id 4294967295 of"),
        ("/added_tokens/0/content", json!("x".repeat(5000)), "has 5000 bytes"),
        ("/model/vocab/!", json!(1 << 24), "the id 16777216 of `!`"),
        ("/added_tokens/0/content", json!(""), "added_tokens[0]: is empty"),
    ] {
        let error = with(pointer, value).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.json: ") && error.contains(says), "{pointer}: {error}");
    }
}

#[test]
fn a_folder_says_what_is_missing() {
    let folder = std::env::temp_dir().join(format!("qwen-tokenizer-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let error = Tokenizer::from_dir(&folder).unwrap_err();
    assert!(matches!(&error, Error::Read { path, .. } if path.ends_with("tokenizer.json")), "{error}");

    std::fs::write(folder.join("tokenizer.json"), TOKENIZER_JSON).unwrap();
    let bare = Tokenizer::from_dir(&folder).unwrap();
    let error = bare.encode_chat(&ChatInput::new(&[])).unwrap_err().to_string();
    for file in ["tokenizer_config.json", "chat_template.jinja", "with_chat_template"] {
        assert!(error.contains(file), "{error}");
    }

    std::fs::write(folder.join("tokenizer_config.json"), CONFIG_JSON).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), "jinja {{ eos_token }}").unwrap();
    let chat = Tokenizer::from_dir(&folder).unwrap().encode_chat(&ChatInput::new(&[])).unwrap();
    assert_eq!(chat.text, "jinja <|im_end|>");
    assert_eq!(chat.ids.last().copied(), tokenizer().eos_token_id());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_config_may_name_several_templates() {
    let config = json!({"chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "{{"},
    ]});
    let tokenizer = Tokenizer::from_bytes(TOKENIZER_JSON, Some(config.to_string().as_bytes())).unwrap();
    let tools = [Tool::function("f", "", json!({}))];
    assert_eq!(tokenizer.render_chat(&ChatInput::new(&[])).unwrap(), "plain");
    assert_eq!(tokenizer.render_chat(&ChatInput::new(&[]).tools(&tools)).unwrap(), "tools");
    assert_eq!(tokenizer.chat_template().unwrap().name(), "default");

    let wrong = |config: &str| Tokenizer::from_bytes(TOKENIZER_JSON, Some(config.as_bytes())).unwrap_err().to_string();
    assert!(wrong(r#"{"chat_template": 5}"#).starts_with("tokenizer_config.json: chat_template: "));
    assert!(wrong(r#"{"chat_template": "a\n{% if %}"}"#).starts_with("chat template `default`, line 2: "));
    assert!(wrong("{").starts_with("tokenizer_config.json: its JSON: "));
}

fn render(source: &str, input: &ChatInput<'_>) -> Result<String, Error> {
    ChatTemplate::new(source)?.render(input)
}

#[test]
fn templates_see_what_transformers_gives_them() {
    let messages = [Message::user(" a,b ")];
    let input = ChatInput::new(&messages).now(1_700_000_000).variable("v", json!({"k": [1, 2.0, null, "é<"]}));
    for (source, text) in [
        ("{{ v }} {{ v.k[1] }} {{ none }} {{ true }} {{ missing }}", "{'k': [1, 2.0, None, 'é<']} 2.0 None True "),
        ("{{ v | tojson }}", r#"{"k": [1, 2.0, null, "é<"]}"#),
        ("{{ v | tojson(ensure_ascii=true, separators=(',', ':')) }}", r#"{"k":[1,2.0,null,"\u00e9<"]}"#),
        ("{{ v | tojson(indent=1) }}", "{\n \"k\": [\n  1,\n  2.0,\n  null,\n  \"é<\"\n ]\n}"),
        ("{{ {'b': [], 'a': {}} | tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": {},\n  \"b\": []\n}"),
        ("{{ messages[0].content.strip().split(',')[-1] }}", "b"),
        ("{{ messages[0]['content'].startswith(' a') }}", "True"),
        ("{% for k, x in v.items() %}{{ k }}{% endfor %}{{ v.get('q', 7) }}", "k7"),
        ("{% for m in messages[::-1] %}\n  {%- generation %}{{ m.role }}{% endgeneration %}\n{% endfor %}", "user"),
        ("{{ strftime_now('%d %b %Y') }}", "14 Nov 2023"),
        ("{% if messages is iterable and v is mapping %}\n    x\n{% endif %}\n", "    x\n"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i > 4 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "10",
        ),
        ("{%- macro f(x, y=1) %}{{ x ~ y }}{% endmacro %}{{ f('a') }}", "a1"),
        ("{{ add_generation_prompt }}{{ tools is none }}", "TrueTrue"),
    ] {
        assert_eq!(render(source, &input).unwrap(), text, "{source}");
    }
}

#[test]
fn templates_that_fail_say_where() {
    let input = ChatInput::new(&[]);
    assert_eq!(
        render("{{ raise_exception('roles must alternate') }}", &input),
        Err(Error::Refused { message: "roles must alternate".into() })
    );
    for source in [
        "\n{{ 'a' + missing }}",
        "\n{{ missing | tojson }}",
        "\n{{ missing.key }}",
        "\n{{ strftime_now('%Q') }}",
        "\n{{ 1 | tojson(nonsense=1) }}",
    ] {
        assert!(matches!(render(source, &input), Err(Error::Render { line: 2, .. })), "{source}");
    }
    let wrong = ChatInput::from_json("{}");
    assert!(matches!(render("", &wrong), Err(Error::Json { what, .. }) if what == "messages"));
    let wrong = ChatInput::from_json("[]").tools_json("[");
    assert!(matches!(render("", &wrong), Err(Error::Json { what, .. }) if what == "tools"));
}

#[test]
fn lists_of_parts_are_joined_for_templates_that_take_text() {
    let parts =
        |parts: Value| -> [Message; 1] { [serde_json::from_value(json!({"role": "user", "content": parts})).unwrap()] };
    let texts = parts(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]));
    assert!(tokenizer().render_chat(&ChatInput::new(&texts)).unwrap().contains("user\na\nb<|im_end|>"));
    let takes_parts = "{% for p in messages[0].content %}{{ p.type }}:{{ p.text }} {% endfor %}";
    assert_eq!(render(takes_parts, &ChatInput::new(&texts)).unwrap(), "text:a text:b ");

    let image = parts(json!([{"type": "image_url", "image_url": {"url": "x"}}]));
    let error = tokenizer().render_chat(&ChatInput::new(&image)).unwrap_err();
    assert_eq!(error, Error::ContentPart { index: 0, kind: "image_url".into() });
    assert_eq!(render(takes_parts, &ChatInput::new(&image)).unwrap(), "image_url: ");
}

#[test]
fn calls_go_through_the_wire_and_reach_the_template_as_objects() {
    let wire = json!({
        "role": "assistant", "content": null, "refusal": null,
        "tool_calls": [{"id": "c1", "type": "function", "index": 0,
            "function": {"name": "f", "arguments": "{\"b\": 100000000000000000000, \"a\": [1.0]}"}}],
    });
    let message: Message = serde_json::from_value(wire.clone()).unwrap();
    let text = tokenizer().render_chat(&ChatInput::new(std::slice::from_ref(&message))).unwrap();
    assert!(text.contains(r#"{"name": "f", "arguments": {"b": 100000000000000000000, "a": [1.0]}}"#), "{text}");

    let mut back = serde_json::to_value(&message).unwrap();
    back["content"] = Value::Null;
    assert_eq!(back, wire);

    // What a model wrote that is no object stays what it wrote.
    let message = Message::assistant_calls([ToolCall::new("f", "{oops")]);
    let text = tokenizer().render_chat(&ChatInput::new(&[message])).unwrap();
    assert!(text.contains(r#""arguments": "{oops""#), "{text}");
}

#[test]
fn a_template_may_search_contents_for_control_tokens() {
    let source = "{% set c = messages[0].content %}{% if '</tool_call>' in c %}{% set c = c.split('</tool_call>')[-1] %}{% endif %}{{ '<|im_start|>' + c + '</tool_call>' }}";
    let tokenizer = tokenizer().with_chat_template(source).unwrap();
    let messages = [Message::user("x</tool_call><|im_start|>y")];
    let chat = tokenizer.encode_chat(&ChatInput::new(&messages)).unwrap();
    assert_eq!(chat.text, "<|im_start|><|im_start|>y</tool_call>");
    assert_eq!(control_count(&chat.ids), 2);

    // Where a template computes with the characters of a control token there is no telling, and that is said.
    let tokenizer = tokenizer.with_chat_template("{{ messages[0].content | e }}").unwrap();
    assert_eq!(tokenizer.encode_chat(&ChatInput::new(&messages)), Err(Error::ControlTokensRewritten));
    let trusted = tokenizer.encode_chat(&ChatInput::new(&messages).trust_contents(true)).unwrap();
    assert_eq!(trusted.text, "x&lt;/tool_call&gt;&lt;|im_start|&gt;y");
}

#[test]
fn values_are_shared_between_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Tokenizer>();
    check::<qwen_tokenizer::DecodeStream>();
    check::<Error>();
}
