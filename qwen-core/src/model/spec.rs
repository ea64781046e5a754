//! The shape of a model, or of one rank's or stage's part of it, and the list of its weights.
//!
//! Loading and planning both walk this list, so that what is planned is what is loaded.

use std::ops::Range;

use super::source::WeightSource;
use crate::backend::collective::Shard;
use crate::backend::{HeadLayout, ModelShape, WeightRole, WeightShape};
use crate::checkpoint::config::Config;
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// The part of a model that one backend holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP, of this rank.
    pub intermediate_size: usize,
    /// Heads of this rank.
    pub heads: HeadLayout,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f32,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Layers of the whole model.
    pub num_hidden_layers: usize,
    /// Layers of this stage.
    pub layers: Range<usize>,
    /// This rank.
    pub shard: Shard,
    /// How K/V is stored; `None` for the default of the precision.
    pub(crate) kv_encoding: Option<Encoding>,
    head: bool,
    whole: Whole,
}

/// The sizes of the whole model.
#[derive(Debug, Clone, PartialEq)]
struct Whole {
    intermediate_size: usize,
    heads: HeadLayout,
}

/// A rectangle of a stored matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// Its whole shape.
    pub shape: (usize, usize),
    /// The rows to take.
    pub rows: Range<usize>,
    /// The columns to take.
    pub cols: Range<usize>,
}

/// A matrix of the model: cuts of stored ones, stacked by rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Its name for errors.
    pub name: String,
    /// What it is for.
    pub role: WeightRole,
    /// Its parts, top to bottom.
    pub cuts: Vec<Cut>,
}

impl WeightSpec {
    /// The shape from which a backend computes how many bytes it takes.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the source lacks a part; [`Error::Unsupported`] when a part ends in the middle of
    /// a block.
    pub fn shape(&self, source: &dyn WeightSource) -> Result<WeightShape> {
        let part = |cut: &Cut| {
            let encoding = source.encoding(&cut.tensor)?;
            let block = encoding.block();
            if block.byte_range(cut.cols.clone()).is_none() {
                let what = format!("columns {:?} of `{}` in {encoding}", cut.cols, cut.tensor);
                let reason = format!(
                    "ranks split only at whole blocks of {} columns: use another number of ranks",
                    block.values
                );
                return Err(Error::unsupported(what, reason));
            }
            Ok((encoding, cut.rows.len()))
        };
        let parts = self.cuts.iter().map(part).collect::<Result<_>>()?;
        Ok(WeightShape { role: self.role, parts, cols: self.cuts.first().map_or(0, |cut| cut.cols.len()) })
    }
}

impl WeightSpec {
    /// Bytes of the tables of columns that are stored in another order, four a column: a table for adjacent parts that
    /// are stored alike. They take memory beside the shape's own.
    ///
    /// # Errors
    /// As [`WeightSource::column_order`].
    pub fn column_order_bytes(&self, source: &dyn WeightSource) -> Result<u64> {
        let stored = |cut: &Cut| Ok((source.encoding(&cut.tensor)?, source.column_order(&cut.tensor)?));
        let mut parts = self.cuts.iter().map(stored).collect::<Result<Vec<_>>>()?;
        parts.dedup();
        let columns = parts.into_iter().filter_map(|(_, order)| order).map(|order| order.len() as u64);
        Ok(columns.map(|columns| columns.saturating_mul(4)).fold(0, u64::saturating_add))
    }
}

impl ModelSpec {
    /// The encodings that K/V can be stored in: 32, 16 and 8.5 bits per value.
    pub const KV_ENCODINGS: [Encoding; 3] = [Encoding::F32, Encoding::F16, Encoding::Q8_0];

    /// The sizes of this part that determine how much memory a step needs on a device.
    pub fn shape(&self) -> ModelShape {
        let ModelSpec { hidden_size, intermediate_size, vocab_size, heads, .. } = *self;
        ModelShape { hidden_size, intermediate_size, vocab_size, heads }
    }

    /// The whole model.
    pub fn new(config: &Config) -> Self {
        let heads = HeadLayout {
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        ModelSpec {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            heads,
            vocab_size: config.vocab_size,
            rms_norm_eps: config.rms_norm_eps,
            tie_word_embeddings: config.tie_word_embeddings,
            num_hidden_layers: config.num_hidden_layers,
            layers: 0..config.num_hidden_layers,
            shard: Shard::WHOLE,
            kv_encoding: None,
            head: true,
            whole: Whole { intermediate_size: config.intermediate_size, heads },
        }
    }

    /// The part of `shard`: its share of the heads and of the MLP's inner width. If there are fewer K/V heads than
    /// ranks, several ranks hold the same one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the ranks do not divide the heads or the inner width.
    pub fn shard(mut self, shard: Shard) -> Result<Self> {
        let Shard { rank, world_size: ranks } = shard;
        let HeadLayout { num_attention_heads, num_key_value_heads, .. } = self.whole.heads;
        if rank >= ranks || !self.divides(ranks) {
            let works: Vec<String> = self.rank_counts().map(|ranks| ranks.to_string()).collect();
            return Err(Error::argument(
                "ranks",
                format!(
                    "rank {rank} of {ranks}: {num_attention_heads} heads, {num_key_value_heads} K/V heads and an inner \
                     width of {} can be cut over this many ranks: {}",
                    self.whole.intermediate_size,
                    works.join(", ")
                ),
            ));
        }
        self.shard = shard;
        self.intermediate_size = self.whole.intermediate_size / ranks;
        self.heads.num_attention_heads = num_attention_heads / ranks;
        self.heads.num_key_value_heads = (num_key_value_heads / ranks).max(1);
        Ok(self)
    }

    /// The numbers of ranks that the model can be split over: those that divide the heads and the MLP's inner width,
    /// and that divide the K/V heads or are a multiple of them.
    ///
    /// ```
    /// # let config = qwen_core::Config::from_json("config.json", r#"{
    /// #     "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    /// #     "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-06,
    /// #     "max_position_embeddings": 32768, "rope_theta": 1000000.0, "tie_word_embeddings": false }"#)?;
    /// // Qwen2.5-7B: 28 heads, 4 K/V heads.
    /// let spec = qwen_core::model::spec::ModelSpec::new(&config);
    /// assert_eq!(spec.rank_counts().collect::<Vec<_>>(), [1, 2, 4]);
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    pub fn rank_counts(&self) -> impl Iterator<Item = usize> + '_ {
        (1..=self.whole.heads.num_attention_heads).filter(|ranks| self.divides(*ranks))
    }

    fn divides(&self, ranks: usize) -> bool {
        let HeadLayout { num_attention_heads, num_key_value_heads, .. } = self.whole.heads;
        ranks > 0
            && num_attention_heads.is_multiple_of(ranks)
            && (num_key_value_heads.is_multiple_of(ranks) || ranks.is_multiple_of(num_key_value_heads))
            && self.whole.intermediate_size.is_multiple_of(ranks)
    }

    /// Store K/V in `encoding`, one of [`ModelSpec::KV_ENCODINGS`], instead of the default of the precision
    /// ([`crate::Precision::kv_encoding`]). Keys keep more bits where their biases need them ([`ModelSpec::kv`]).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for other encodings, and if heads are not whole blocks.
    pub fn with_kv_encoding(mut self, encoding: Encoding) -> Result<Self> {
        if !Self::KV_ENCODINGS.contains(&encoding) {
            let names = Self::KV_ENCODINGS.map(|encoding| encoding.to_string()).join(", ");
            return Err(Error::argument("kv_encoding", format!("must be one of {names}, is {encoding}")));
        }
        let block = encoding.block().values;
        if !self.heads.head_dim.is_multiple_of(block) {
            let heads = format!("{encoding} has blocks of {block}, the model heads of {} values", self.heads.head_dim);
            return Err(Error::argument("kv_encoding", format!("{heads}: take F16")));
        }
        self.kv_encoding = Some(encoding);
        Ok(self)
    }

    /// The part without its output head: for ranks whose logits nobody reads.
    pub fn without_head(mut self) -> Self {
        self.head = false;
        self
    }

    /// The stage of the layers `layers`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when these layers do not exist.
    pub fn stage(mut self, layers: Range<usize>) -> Result<Self> {
        if layers.is_empty() || layers.end > self.num_hidden_layers {
            return Err(Error::argument("layers", format!("{layers:?} of {} layers", self.num_hidden_layers)));
        }
        self.layers = layers;
        Ok(self)
    }

    /// Whether this stage begins with the embedding.
    pub fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether this stage ends with the output head.
    pub fn is_last(&self) -> bool {
        self.layers.end == self.num_hidden_layers
    }

    /// Whether this part computes logits.
    pub fn has_head(&self) -> bool {
        self.head && self.is_last()
    }

    /// `0..size` cut to this rank's equal share.
    fn share(&self, size: usize) -> Range<usize> {
        let len = size / self.shard.world_size;
        self.shard.rank * len..(self.shard.rank + 1) * len
    }

    /// The rows of this rank's K/V heads.
    fn kv_rows(&self) -> Range<usize> {
        let first = self.shard.rank * self.whole.heads.num_key_value_heads / self.shard.world_size;
        first * self.heads.head_dim..(first + self.heads.num_key_value_heads) * self.heads.head_dim
    }

    /// Whether this part holds the embedding table: as such, or as the output head.
    pub fn has_embeddings(&self) -> bool {
        self.is_first() || (self.has_head() && self.tie_word_embeddings)
    }

    /// The embedding table, also the output head of a tied model.
    pub fn embed_tokens(&self) -> WeightSpec {
        self.table("model.embed_tokens.weight")
    }

    /// The output head of an untied model.
    pub fn lm_head(&self) -> WeightSpec {
        self.table("lm_head.weight")
    }

    fn table(&self, tensor: &str) -> WeightSpec {
        let (rows, cols) = (self.vocab_size, self.hidden_size);
        let cuts = vec![Cut { tensor: tensor.into(), shape: (rows, cols), rows: 0..rows, cols: 0..cols }];
        let role = if tensor == "lm_head.weight" { WeightRole::Linear } else { WeightRole::Embedding };
        WeightSpec { name: tensor.into(), role, cuts }
    }

    /// The query, key and value projections of a layer.
    pub fn qkv_proj(&self, layer: usize) -> WeightSpec {
        let hidden = self.hidden_size;
        let projection = |name: &str, all: usize, rows: Range<usize>| Cut {
            tensor: format!("model.layers.{layer}.self_attn.{name}.weight"),
            shape: (all, hidden),
            rows,
            cols: 0..hidden,
        };
        let (q, kv) = (self.whole.heads.q_size(), self.whole.heads.kv_size());
        WeightSpec {
            name: format!("model.layers.{layer}.self_attn.qkv_proj"),
            role: WeightRole::Qkv,
            cuts: vec![
                projection("q_proj", q, self.share(q)),
                projection("k_proj", kv, self.kv_rows()),
                projection("v_proj", kv, self.kv_rows()),
            ],
        }
    }

    /// The biases of the query, key and value projections: tensor, whole length, rows to take.
    pub fn qkv_bias(&self, layer: usize) -> [(String, usize, Range<usize>); 3] {
        let bias = |name: &str| format!("model.layers.{layer}.self_attn.{name}.bias");
        let (q, kv) = (self.whole.heads.q_size(), self.whole.heads.kv_size());
        [(bias("q_proj"), q, self.share(q)), (bias("k_proj"), kv, self.kv_rows()), (bias("v_proj"), kv, self.kv_rows())]
    }

    /// The output projection of a layer's attention.
    pub fn o_proj(&self, layer: usize) -> WeightSpec {
        self.by_columns(format!("model.layers.{layer}.self_attn.o_proj.weight"), self.whole.heads.q_size())
    }

    /// The gate and up projections of a layer.
    pub fn gate_up_proj(&self, layer: usize) -> WeightSpec {
        let (inner, hidden) = (self.whole.intermediate_size, self.hidden_size);
        let projection = |name: &str| Cut {
            tensor: format!("model.layers.{layer}.mlp.{name}.weight"),
            shape: (inner, hidden),
            rows: self.share(inner),
            cols: 0..hidden,
        };
        WeightSpec {
            name: format!("model.layers.{layer}.mlp.gate_up_proj"),
            role: WeightRole::GateUp,
            cuts: vec![projection("gate_proj"), projection("up_proj")],
        }
    }

    /// The down projection of a layer.
    pub fn down_proj(&self, layer: usize) -> WeightSpec {
        self.by_columns(format!("model.layers.{layer}.mlp.down_proj.weight"), self.whole.intermediate_size)
    }

    fn by_columns(&self, tensor: String, cols: usize) -> WeightSpec {
        let hidden = self.hidden_size;
        let cut = Cut { tensor: tensor.clone(), shape: (hidden, cols), rows: 0..hidden, cols: self.share(cols) };
        WeightSpec { name: tensor, role: WeightRole::Linear, cuts: vec![cut] }
    }

    /// The norm before a layer's attention.
    pub fn input_layernorm(&self, layer: usize) -> String {
        format!("model.layers.{layer}.input_layernorm.weight")
    }

    /// The norm before a layer's MLP.
    pub fn post_attention_layernorm(&self, layer: usize) -> String {
        format!("model.layers.{layer}.post_attention_layernorm.weight")
    }

    /// The norm before the output head.
    pub fn norm(&self) -> &'static str {
        "model.norm.weight"
    }

    /// All matrices of this part.
    pub fn weights(&self) -> Vec<WeightSpec> {
        let mut weights = Vec::new();
        if self.has_embeddings() {
            weights.push(self.embed_tokens());
        }
        for layer in self.layers.clone() {
            weights.extend([self.qkv_proj(layer), self.o_proj(layer), self.gate_up_proj(layer), self.down_proj(layer)]);
        }
        if self.has_head() && !self.tie_word_embeddings {
            weights.push(self.lm_head());
        }
        weights
    }

    /// Bytes of the matrices of this part, as the source stores them.
    ///
    /// # Errors
    /// As [`WeightSpec::shape`].
    pub fn stored_bytes(&self, source: &dyn WeightSource) -> Result<u64> {
        let bytes = |weight: &WeightSpec| weight.shape(source)?.stored_bytes();
        self.weights().iter().try_fold(0u64, |sum, weight| Ok(sum.saturating_add(bytes(weight)?)))
    }

    /// Bytes of the norms and biases, which are kept in f32.
    pub fn vector_bytes(&self) -> u64 {
        let layer = 2 * self.hidden_size + self.heads.qkv_size();
        4 * (self.layers.len() * layer + if self.has_head() { self.hidden_size } else { 0 }) as u64
    }
}
