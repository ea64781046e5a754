//! Random and mutated files: the result is a value or an error, and we accept what the format's own implementation
//! accepts.

mod common;

use std::path::Path;

use common::safetensors;
use proptest::prelude::*;
use qwen_core::checkpoint::{Header, Index};
use qwen_core::{Config, GenerationConfig, Rope};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const CONFIG: &str = include_str!("data/config-0.5b-instruct.json");

/// `file` with bytes at relative positions replaced.
fn mutate(file: &[u8], changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut file = file.to_vec();
    for (at, byte) in changes {
        let at = at.index(file.len());
        file[at] = *byte;
    }
    file
}

/// Both header readers on the same bytes. Ours refuses one thing more (two tensors of one name) and accepts one more
/// (metadata that is not a map of strings).
fn compare(file: &[u8]) -> Result<(), TestCaseError> {
    let theirs = SafeTensors::deserialize(file);
    match (Header::parse(Path::new("model.safetensors"), file), theirs) {
        (Ok(ours), Ok(theirs)) => {
            prop_assert_eq!(ours.tensors.len(), theirs.len());
            for info in &ours.tensors {
                let view = theirs.tensor(&info.name).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(view.dtype().to_string(), &info.dtype[..]);
                prop_assert_eq!(view.shape(), &info.shape[..]);
                let (start, end) = (info.range.start as usize, info.range.end as usize);
                prop_assert_eq!(view.data(), &file[start..end]);
            }
        }
        (Err(ours), Ok(_)) => prop_assert!(ours.to_string().contains("appears twice"), "only ours refused: {ours}"),
        (Ok(_), Err(safetensors::SafeTensorError::InvalidHeaderDeserialization(_))) => {}
        (Ok(ours), Err(theirs)) => prop_assert!(false, "only theirs refused: {theirs}; {ours:?}"),
        (Err(_), Err(_)) => {}
    }
    Ok(())
}

/// A header of consecutive tensors, each `slip` bytes off the end of the previous one.
fn header(tensors: &[(String, &str, Vec<u8>, i8)]) -> (String, usize) {
    let mut map = serde_json::Map::new();
    let mut end = 0usize;
    for (name, dtype, shape, slip) in tensors {
        let width = match *dtype {
            "F32" | "I32" => 4,
            "BF16" | "F16" => 2,
            _ => 1,
        };
        let bytes = shape.iter().map(|&n| usize::from(n)).product::<usize>() * width;
        let start = end.saturating_add_signed(isize::from(*slip));
        end = start + bytes;
        map.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    (Value::Object(map).to_string(), end)
}

fn tensors() -> impl Strategy<Value = Vec<(String, &'static str, Vec<u8>, i8)>> {
    let dtype = prop::sample::select(vec!["F32", "F16", "BF16", "I8", "I32", "BOOL"]);
    let slip = prop_oneof![9 => Just(0i8), 1 => -8i8..8];
    prop::collection::vec(("[a-z.]{1,8}", dtype, prop::collection::vec(0u8..6, 0..4), slip), 0..6)
}

/// JSON of any kind, with the scalars that break things.
fn any_json() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3i64..300).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["yarn", "default", "silu", "qwen2", "full_attention", "bfloat16", ""])
            .prop_map(Value::from),
        prop::sample::select(vec![0.0, -0.0, 1.0, 1e-300, 1e300, 9.2e18, 1.8e19, 4294967296.0]).prop_map(Value::from),
    ];
    scalar.prop_recursive(2, 12, 4, |inner| {
        let key = prop::sample::select(vec![
            "type",
            "rope_type",
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "rope_theta",
            "quant_method",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map(key, inner, 0..6).prop_map(|map| map
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

fn config_keys() -> Vec<&'static str> {
    vec![
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "torch_dtype",
        "dtype",
        "use_sliding_window",
        "sliding_window",
        "layer_types",
        "architectures",
        "hidden_act",
        "model_type",
        "use_mrope",
        "partial_rotary_factor",
        "quantization_config",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "do_sample",
        "max_new_tokens",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_are_read_as_the_other_reader_reads_them(tensors in tensors(), extra in prop_oneof![8 => Just(0i8), 2 => -9i8..9]) {
        let (header, bytes) = header(&tensors);
        compare(&safetensors(&header, bytes.saturating_add_signed(isize::from(extra))))?;
    }

    #[test]
    fn mutated_files_are_read_as_the_other_reader_reads_them(
        tensors in tensors(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (header, bytes) = header(&tensors);
        compare(&mutate(&safetensors(&header, bytes), &changes))?;
    }

    #[test]
    fn arbitrary_bytes_are_an_error_or_a_header(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        compare(&bytes)?;
    }

    #[test]
    fn a_config_is_refused_or_consistent(
        changes in prop::collection::vec((prop::sample::select(config_keys()), any_json()), 0..4),
    ) {
        let mut config: Value = serde_json::from_str(CONFIG).expect("the fixture is JSON");
        changes.iter().for_each(|(key, value)| config[*key] = value.clone());
        let text = config.to_string();
        let _ = GenerationConfig::from_json("generation_config.json", &text);
        if let Ok(config) = Config::from_json("config.json", &text) {
            prop_assert!(config.num_attention_heads.is_multiple_of(config.num_key_value_heads));
            prop_assert!(config.head_dim.is_multiple_of(2) && config.head_dim > 0);
            prop_assert!(config.max_context() > 0 && config.rms_norm_eps > 0.0);
            // What the bounds guarantee: the largest number that a plan computes does not overflow.
            let kv = 8 * (config.num_key_value_heads * config.head_dim * config.num_hidden_layers) as u64;
            prop_assert!(kv.checked_mul(config.max_context() as u64).is_some());
            prop_assert!(config.num_parameters().checked_mul(4).is_some());
            if config.head_dim < 4096 {
                let mut row = vec![0.0; config.head_dim];
                Rope::new(&config).cos_sin(config.max_context() - 1, &mut row);
                prop_assert!(row.iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn mutated_configs_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        if let Ok(text) = String::from_utf8(mutate(CONFIG.as_bytes(), &changes)) {
            let _ = Config::from_json("config.json", &text);
        }
    }

    #[test]
    fn an_index_names_plain_files_or_is_refused(name in "[a-z./\\\\:]{0,12}", text in ".{0,60}") {
        let path = Path::new("model.safetensors.index.json");
        let _ = Index::parse(path, &text);
        if let Ok(index) = Index::parse(path, &json!({"weight_map": {"a": name}}).to_string()) {
            for shard in index.shards() {
                let joined = Path::new("folder").join(shard);
                prop_assert_eq!(joined.parent(), Some(Path::new("folder")));
            }
        }
    }
}
