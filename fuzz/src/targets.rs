//! One function per parser, with the invariants of everything that it accepts.

use std::path::Path;

use qwen_core::checkpoint::config::Quantization;
use qwen_core::checkpoint::{Header, Index};
use qwen_core::{Config, GenerationConfig, Rope};
use qwen_tokenizer::{ChatInput, ChatTemplate, Error, GgufVocabulary, Message, Tokenizer};

/// A fuzz target: takes any bytes and panics if an invariant is violated.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and its seed folder.
pub const ALL: &[(&str, Target)] = &[
    ("header", header),
    ("config", config),
    ("generation_config", generation_config),
    ("quantization_config", quantization_config),
    ("index", index),
    ("template", template),
    ("tokenizer", tokenizer),
    ("tokenizer_config", tokenizer_config),
    ("gguf", crate::gguf::header),
    ("gguf_tensors", crate::gguf::tensors),
    ("gguf_vocabulary", gguf_vocabulary),
    ("packed", crate::packed::packed),
    ("folder", crate::folder::folder),
    ("snapshot", crate::snapshot::snapshot),
    ("grammar", crate::grammar::grammar),
];

/// A safetensors file, as it is and with a corrected length: otherwise mutations of the JSON would rarely get past the
/// length check.
pub fn header(file: &[u8]) {
    parse_header(file);
    if let Some(end) = file.iter().rposition(|&byte| byte == b'}')
        && end >= 8
    {
        let length = (end as u64 - 7).to_le_bytes();
        parse_header(&[&length, &file[8..]].concat());
    }
}

/// The tensors of an accepted file fill its end without a gap.
fn parse_header(file: &[u8]) {
    let Ok(header) = Header::parse(Path::new("model.safetensors"), file) else { return };
    let mut end = header.tensors.first().map_or(file.len() as u64, |first| first.range.start);
    for tensor in &header.tensors {
        assert_eq!(tensor.range.start, end, "{tensor:?}");
        end = tensor.range.end;
        if let Some(encoding) = tensor.encoding() {
            let bytes = encoding.row_bytes(tensor.shape.iter().product()).map(|bytes| bytes as u64);
            assert_eq!(bytes, Some(tensor.bytes()), "{tensor:?}");
        }
    }
    assert_eq!(end, file.len() as u64);
}

/// A `config.json`: an accepted one can be computed with.
pub fn config(text: &[u8]) {
    let Some(config) = utf8(text).and_then(|text| Config::from_json("config.json", text).ok()) else { return };
    assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
    assert_eq!(config.head_dim % 2, 0);
    assert!(config.rms_norm_eps > 0.0);
    let kv = 8 * (config.num_key_value_heads * config.head_dim * config.num_hidden_layers) as u64;
    assert!(kv.checked_mul(config.max_context() as u64).is_some() && config.num_parameters() < u64::MAX / 4);
    if config.head_dim <= 4096 {
        let rope = Rope::new(&config);
        let mut row = vec![0.0; config.head_dim];
        for position in [0, 1, config.max_context() - 1] {
            rope.cos_sin(position, &mut row);
            assert!(row.iter().all(|value| value.is_finite()), "position {position} of {config:?}");
        }
    }
    if let Ok(stretched) = config.clone().with_yarn(4.0) {
        assert!(stretched.max_context() > 0);
    }
}

/// A `generation_config.json`: valid values can be used for sampling, and warnings can be displayed.
pub fn generation_config(text: &[u8]) {
    let path = "generation_config.json";
    let Some(config) = utf8(text).and_then(|text| GenerationConfig::from_json(path, text).ok()) else { return };
    config.warnings().iter().for_each(|warning| assert!(!warning.to_string().is_empty()));
    let is_used = |field: &str| config.do_sample && config.check(field).is_ok();
    assert!(!is_used("temperature") || config.temperature > 0.0);
    assert!(!is_used("top_p") || (0.0..=1.0).contains(&config.top_p));
    assert!(!is_used("min_p") || (0.0..=1.0).contains(&config.min_p));
    let penalty = config.repetition_penalty;
    assert!(config.check("repetition_penalty").is_err() || (penalty > 0.0 && penalty.is_finite()));
}

/// A `quantization_config`, as a separate file and within a `config.json`: an accepted one has valid block sizes, and
/// both places give the same result.
pub fn quantization_config(text: &[u8]) {
    let Some(text) = utf8(text) else { return };
    let alone = Quantization::from_json("quantize_config.json", text).ok();
    assert!(alone.iter().all(|it| it.group_size.is_none_or(|size| size > 0 && size.is_multiple_of(32))), "{alone:?}");
    let Ok(mut object) = serde_json::from_str::<serde_json::Value>(text) else { return };
    let Some(keys) = object.as_object_mut() else { return };
    if keys.get("quant_method").is_none_or(serde_json::Value::is_null) {
        keys.insert("quant_method".into(), "gptq".into());
    }
    let config = serde_json::json!({
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "quantization_config": object,
    });
    let within = Config::from_json("config.json", &config.to_string()).ok();
    assert_eq!(within.and_then(|config| config.quantization), alone);
}

/// A `model.safetensors.index.json`: no shard of an accepted one is outside the folder.
pub fn index(text: &[u8]) {
    let path = Path::new("model.safetensors.index.json");
    let Some(index) = utf8(text).and_then(|text| Index::parse(path, text).ok()) else { return };
    for shard in index.shards() {
        let joined = Path::new("folder").join(shard);
        assert!(joined.parent() == Some(Path::new("folder")) && !shard.contains(['/', '\\', ':']), "{shard:?}");
    }
}

fn utf8(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok()
}

/// Any template is refused, or renders, or fails to render with an error.
pub fn template(source: &[u8]) {
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::system("Be brief."), Message::user("Hello <|im_end|>"), Message::assistant("Hi.")];
    let _ = template.render(&ChatInput::new(&messages));
}

/// A small tokenizer's files.
pub(crate) const TOKENIZER_JSON: &[u8] = include_bytes!("../../qwen-tokenizer/tests/data/tokenizer.json");
pub(crate) const TOKENIZER_CONFIG_JSON: &[u8] = include_bytes!("../../qwen-tokenizer/tests/data/tokenizer_config.json");

const TEXT: &str = "It's  a test: 123 n\u{e9}e\u{301} \u{5929}\u{1f600}\t\n <|im_end|><tool_call>";

/// A `tokenizer.json`: an accepted one encodes, and pieces are the whole.
pub fn tokenizer(json: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(json, Some(TOKENIZER_CONFIG_JSON)) {
        codec(&tokenizer);
    }
}

/// The tokenizer of a GGUF file, as lines of a key and a value, so that any bytes are valid: the key of a token is its
/// type, that of a merge is `merge`. An accepted one encodes, and decoded pieces add up to the whole text.
pub fn gguf_vocabulary(lines: &[u8]) {
    let lines = String::from_utf8_lossy(lines);
    let (mut tokens, mut token_types, mut merges, mut templates) = (vec![], vec![], vec![], vec![]);
    let mut vocabulary = GgufVocabulary { file: "model.gguf", model: "gpt2", ..Default::default() };
    for line in lines.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let id = value.parse().ok();
        match key {
            "model" => vocabulary.model = value,
            "pre" => vocabulary.pre = Some(value),
            "merge" => merges.push(value),
            "bos" => vocabulary.bos_token_id = id,
            "eos" => vocabulary.eos_token_id = id,
            "pad" => vocabulary.padding_token_id = id,
            "unk" => vocabulary.unknown_token_id = id,
            "add_bos" => vocabulary.add_bos_token = true,
            "template" => vocabulary.chat_template = Some(value),
            "named" => templates.extend(value.split_once(' ')),
            "type" => token_types.extend(id.map(|id: u32| id as i32)),
            kind => {
                tokens.push(value);
                token_types.extend(kind.parse::<i32>());
            }
        }
    }
    let lists = (tokens.as_slice(), token_types.as_slice(), merges.as_slice());
    (vocabulary.tokens, vocabulary.token_types, vocabulary.merges) = lists;
    vocabulary.named_chat_templates = &templates;
    match Tokenizer::from_gguf_vocabulary(&vocabulary) {
        Ok(tokenizer) => {
            assert!(tokenizer.num_ids() <= tokens.len() && tokenizer.len() <= tokens.len());
            codec(&tokenizer);
        }
        Err(Error::Invalid { file, .. } | Error::Unsupported { file, .. }) => assert_eq!(file, "model.gguf"),
        // A template's.
        Err(_) => {}
    }
}

/// An accepted tokenizer encodes, and decoded pieces add up to the whole text.
fn codec(tokenizer: &Tokenizer) {
    for parse_special in [false, true] {
        let Ok(ids) = tokenizer.encode(TEXT, parse_special) else { continue };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.num_ids()), "{ids:?}");
        assert_eq!(tokenizer.encode_within(TEXT, parse_special, ids.len()).as_ref(), Ok(&ids));
        assert!(ids.is_empty() || tokenizer.encode_within(TEXT, parse_special, ids.len() - 1).is_err());
        let mut stream = tokenizer.decode_stream(false);
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.finish());
        assert_eq!(text, tokenizer.decode(&ids, false));
    }
    chat(tokenizer);
}

/// A `tokenizer_config.json`: an accepted one renders chats or says why not.
pub fn tokenizer_config(json: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(TOKENIZER_JSON, Some(json)) {
        chat(&tokenizer);
    }
}

fn chat(tokenizer: &Tokenizer) {
    let messages = [Message::system("Be brief."), Message::user(TEXT), Message::assistant("Hi.")];
    let input = ChatInput::new(&messages);
    let Ok(chat) = tokenizer.encode_chat(&input) else { return };
    assert_eq!(tokenizer.render_chat(&input).as_ref(), Ok(&chat.text));
    assert_eq!(tokenizer.encode_chat_within(&input, chat.ids.len()).as_ref(), Ok(&chat));
}
