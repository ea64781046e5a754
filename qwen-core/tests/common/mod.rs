//! Shared by this crate's integration tests: the location of the goldens, a temporary folder, and small checkpoints
//! generated on the fly.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

pub mod gguf;
pub mod packer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The golden suite: `$QWEN_GOLDEN`, else `shared/golden` beside the workspace or above. Says so loudly if there is none.
pub fn golden() -> Option<PathBuf> {
    let beside = || {
        let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared/golden"));
        folders.find(|folder| folder.exists())
    };
    let folder = std::env::var_os("QWEN_GOLDEN").map(PathBuf::from).or_else(beside);
    if let Some(folder) = &folder
        && folder.join("manifest.json").exists()
    {
        return Some(folder.clone());
    }
    eprintln!("NO GOLDEN SUITE (QWEN_GOLDEN, ../shared/golden): found {folder:?}. Only the small fixtures are tested.");
    None
}

/// An empty folder that is removed when dropped.
pub struct TempFolder(PathBuf);

impl TempFolder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("qwen-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a temporary folder");
        TempFolder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn with(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.0.join(name), content).expect("a temporary file");
        self
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// The bytes of a safetensors file with this header and as many bytes of data, counting up.
pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..data).map(|i| i as u8));
    file
}

/// The bytes of a safetensors file of these tensors: name, element type, shape and data of each.
pub fn safetensors_of(tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let mut file = safetensors(&serde_json::Value::Object(header).to_string(), 0);
    file.extend(data);
    file
}

/// Every tensor of a model by its published name, with its shape.
pub fn tensors_of(config: &qwen_core::Config) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let mut expected: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
    if !config.tie_word_embeddings {
        expected.push(("lm_head.weight".into(), vec![vocab, hidden]));
    }
    for layer in 0..config.num_hidden_layers {
        for (tensor, shape) in [
            ("input_layernorm.weight", vec![hidden]),
            ("self_attn.q_proj.weight", vec![q, hidden]),
            ("self_attn.q_proj.bias", vec![q]),
            ("self_attn.k_proj.weight", vec![kv, hidden]),
            ("self_attn.k_proj.bias", vec![kv]),
            ("self_attn.v_proj.weight", vec![kv, hidden]),
            ("self_attn.v_proj.bias", vec![kv]),
            ("self_attn.o_proj.weight", vec![hidden, q]),
            ("post_attention_layernorm.weight", vec![hidden]),
            ("mlp.gate_proj.weight", vec![inner, hidden]),
            ("mlp.up_proj.weight", vec![inner, hidden]),
            ("mlp.down_proj.weight", vec![hidden, inner]),
        ] {
            expected.push((format!("model.layers.{layer}.{tensor}"), shape));
        }
    }
    expected
}
