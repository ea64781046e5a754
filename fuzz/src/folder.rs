//! A model folder with one damaged file: loading and chatting give an answer or an error.

use std::path::PathBuf;
use std::sync::OnceLock;

use qwen::{Device, EngineOptions, Error, GenerateOptions};
use serde_json::{Map, Value, json};

use crate::targets::{TOKENIZER_CONFIG_JSON, TOKENIZER_JSON};

const VOCAB: usize = 384;
const HIDDEN: usize = 32;
const INNER: usize = 32;

/// The files of a one-layer model, by name.
pub(crate) fn files() -> &'static [(&'static str, Vec<u8>)] {
    static FILES: OnceLock<Vec<(&'static str, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let config = json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "torch_dtype": "bfloat16",
            "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "tie_word_embeddings": true, "eos_token_id": 352,
        });
        let generation = json!({"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": [352]});
        vec![
            ("config.json", config.to_string().into_bytes()),
            ("generation_config.json", generation.to_string().into_bytes()),
            ("tokenizer.json", TOKENIZER_JSON.to_vec()),
            ("tokenizer_config.json", TOKENIZER_CONFIG_JSON.to_vec()),
            ("model.safetensors", weights()),
        ]
    })
}

/// A safetensors file of small pseudo-random weights.
fn weights() -> Vec<u8> {
    let layer = |rest: &str| format!("model.layers.0.{rest}");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        (layer("input_layernorm.weight"), vec![HIDDEN]),
        (layer("post_attention_layernorm.weight"), vec![HIDDEN]),
        (layer("self_attn.q_proj.weight"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.q_proj.bias"), vec![HIDDEN]),
        (layer("self_attn.k_proj.weight"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.k_proj.bias"), vec![HIDDEN]),
        (layer("self_attn.v_proj.weight"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.v_proj.bias"), vec![HIDDEN]),
        (layer("self_attn.o_proj.weight"), vec![HIDDEN, HIDDEN]),
        (layer("mlp.gate_proj.weight"), vec![INNER, HIDDEN]),
        (layer("mlp.up_proj.weight"), vec![INNER, HIDDEN]),
        (layer("mlp.down_proj.weight"), vec![HIDDEN, INNER]),
    ];
    let (mut header, mut data, mut state) = (Map::new(), Vec::new(), 1_u32);
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bits = if name.contains("norm") { 0x3f80 } else { 0x3c00 | ((state >> 16) as u16 & 0x80ff) };
            data.extend_from_slice(&bits.to_le_bytes());
        }
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The first byte selects the file, the second the kind of damage, the next four the position; the rest is the new
/// data.
pub fn folder(damage: &[u8]) {
    let Some((&[file, kind, a, b, c, d], rest)) = damage.split_first_chunk::<6>() else { return };
    let folder = scratch();
    let at = u32::from_le_bytes([a, b, c, d]) as usize;
    for (i, (name, bytes)) in files().iter().enumerate() {
        let mut bytes = bytes.clone();
        if i == usize::from(file) % files().len() {
            let at = at % (bytes.len() + 1);
            match kind % 4 {
                0 => bytes = rest.to_vec(),
                1 => bytes.truncate(at),
                2 => drop(bytes.splice(at..at, rest.iter().copied())),
                _ => {
                    let end = (at + rest.len()).min(bytes.len());
                    bytes.splice(at..end, rest.iter().copied());
                }
            }
        }
        std::fs::write(folder.join(name), bytes).expect("the scratch folder takes files");
    }
    let options = EngineOptions::new().device(Device::Cpu).threads(1).context(256).memory_budget(64 << 20);
    let Ok(engine) = options.load(folder) else { return };
    let mut chat = engine.chat().options(GenerateOptions::new().max_new_tokens(3));
    for result in [chat.send("Hello").and_then(|reply| reply.text()), chat.send("More").and_then(|reply| reply.text())]
    {
        if let Err(Error::Model(error)) = result {
            // The engine's thread ends only by a panic.
            assert!(!matches!(error, qwen::core::Error::EngineStopped { .. }), "{error}");
        }
    }
}

/// A folder of this process.
fn scratch() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("qwen-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        folder
    })
}
