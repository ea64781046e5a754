//! Small models with random weights, in memory.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::random::{Rng, encode};
use qwen_core::Encoding;
use qwen_core::backend::MatrixPart;
use qwen_core::checkpoint::config::Config;
use qwen_core::error::{Error, Result};
use qwen_core::model::source::WeightSource;

/// The sizes of a random model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; the residual stream is as wide as all query heads.
    pub head_dim: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Whether the output head is the embedding table.
    pub tied: bool,
    /// How the matrices are stored.
    pub encoding: Encoding,
}

/// Rows of the embedding table of random models.
pub(super) const VOCAB: usize = 288;

/// Ids below this are tokens, the others padding of the table.
pub(super) const TOKEN_IDS: usize = 271;

/// The geometries that most cases run.
pub const GEOMETRIES: [Geometry; 3] = [
    // The 0.5B kind: tied, heads of 64.
    geometry(3, (4, 2, 64), 176, true, Encoding::Bf16),
    // The kind of the larger ones: untied, heads of 128; F16 as in many GGUF files.
    geometry(2, (2, 1, 128), 100, false, Encoding::F16),
    // Seven query heads share one K/V head, as in 0.5B and 7B.
    geometry(2, (7, 1, 64), 60, true, Encoding::F32),
];

const fn geometry(
    layers: usize,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    intermediate_size: usize,
    tied: bool,
    encoding: Encoding,
) -> Geometry {
    Geometry { layers, heads, kv_heads, head_dim, intermediate_size, tied, encoding }
}

/// A model's configuration and tensors.
#[derive(Debug)]
pub struct RandomModel {
    /// What its `config.json` would say.
    pub config: Config,
    tensors: HashMap<String, Tensor>,
}

#[derive(Debug)]
struct Tensor {
    encoding: Encoding,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl RandomModel {
    /// The model of a geometry, always with the same weights.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when there is no such model.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let Geometry { layers, heads, kv_heads, head_dim, intermediate_size, tied, encoding } = geometry;
        let hidden_size = heads * head_dim;
        let json = format!(
            r#"{{"model_type": "qwen2", "hidden_size": {hidden_size}, "intermediate_size": {intermediate_size},
            "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
            "vocab_size": {VOCAB}, "rms_norm_eps": 1e-06, "max_position_embeddings": 4096, "rope_theta": 1000000.0,
            "tie_word_embeddings": {tied}}}"#
        );
        let config = Config::from_json("config.json", &json)?;
        let mut model = RandomModel { config, tensors: HashMap::new() };
        model.add_matrix("model.embed_tokens.weight", encoding, VOCAB, hidden_size, 1.0);
        for layer in 0..layers {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}");
            let (q, kv) = (heads * head_dim, kv_heads * head_dim);
            for (projection, rows, cols) in [
                ("self_attn.q_proj", q, hidden_size),
                ("self_attn.k_proj", kv, hidden_size),
                ("self_attn.v_proj", kv, hidden_size),
                ("self_attn.o_proj", hidden_size, q),
                ("mlp.gate_proj", intermediate_size, hidden_size),
                ("mlp.up_proj", intermediate_size, hidden_size),
                ("mlp.down_proj", hidden_size, intermediate_size),
            ] {
                model.add_matrix(
                    &name(&format!("{projection}.weight")),
                    encoding,
                    rows,
                    cols,
                    (cols as f32).powf(-0.5),
                );
            }
            for (projection, len) in [("q", q), ("k", kv), ("v", kv)] {
                model.add_vector(&name(&format!("self_attn.{projection}_proj.bias")), len, 0.0, 0.5);
            }
            model.add_vector(&name("input_layernorm.weight"), hidden_size, 1.0, 0.2);
            model.add_vector(&name("post_attention_layernorm.weight"), hidden_size, 1.0, 0.2);
        }
        model.add_vector("model.norm.weight", hidden_size, 1.0, 0.2);
        if !tied {
            model.add_matrix("lm_head.weight", encoding, VOCAB, hidden_size, (hidden_size as f32).powf(-0.5));
        }
        Ok(model)
    }

    /// Put a NaN into row `row` of a tensor; vectors have one value per row.
    ///
    /// # Panics
    /// When there is no such tensor.
    pub fn damage(&mut self, name: &str, row: usize) {
        let tensor = self.tensors.get_mut(name).expect("the tensor exists");
        let at = tensor.encoding.bytes(row * tensor.cols);
        let nan = encode(tensor.encoding, &[f32::NAN]);
        tensor.bytes[at..at + nan.len()].copy_from_slice(&nan);
    }

    fn add_matrix(&mut self, name: &str, encoding: Encoding, rows: usize, cols: usize, scale: f32) {
        let mut values = Rng::of(&[40, self.tensors.len() as u64]).normals(rows * cols, scale);
        if rows == VOCAB {
            // Make padding ids likely winners, if they are not masked.
            values[TOKEN_IDS * cols..].iter_mut().for_each(|value| *value *= 3.0);
        }
        let bytes = encode(encoding, &values);
        self.tensors.insert(name.into(), Tensor { encoding, rows, cols, bytes });
    }

    fn add_vector(&mut self, name: &str, len: usize, mean: f32, scale: f32) {
        let values = Rng::of(&[41, self.tensors.len() as u64]).normals(len, scale);
        let values: Vec<f32> = values.iter().map(|value| mean + value).collect();
        let bytes = encode(Encoding::F32, &values);
        self.tensors.insert(name.into(), Tensor { encoding: Encoding::F32, rows: len, cols: 1, bytes });
    }

    fn tensor(&self, name: &str, rows: usize, cols: usize) -> Result<&Tensor> {
        let path = || PathBuf::from("random model");
        let missing = || Error::MissingTensor { name: name.into(), path: path(), instead: String::new() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        if (tensor.rows, tensor.cols) != (rows, cols) {
            return Err(Error::InvalidTensor {
                name: name.into(),
                path: path(),
                expected: format!("[{rows}, {cols}]"),
                found: format!("[{}, {}]", tensor.rows, tensor.cols),
            });
        }
        Ok(tensor)
    }
}

impl WeightSource for RandomModel {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        let tensor = self.tensor(name, rows, cols)?;
        MatrixPart::whole(tensor.encoding, rows, cols, &tensor.bytes)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, len, 1)?;
        let mut values = vec![0.0; len];
        tensor.encoding.decode_row(&tensor.bytes, &mut values);
        Ok(values)
    }

    fn encoding(&self, name: &str) -> Result<Encoding> {
        let missing =
            || Error::MissingTensor { name: name.into(), path: "random model".into(), instead: String::new() };
        self.tensors.get(name).map(|tensor| tensor.encoding).ok_or_else(missing)
    }
}
