//! Shared by several test programs: the location of models, and small checkpoints generated on the fly.
#![allow(dead_code, unreachable_pub)]

#[path = "../../qwen-core/tests/common/gguf.rs"]
pub mod gguf;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use qwen::{Device, Engine, EngineOptions};
use serde_json::{Value, json};

/// The demo checkpoint of this repository.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model")
}

/// The demo checkpoint, loaded with a context that leaves room for several conversations.
pub fn demo_engine() -> Engine {
    options().batch(4).load(demo()).expect("the demo checkpoint loads")
}

/// The golden suite: `$QWEN_GOLDEN`, else `shared/golden` beside the repository. Prints a message if there is none.
pub fn golden() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    let folder = std::env::var_os("QWEN_GOLDEN").map_or_else(beside, PathBuf::from);
    let found = folder.join("manifest.json").exists().then_some(folder);
    if found.is_none() {
        eprintln!("SKIPPED: no golden suite (QWEN_GOLDEN)");
    }
    found
}

/// Options for small tests.
pub fn options() -> EngineOptions {
    EngineOptions::new().device(Device::Cpu).threads(2)
}

/// An unused port of this machine.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

/// A folder that is deleted when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("qwen-rs-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sizes of a checkpoint to generate.
#[derive(Clone, Copy)]
pub struct Shape {
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    pub tied: bool,
}

/// Write a bf16 checkpoint with small pseudo-random weights. `damage` may change the bytes of a tensor by its name.
pub fn write_checkpoint(folder: &Path, shape: Shape, mut damage: impl FnMut(&str, &mut [u8])) {
    let Shape { hidden, inner, layers, heads, kv_heads, vocab, tied } = shape;
    let head_dim = hidden / heads;
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": tied, "eos_token_id": vocab - 1, "bos_token_id": vocab - 2,
    });
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| shapes.insert(name, shape.to_vec());
    add("model.embed_tokens.weight".into(), &[vocab, hidden]);
    add("model.norm.weight".into(), &[hidden]);
    if !tied {
        add("lm_head.weight".into(), &[vocab, hidden]);
    }
    for layer in 0..layers {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        let kv = kv_heads * head_dim;
        add(name("input_layernorm.weight"), &[hidden]);
        add(name("post_attention_layernorm.weight"), &[hidden]);
        for (projection, rows) in [("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)] {
            add(name(&format!("self_attn.{projection}.weight")), &[rows, hidden]);
            add(name(&format!("self_attn.{projection}.bias")), &[rows]);
        }
        add(name("self_attn.o_proj.weight"), &[hidden, hidden]);
        add(name("mlp.gate_proj.weight"), &[inner, hidden]);
        add(name("mlp.up_proj.weight"), &[inner, hidden]);
        add(name("mlp.down_proj.weight"), &[hidden, inner]);
    }
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    let mut state = 1u32;
    for (name, shape) in &shapes {
        let start = data.len();
        let is_norm = name.contains("norm");
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Norms are 1; the rest is within 2^-5 of zero, with a random sign and a little mantissa.
            let bits = if is_norm { 0x3f80 } else { 0x3c00 | ((state >> 16) as u16 & 0x80ff) };
            data.extend_from_slice(&bits.to_le_bytes());
        }
        damage(name, &mut data[start..]);
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = serde_json::to_vec(&Value::Object(header)).expect("a header");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend_from_slice(&data);
    std::fs::write(folder.join("model.safetensors"), file).expect("the weights");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("the configuration");
}

/// A shape with a few hundred kilobytes of weights.
pub const SMALL: Shape = Shape { hidden: 64, inner: 128, layers: 2, heads: 2, kv_heads: 1, vocab: 300, tied: true };
