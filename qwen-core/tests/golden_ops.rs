//! The reference backend against recorded float64 results of single operations.

mod common;

use qwen_core::backend::reference::Reference;
use qwen_core::backend::{HeadLayout, KvSpec, PagedAttention, RmsNorm, Rope, SiluAndMul, StepInputs, StepKey, StoreKv};
use qwen_core::{Backend, Encoding};
use safetensors::SafeTensors;

/// The reference rounds its results to f32 once, by at most half a unit in the last place.
const ROUNDING: f64 = 1.0 / 16_777_216.0;

struct Vectors(Vec<u8>);

impl Vectors {
    /// The recorded vectors, if this machine has the suite.
    fn open() -> Option<Self> {
        let golden = common::golden()?;
        Some(Vectors(std::fs::read(golden.join("ops.safetensors")).expect("ops.safetensors")))
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file").tensor(name).expect(name).shape().to_vec()
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let bytes = file.tensor(name).expect(name).data().to_vec();
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let bytes = file.tensor(name).expect(name).data().to_vec();
        bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
    }

    fn i64s(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let bytes = file.tensor(name).expect(name).data().to_vec();
        bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    }
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[track_caller]
fn assert_near(what: &str, got: &[f32], expected: &[f64], limit: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let error =
        rms(got.iter().zip(expected).map(|(got, expected)| f64::from(*got) - expected)) / rms(expected.iter().copied());
    assert!(error <= limit, "{what}: relative RMS error {error:e}, allowed {limit:e}");
}

#[test]
fn rms_norm() {
    let Some(vectors) = Vectors::open() else { return };
    for case in ["plain", "outlier", "tiny"] {
        let name = |part: &str| format!("rmsnorm.{case}.{part}");
        let (x, weight, shape) = (vectors.f32s(&name("x")), vectors.f32s(&name("weight")), vectors.shape(&name("x")));
        let mut out = vec![0.0; x.len()];
        let eps = vectors.f64s(&name("eps"))[0] as f32;
        Reference::new()
            .rms_norm(RmsNorm { x: &x, weight: &weight, eps, out: &mut out, hidden_size: shape[1], rows: shape[0] })
            .expect("rms_norm");
        // The recorded epsilon is a double, ours a single.
        assert_near(&name("y"), &out, &vectors.f64s(&name("y")), 2.0 * ROUNDING);
    }
}

#[test]
fn silu_and_mul() {
    let Some(vectors) = Vectors::open() else { return };
    let (gate, up, shape) = (vectors.f32s("swiglu.gate"), vectors.f32s("swiglu.up"), vectors.shape("swiglu.gate"));
    let rows = gate.chunks_exact(shape[1]).zip(up.chunks_exact(shape[1]));
    let gate_up: Vec<f32> = rows.flat_map(|(gate, up)| [gate, up].concat()).collect();
    let mut out = vec![0.0; gate.len()];
    Reference::new()
        .silu_and_mul(SiluAndMul { gate_up: &gate_up, out: &mut out, intermediate_size: shape[1], rows: shape[0] })
        .expect("silu_and_mul");
    assert_near("swiglu.y", &out, &vectors.f64s("swiglu.y"), ROUNDING);
}

#[test]
fn rope() {
    let Some(vectors) = Vectors::open() else { return };
    for head_dim in [64, 128] {
        let name = |part: &str| format!("rope.hd{head_dim}.{part}");
        let (x, shape) = (vectors.f32s(&name("x")), vectors.shape(&name("x")));
        let (positions, heads) = (shape[0], shape[1]);
        // Two query heads and one key head; values, which stay as they are, behind them.
        let layout = HeadLayout { num_attention_heads: heads - 1, num_key_value_heads: 1, head_dim };
        let width = heads * head_dim;
        let mut qkv: Vec<f32> = x.chunks_exact(width).flat_map(|row| [row, &[7.0; 128][..head_dim]].concat()).collect();
        let half = head_dim / 2;
        let angle = |position: i64, i: usize| position as f64 / 1e6f64.powf(i as f64 / half as f64);
        let cos_sin: Vec<f32> = vectors
            .i64s(&name("positions"))
            .iter()
            .flat_map(|position| {
                let angles = (0..half).map(|i| angle(*position, i));
                angles.clone().map(f64::cos).chain(angles.map(f64::sin)).map(|value| value as f32).collect::<Vec<_>>()
            })
            .collect();
        Reference::new().rope(Rope { qkv: &mut qkv, cos_sin: &cos_sin, heads: layout, rows: positions }).expect("rope");
        let rows = qkv.chunks_exact(width + head_dim);
        assert!(rows.clone().all(|row| row[width..].iter().all(|value| *value == 7.0)), "values were rotated");
        let rotated: Vec<f32> = rows.flat_map(|row| &row[..width]).copied().collect();
        assert_near(&name("y"), &rotated, &vectors.f64s(&name("y")), 2.0 * ROUNDING);
    }
}

/// `[head, position, d]` to rows of heads side by side.
fn by_position(values: &[f32], heads: usize, positions: usize, head_dim: usize) -> Vec<Vec<f32>> {
    let of = |position: usize| {
        (0..heads).flat_map(move |head| &values[(head * positions + position) * head_dim..][..head_dim]).copied()
    };
    (0..positions).map(|position| of(position).collect()).collect()
}

#[test]
fn paged_attention() {
    let Some(vectors) = Vectors::open() else { return };
    for case in ["prefill", "decode", "chunk", "sharp"] {
        let name = |part: &str| format!("attention.{case}.{part}");
        let [heads, tokens, head_dim] = vectors.shape(&name("q"))[..] else { panic!("q has three dimensions") };
        let [kv_heads, context, _] = vectors.shape(&name("k"))[..] else { panic!("k has three dimensions") };
        let layout = HeadLayout { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim };
        let q = by_position(&vectors.f32s(&name("q")), heads, tokens, head_dim);
        let k = by_position(&vectors.f32s(&name("k")), kv_heads, context, head_dim);
        let v = by_position(&vectors.f32s(&name("v")), kv_heads, context, head_dim);

        let mut b = Reference::new();
        let num_blocks = context.div_ceil(16);
        let encoding = Encoding::F32;
        let spec = KvSpec {
            key_encodings: vec![encoding],
            value_encoding: encoding,
            num_blocks,
            block_size: 16,
            num_key_value_heads: kv_heads,
            head_dim,
        };
        let mut kv = b.kv(&spec).expect("kv");
        // Blocks from last to first.
        let block_tables: Vec<u32> = (0..num_blocks as u32).rev().collect();
        let slots: Vec<u32> = (0..context).map(|p| block_tables[p / 16] * 16 + p as u32 % 16).collect();
        let stored: Vec<f32> = k
            .iter()
            .zip(&v)
            .flat_map(|(k, v)| [&vec![0.0; heads * head_dim], k, v].map(Vec::as_slice).concat())
            .collect();
        b.store_kv(StoreKv { qkv: &stored, slot_mapping: &slots, kv: &mut kv, layer: 0, heads: layout, rows: context })
            .expect("store_kv");
        let queries: Vec<f32> = q.iter().flat_map(|q| [&q[..], &vec![0.0; 2 * kv_heads * head_dim]].concat()).collect();
        let inputs = StepInputs {
            input_ids: Vec::new(),
            cos_sin: Vec::new(),
            slot_mapping: Vec::new(),
            cu_seqlens_q: vec![0, tokens as u32],
            context_lens: vec![context as u32],
            block_tables,
            max_blocks_per_seq: num_blocks,
            logits_indices: Vec::new(),
        };
        let key = StepKey {
            num_tokens: tokens,
            num_seqs: 1,
            num_logits: 0,
            max_seqlen_q: tokens,
            hidden: false,
            adapters: false,
        };
        let mut out = vec![0.0; tokens * heads * head_dim];
        b.paged_attention(PagedAttention {
            qkv: &queries,
            kv: &kv,
            layer: 0,
            heads: layout,
            inputs: &inputs,
            out: &mut out,
            key,
        })
        .expect("paged_attention");

        let y = vectors.f64s(&name("y"));
        let y: Vec<f64> = (0..tokens)
            .flat_map(|token| (0..heads).map(move |head| (head * tokens + token) * head_dim))
            .flat_map(|at| y[at..at + head_dim].to_vec())
            .collect();
        assert_near(&name("y"), &out, &y, ROUNDING);
    }
}
