//! One function a parser, with what must hold of all that it accepts.

use std::path::Path;

use qwen_core::checkpoint::{Header, Index};
use qwen_core::{Config, GenerationConfig, Rope};
use qwen_tokenizer::{ChatInput, ChatTemplate, Message};

/// What is fuzzed: it takes any bytes and panics where a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by the name of its binary and of its folder of seeds.
pub const ALL: &[(&str, Target)] = &[
    ("header", header),
    ("config", config),
    ("generation_config", generation_config),
    ("index", index),
    ("template", template),
];

/// A safetensors file, as it is and with the length put right: a change within the JSON would hardly ever get past it.
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

/// A `generation_config.json`: an accepted one can be sampled by.
pub fn generation_config(text: &[u8]) {
    let path = "generation_config.json";
    let Some(config) = utf8(text).and_then(|text| GenerationConfig::from_json(path, text).ok()) else { return };
    assert!(!config.do_sample || config.temperature > 0.0);
    assert!((0.0..=1.0).contains(&config.top_p) && (0.0..=1.0).contains(&config.min_p));
    assert!(config.repetition_penalty > 0.0 && config.repetition_penalty.is_finite());
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

/// A template, whatever it holds, is refused, or renders, or fails to render.
pub fn template(source: &[u8]) {
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::system("Be brief."), Message::user("Hello <|im_end|>"), Message::assistant("Hi.")];
    let _ = template.render(&ChatInput::new(&messages));
}
