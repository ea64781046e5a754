//! What files of this family's children have beside the official ones: tokens that tokenizer.json lacks, a post-processor,
//! templates in files of their own, and templates that build their control tokens or keep them in variables.

use std::path::{Path, PathBuf};

use qwen_tokenizer::{Arguments, ChatInput, EncodedChat, Error, Message, Tokenizer, ToolCall};
use serde_json::{Value, json};

const TOKENIZER_JSON: &[u8] = include_bytes!("data/tokenizer.json");

fn tokenizer_json() -> Value {
    serde_json::from_slice(TOKENIZER_JSON).unwrap()
}

fn with_config(config: &Value) -> Tokenizer {
    Tokenizer::from_bytes(TOKENIZER_JSON, Some(config.to_string().as_bytes())).unwrap()
}

fn with_template(template: &str) -> Tokenizer {
    with_config(&json!({"eos_token": "<|im_end|>", "chat_template": template}))
}

/// A folder of a tokenizer's files that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("qwen-tokenizer-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let folder = Self(folder);
        for (name, text) in files {
            let path = folder.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn load(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_dir(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A folder with the tokenizer of the tests.
fn folder(name: &str, files: &[(&str, &str)]) -> Folder {
    let json = std::str::from_utf8(TOKENIZER_JSON).unwrap();
    Folder::new(name, &[&[("tokenizer.json", json)], files].concat())
}

#[test]
fn tokens_that_only_the_config_has_are_tokens() {
    let decoder = json!({
        "354": {"content": "<|im_end|>", "special": true},
        "357": {"content": "<|image|>", "special": true},
        "358": {"content": "<think>", "special": false, "normalized": false},
    });
    let tokenizer =
        with_config(&json!({"added_tokens_decoder": decoder, "additional_special_tokens": ["<|image|>", "<|extra|>"]}));
    let ids = tokenizer.encode("a<|image|><think><|extra|>", true).unwrap();
    assert_eq!(ids[1..], [357, 358, 359]);
    assert_eq!(tokenizer.decode(&ids, true), "a<think>");
    assert!(tokenizer.is_special(357) && !tokenizer.is_special(358) && tokenizer.is_special(359));
    assert_eq!((tokenizer.len(), tokenizer.num_ids()), (360, 360));
    // What they declare of a token that is there counts.
    let decoder = json!({"355": {"content": "<tool_call>", "special": true}});
    assert!(with_config(&json!({"added_tokens_decoder": decoder})).is_special(355));
    // A named token that no file has gets the next id.
    assert_eq!(with_config(&json!({"pad_token": "<|pad|>"})).pad_token_id(), Some(357));
}

#[test]
fn tokens_of_the_older_file_are_tokens() {
    let folder = folder("added", &[("added_tokens.json", r#"{"<|b|>": 358, "<think>": 357, "<|im_end|>": 354}"#)]);
    let tokenizer = folder.load().unwrap();
    assert_eq!(tokenizer.encode("<think><|b|>", true).unwrap(), [357, 358]);
    assert!(tokenizer.is_special(358) && !tokenizer.is_special(357));
}

#[test]
fn damaged_declarations_are_errors_with_their_key() {
    for (config, key) in [
        (json!({"added_tokens_decoder": {"x": {"content": "a"}}}), "added_tokens_decoder.x"),
        (json!({"added_tokens_decoder": {"99999999999": {"content": "a"}}}), "added_tokens_decoder.99999999999"),
        (json!({"added_tokens_decoder": {"99999999": {"content": "a"}}}), "added_tokens_decoder.99999999"),
        (json!({"added_tokens_decoder": [1]}), "added_tokens_decoder"),
    ] {
        let error = Tokenizer::from_bytes(TOKENIZER_JSON, Some(config.to_string().as_bytes())).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    let folder = folder("added-damaged", &[("added_tokens.json", r#"{"<|b|>": -1}"#)]);
    assert!(folder.load().unwrap_err().to_string().contains("added_tokens.json"));
}

#[test]
fn a_post_processor_stands_around_prompts_and_nothing_else() {
    let piece = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let tokens = json!({
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [352], "tokens": ["<|endoftext|>"]},
        "<|im_end|>": {"id": "<|im_end|>", "ids": [354, 354], "tokens": ["<|im_end|>", "<|im_end|>"]},
    });
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let step =
        |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens});
    let load = |post_processor: Value| {
        let mut json = tokenizer_json();
        json["post_processor"] = post_processor;
        Tokenizer::from_bytes(json.to_string().as_bytes(), None)
    };
    let hi = load(Value::Null).unwrap().encode("Hi", true).unwrap();
    let bos = step(json!([piece("<|endoftext|>"), text]));
    let both = step(json!([piece("<|endoftext|>"), text, piece("<|im_end|>")]));
    let byte_level = json!({"type": "ByteLevel"});
    let sequence = json!({"type": "Sequence", "processors": [byte_level, bos, both]});
    for (processor, leading, trailing) in [
        (byte_level, vec![], vec![]),
        (bos, vec![352], vec![]),
        (both, vec![352], vec![354, 354]),
        (sequence, vec![352, 352], vec![354, 354]),
    ] {
        let tokenizer = load(processor).unwrap();
        assert_eq!(tokenizer.encode_prompt("Hi", 100).unwrap(), [leading, hi.clone(), trailing].concat());
        assert_eq!(tokenizer.encode("Hi", true).unwrap(), hi);
    }
    for damaged in [
        step(json!([])),
        step(json!([text, text])),
        step(json!([piece("<x>"), text])),
        step(json!("A")),
        step(json!([{}, text])),
    ] {
        assert!(load(damaged).unwrap_err().to_string().contains("post_processor"));
    }
    // The class that adds a BOS by its own flag.
    let config = |class: &str| json!({"tokenizer_class": class, "add_bos_token": true, "bos_token": "<|endoftext|>"});
    assert_eq!(with_config(&config("LlamaTokenizerFast")).encode_prompt("Hi", 100).unwrap()[0], 352);
    assert_eq!(with_config(&config("Qwen2Tokenizer")).encode_prompt("Hi", 100).unwrap(), hi);
}

#[test]
fn templates_are_found_where_they_are_kept() {
    let messages = [Message::user("Hi")];
    let tools = [qwen_tokenizer::Tool::function("f", "", json!({}))];
    let texts = |folder: &Folder| {
        let tokenizer = folder.load().unwrap();
        let input = ChatInput::new(&messages);
        [tokenizer.render_chat(&input.clone()).unwrap(), tokenizer.render_chat(&input.tools(&tools)).unwrap()]
    };
    let config = r#"{"chat_template": [{"name": "default", "template": "config"}, {"name": "tool_use", "template": "config tools"}]}"#;
    let config = ("tokenizer_config.json", config);
    let (file, tool_use) =
        (("chat_template.jinja", "file"), ("additional_chat_templates/tool_use.jinja", "file tools"));
    let other = ("additional_chat_templates/rag.jinja", "rag");
    assert_eq!(texts(&folder("config", &[config])), ["config", "config tools"]);
    // Where there are files, what the config says does not count.
    assert_eq!(texts(&folder("file", &[config, file, other])), ["file", "file"]);
    assert_eq!(texts(&folder("files", &[config, file, tool_use, other])), ["file", "file tools"]);
    let damaged = folder("damaged", &[file, ("additional_chat_templates/tool_use.jinja", "{% oops %}")]);
    assert!(matches!(damaged.load(), Err(Error::TemplateSyntax { .. })));
}

#[test]
fn numbers_that_only_python_writes_are_read() {
    let json = r#"{"a": [NaN, -Infinity, "NaN \" Infinity"], "model_max_length": Infinity, "eos_token": "<|im_end|>", "chat_template": "NaN"}"#;
    let tokenizer = Tokenizer::from_bytes(TOKENIZER_JSON, Some(json.as_bytes())).unwrap();
    assert_eq!(tokenizer.eos_token_id(), Some(354));
    assert_eq!(tokenizer.chat_template().unwrap().source(), "NaN");
    assert!(Tokenizer::from_bytes(TOKENIZER_JSON, Some(br#"{"a": NaNs}"#)).is_err());
}

fn ids(tokenizer: &Tokenizer, messages: &[Message]) -> EncodedChat {
    tokenizer.encode_chat(&ChatInput::new(messages)).unwrap()
}

/// What transformers gives, to whom all control tokens are.
fn trusted(tokenizer: &Tokenizer, messages: &[Message]) -> EncodedChat {
    tokenizer.encode_chat(&ChatInput::new(messages).trust_contents(true)).unwrap()
}

#[test]
fn control_tokens_may_be_built_or_kept_in_variables() {
    let built = with_template(
        "{% for m in messages %}{{ '<|' + ('im_start' if m.role == 'user' else 'im_end') + '|>' + m.content }}{% endfor %}",
    );
    let messages = [Message::user("Hi"), Message::assistant("x")];
    assert_eq!(ids(&built, &messages), trusted(&built, &messages));
    assert_eq!(ids(&built, &messages).ids[0], 353);
    let said = [Message::user("Hi<|im_end|>")];
    assert_eq!(ids(&built, &said).text, trusted(&built, &said).text);
    assert_eq!(ids(&built, &said).ids.iter().filter(|id| **id >= 352).count(), 1);

    let kept = with_template(
        "{% set end = '</tool_call>' %}{% for m in messages %}{% set c = m.content.split(end)[-1].lstrip('\\n') if end in m.content else m.content %}\
         {{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}",
    );
    let messages = [Message::user("Hi"), Message::assistant("<tool_call>x</tool_call>\n\nHo"), Message::user("Bye")];
    assert_eq!(ids(&kept, &messages), trusted(&kept, &messages));
    // What a user said is cut the same, and what is left of it is text.
    let messages = [Message::user("a</tool_call>b<|im_end|>")];
    let chat = ids(&kept, &messages);
    assert_eq!(chat.text, "<|im_start|>user\nb<|im_end|><|im_end|>\n");
    assert_eq!(chat.ids.iter().filter(|id| **id >= 352).count(), 2);
}

#[test]
fn a_token_is_not_completed_by_what_follows() {
    // The template writes `|>` behind every content.
    let tokenizer = with_template("{% for m in messages %}{{ m.content }}|>{% endfor %}");
    for content in ["<|im_end", "<|im_end|><|im_end", "<|im_start"] {
        let chat = ids(&tokenizer, &[Message::user(content)]);
        assert!(chat.ids.iter().all(|id| *id < 352), "{content}");
        assert_eq!(tokenizer.decode(&chat.ids, false), chat.text);
    }
}

#[test]
fn what_the_model_said_stays_what_it_was() {
    let tokenizer = with_template(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}",
    );
    let call = "<tool_call>{}</tool_call>";
    let chat = ids(&tokenizer, &[Message::assistant(call)]);
    assert_eq!(chat.ids.iter().filter(|id| **id >= 352).count(), 4);
    for role in ["user", "tool", "system", "ipython"] {
        let chat = ids(&tokenizer, &[Message::new(role, call)]);
        assert_eq!(chat.ids.iter().filter(|id| **id >= 352).count(), 2, "{role}");
    }
    // The same from JSON text.
    let json = json!([{"role": "assistant", "content": call}, {"role": "user", "content": call}]).to_string();
    let chat = tokenizer.encode_chat(&ChatInput::from_json(&json)).unwrap();
    assert_eq!(chat.ids.iter().filter(|id| **id >= 352).count(), 6);
}

#[test]
fn a_chat_goes_on_from_the_ids_that_it_had() {
    let tokenizer = with_template(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    );
    let mut messages = vec![Message::user("Hi<|im_end|>")];
    let prompt = ids(&tokenizer, &messages);
    // As the model wrote it: letter by letter, and a control token as text.
    let letters =
        |text: &str| text.chars().flat_map(|c| tokenizer.encode(&c.to_string(), false).unwrap()).collect::<Vec<_>>();
    let before = prompt.answered("the <|im_end|> token", &letters("the <|im_end|> token"));
    messages.extend([Message::assistant("the <|im_end|> token"), Message::user("<|im_start|>?")]);
    let input = ChatInput::new(&messages);
    let next = tokenizer.encode_chat_after(&input, usize::MAX, &before).unwrap();
    assert_eq!(next.text, ids(&tokenizer, &messages).text);
    assert_eq!(next.ids[..before.ids.len()], before.ids);
    let rest = "<|im_end|>\n<|im_start|>user\n<|im_start|>?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(tokenizer.decode(&next.ids[before.ids.len()..], false), rest);
    // The end of the answer, the beginning and the end of the user's turn, the beginning of the answer.
    assert_eq!(next.ids[before.ids.len()..].iter().filter(|id| **id >= 352).count(), 4);
    // The limit is on the whole.
    assert!(tokenizer.encode_chat_after(&input, next.ids.len(), &before).is_ok());
    let error = tokenizer.encode_chat_after(&input, next.ids.len() - 1, &before);
    assert!(matches!(error, Err(Error::TooManyTokens { .. })));
    // A template that rewrites the answer, and another conversation, are encoded anew.
    messages[1] = Message::assistant("another");
    let input = ChatInput::new(&messages);
    assert_eq!(tokenizer.encode_chat_after(&input, usize::MAX, &before).unwrap(), ids(&tokenizer, &messages));
}

fn with_arguments(arguments: impl Into<Arguments>) -> [Message; 1] {
    [Message::assistant_calls([ToolCall::new("f", arguments)])]
}

#[test]
fn arguments_reach_a_template_in_the_form_that_it_takes() {
    let calls = |body: &str| {
        with_template(&format!(
            "{{% for m in messages %}}{{% for call in m.tool_calls or [] %}}{body}{{% endfor %}}{{% endfor %}}"
        ))
    };
    let as_json = calls("{{ call.function.arguments | tojson }}");
    let joined = calls("{{ '```' + call.function.arguments + '```' }}");
    let either = calls(
        "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}",
    );
    let items = calls("{% for key, value in call.function.arguments.items() %}{{ key }}={{ value }}{% endfor %}");
    let text = |tokenizer: &Tokenizer, arguments: Arguments| ids(tokenizer, &with_arguments(arguments)).text;
    let (wire, value) = (|| Arguments::from(r#"{"a":1}"#), || Arguments::from(json!({"a": 1})));
    assert_eq!([text(&as_json, wire()), text(&as_json, value())], [r#"{"a": 1}"#, r#"{"a": 1}"#]);
    assert_eq!([text(&joined, wire()), text(&joined, value())], ["```{\"a\":1}```", "```{\"a\":1}```"]);
    assert_eq!([text(&either, wire()), text(&either, value())], [r#"{"a":1}"#, r#"{"a": 1}"#]);
    assert_eq!([text(&items, wire()), text(&items, value())], ["a=1", "a=1"]);
    // A list and null are values, too; what is no JSON is text.
    assert_eq!(text(&as_json, json!([1, "x"]).into()), r#"[1, "x"]"#);
    assert_eq!(text(&as_json, json!(null).into()), "null");
    assert_eq!(text(&as_json, "oops {".into()), r#""oops {""#);
    assert_eq!(text(&as_json, "".into()), "{}");
}

#[test]
fn arguments_keep_their_form_and_every_digit() {
    for arguments in [
        r#"{"a":123456789012345678901234567890,"b":[1.0]}"#,
        r#""{\"a\": 123456789012345678901234567890}""#,
        "null",
        "[1,2]",
        r#""""#,
    ] {
        let json = format!(
            r#"{{"role":"assistant","tool_calls":[{{"type":"function","function":{{"name":"f","arguments":{arguments}}}}}]}}"#
        );
        let message: Message = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&message).unwrap(), json);
    }
    let tokenizer = with_template("{{ messages[0].tool_calls[0].function.arguments | tojson }}");
    let json =
        r#"{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"n": 123456789012345678901234567890}}]}"#;
    let message: Message = serde_json::from_str(json).unwrap();
    assert_eq!(ids(&tokenizer, &[message]).text, r#"{"n": 123456789012345678901234567890}"#);
    // Without arguments at all.
    let message: Message = serde_json::from_str(r#"{"role": "assistant", "tool_calls": [{"name": "f"}]}"#).unwrap();
    assert_eq!(ids(&tokenizer, &[message]).text, "{}");
}

#[test]
fn a_folder_without_tokenizer_json_is_read() {
    // A tokenizer that splits as Qwen2.5 does, as its two forms.
    let mut json = tokenizer_json();
    json["normalizer"] = json!({"type": "NFC"});
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    ]});
    let reference = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| merge.as_str().unwrap());
    let merges = ["#version: 0.2"].into_iter().chain(merges).collect::<Vec<_>>().join("\n");
    let vocab = json["model"]["vocab"].to_string();
    let added: serde_json::Map<String, Value> = json["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| (token["content"].as_str().unwrap().to_owned(), token["id"].clone()))
        .collect();
    let added = Value::Object(added).to_string();
    let files =
        [("vocab.json", vocab.as_str()), ("merges.txt", merges.as_str()), ("added_tokens.json", added.as_str())];
    let tokenizer = Folder::new("older", &files).load().unwrap();
    for text in ["The weather of a city, isn't it?", "12 né\u{301} <|im_start|>user\n<tool_call>x", "  \r\n\t ", ""] {
        assert_eq!(tokenizer.encode(text, true), reference.encode(text, true));
    }
    assert_eq!(tokenizer.num_ids(), reference.num_ids());
    assert!(tokenizer.is_special(353) && !tokenizer.is_special(355));
    // Without any control token it has the one that ends texts.
    let bare = Folder::new("older-bare", &files[..2]).load().unwrap();
    assert_eq!(bare.encode("<|endoftext|>", true).unwrap(), [352]);
    // Damage is named.
    let damaged = |files: &[(&str, &str)]| Folder::new("older-damaged", files).load().unwrap_err().to_string();
    assert!(damaged(&files[..1]).contains("merges.txt"));
    assert!(damaged(&[files[0], ("merges.txt", "a b\nc")]).contains("line 2"));
    assert!(damaged(&[("vocab.json", "[]"), files[1]]).contains("vocab.json"));
    assert!(damaged(&[("vocab.json", r#"{"a": 99999999}"#), files[1]]).contains("99999999"));
}

#[test]
fn a_folder_that_is_not_there_says_so() {
    assert!(Tokenizer::from_dir(Path::new("/nowhere")).unwrap_err().to_string().contains("/nowhere"));
}

#[test]
#[cfg(unix)]
fn what_a_download_left_in_place_of_a_file_is_called_by_its_name() {
    use std::os::unix::fs::symlink;
    let says = |folder: &Folder, words: &[&str]| {
        let error = folder.load().unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    };
    // A folder of a cache, copied without the files that its links lead to.
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "added_tokens.json",
        "additional_chat_templates",
        "additional_chat_templates/tool_use.jinja",
    ] {
        let folder = folder("link", &[("additional_chat_templates/other.jinja", "x")]);
        let path = folder.0.join(name);
        match path.is_dir() {
            true => std::fs::remove_dir_all(&path).unwrap(),
            false => drop(std::fs::remove_file(&path)),
        }
        symlink("../../blobs/0123abc", &path).unwrap();
        says(&folder, &[name, "link to ../../blobs/0123abc", "copy the folder"]);
        assert!(Tokenizer::is_in(&folder.0));
    }
    let older = Folder::new("link-older", &[("merges.txt", "a b")]);
    symlink("blob", older.0.join("vocab.json")).unwrap();
    assert!(Tokenizer::is_in(&older.0));
    says(&older, &["vocab.json", "link to blob"]);
    // Pointers and pages.
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7031645\n";
    says(&Folder::new("lfs", &[("tokenizer.json", pointer)]), &["Git LFS pointer", "git lfs pull"]);
    says(&folder("page", &[("tokenizer_config.json", "<!DOCTYPE html><html>")]), &["a page of a web site"]);
}

#[test]
fn keys_that_are_null_are_left_out() {
    // As transformers 5.24 gives messages to a template.
    let tokenizer = with_template("{% for m in messages %}{{ m | tojson }}{{ m.content is defined }};{% endfor %}");
    let json = r#"[{"role": "assistant", "content": null, "tool_calls": null, "name": null, "x": [null]},
                   {"role": "user", "content": ""}]"#;
    let text = r#"{"role": "assistant", "x": [null]}False;{"role": "user", "content": ""}True;"#;
    let messages: Vec<Message> = serde_json::from_str(json).unwrap();
    assert_eq!(ids(&tokenizer, &messages).text, text);
    // As JSON they are what they were.
    let template =
        qwen_tokenizer::ChatTemplate::new("{{ messages[0].content is none }}{{ messages[0].name is defined }}");
    assert_eq!(template.unwrap().render(&ChatInput::from_json(json)).unwrap(), "TrueTrue");
    // A thought goes by several names.
    for (json, text) in [
        (
            r#"{"role": "assistant", "thinking": "t"}"#,
            r#"{"role": "assistant", "thinking": "t", "reasoning_content": "t"}"#,
        ),
        (
            r#"{"role": "assistant", "reasoning_content": null, "reasoning": "r", "content": ""}"#,
            r#"{"thinking": "r", "role": "assistant", "content": "", "reasoning": "r", "reasoning_content": "r"}"#,
        ),
        (
            r#"{"role": "user", "reasoning_content": "c", "thinking": "t"}"#,
            r#"{"role": "user", "reasoning_content": "c", "thinking": "t"}"#,
        ),
    ] {
        let template = qwen_tokenizer::ChatTemplate::new("{{ messages[0] | tojson }}").unwrap();
        let message: Message = serde_json::from_str(json).unwrap();
        assert_eq!(template.render(&ChatInput::new(&[message])).unwrap(), text);
    }
}

#[test]
fn a_key_may_hold_the_beginning_of_a_token() {
    // The key `content` ends as `tool` begins, and `role` is a token.
    let mut json = tokenizer_json();
    for (id, content) in [(357, "tool"), (358, "role")] {
        json["added_tokens"].as_array_mut().unwrap().push(json!({"id": id, "content": content}));
    }
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    let template =
        "{% for m in messages %}{{ m.role + m['content'] + m.get('content') }}{{ 'content' in m }}{% endfor %}";
    let tokenizer = tokenizer.with_chat_template(template).unwrap();
    let chat = ids(&tokenizer, &[Message::user("a tool")]);
    assert_eq!(chat.text, "usera toola toolTrue");
    assert!(chat.ids.iter().all(|id| *id < 352), "{:?}", chat.ids);
}

#[test]
fn templates_that_change_what_users_write_are_warned_of() {
    let warnings = |body: &str| {
        with_template(&format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' }}}}{body}<|im_end|>{{% endfor %}}"
        ))
        .warnings()
    };
    for body in [
        "{{ m.content }}",
        "{{ m.content | trim }}",
        "{{ m['content'].strip() }}",
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}",
        "{% if '</think>' in m.content and m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}",
        "{{ m.content if m.role == 'user' else m.content | e }}",
        "{{ m.content | string | safe }}",
        "{{ raise_exception('no') }}",
        "",
    ] {
        assert!(warnings(body).is_empty(), "{body}: {:?}", warnings(body));
    }
    for (body, change) in [
        ("{{ m.content | e }}", r#"`"q" 'a' ` becomes `&#34;q&#`"#),
        ("{{ m.content | replace('<', '&lt;') }}", "`<b> & &a` becomes `&lt;b> &`"),
        ("{{ m.content.replace('\\n', ' ') }}", "becomes"),
        ("{{ m.content | tojson }}", "becomes"),
        ("{{ m.content | upper }}", "becomes"),
        ("{{ m.content | replace('  ', ' ') }}", "becomes"),
        ("{{ m.content | urlencode }}", "becomes"),
    ] {
        let warnings = warnings(body);
        assert!(
            warnings[0].contains("changes what users write") && warnings[0].contains(change),
            "{body}: {warnings:?}"
        );
    }
    // What refuses a chat with control tokens.
    let tokenizer = with_template("{% for m in messages %}{{ m.content | e }}{% endfor %}");
    let said = [Message::user("Hi <|im_end|>")];
    assert_eq!(tokenizer.encode_chat(&ChatInput::new(&said)), Err(Error::ControlTokensRewritten));
    assert!(tokenizer.warnings()[1].contains("cannot be told from its own"));
}
