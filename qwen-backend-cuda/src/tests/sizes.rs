//! Sizes that overflow: every call that takes a size returns a typed error, and never a small array.

use std::sync::Arc;

use qwen_core::backend::Limits;
use qwen_core::backend::{
    Add, Argmax, Backend, Embed, GateUpSilu, GatherRows, HeadLayout, KvSpec, Linear, LinearAdd, MatrixPart, ModelShape,
    PagedAttention, QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepInputs, StepKey, StoreKv, WeightRole, WeightView,
};
use qwen_core::{Encoding, Error, Result};

use crate::backend::CudaBackend;
use crate::driver::recording::RecordingDriver;
use crate::options::CudaOptions;

/// On 64 bits 2^53, 2^60 and the largest number; their products with element and block sizes overflow.
const EXTREMES: [usize; 5] =
    [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), 1 << (usize::BITS - 1), usize::MAX - 15, usize::MAX];

const HEADS: HeadLayout = HeadLayout { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64 };

fn backend() -> (RecordingDriver, CudaBackend) {
    let driver = RecordingDriver::new((9, 0));
    (driver.clone(), CudaBackend::on(Arc::new(driver), &CudaOptions::new()))
}

fn kv_spec() -> KvSpec {
    KvSpec {
        key_encodings: vec![Encoding::F16],
        value_encoding: Encoding::F16,
        num_blocks: 4,
        block_size: 16,
        num_key_value_heads: HEADS.num_key_value_heads,
        head_dim: HEADS.head_dim,
    }
}

/// Assert that the call is refused, and that nothing is allocated for it.
fn refused<T>(driver: &RecordingDriver, what: &str, call: impl FnOnce() -> Result<T>) {
    let before = driver.calls().live_bytes();
    match call() {
        Ok(_) => panic!("{what} was accepted"),
        Err(
            Error::InvalidArgument { .. }
            | Error::Unsupported { .. }
            | Error::OutOfMemory { .. }
            | Error::Device { .. },
        ) => {}
        Err(error) => panic!("{what}: {error:?}"),
    }
    assert_eq!(driver.calls().live_bytes(), before, "{what}");
}

#[test]
fn memory_of_extreme_sizes_is_refused() {
    let (driver, mut b) = backend();
    let limits = Limits {
        max_model_len: 64,
        max_num_batched_tokens: 8,
        max_num_seqs: 2,
        max_num_logits: 8,
        block_size: 16,
        num_blocks: 4,
        vocab_size: 100,
        num_token_ids: 100,
    };
    let shape = ModelShape { hidden_size: 256, intermediate_size: 512, vocab_size: 100, heads: HEADS };
    for size in EXTREMES {
        refused(&driver, &format!("alloc({size})"), || b.alloc(size));
        refused(&driver, &format!("alloc_indices({size})"), || b.alloc_indices(size));
        for spec in [
            KvSpec { num_blocks: size, ..kv_spec() },
            KvSpec { block_size: size, ..kv_spec() },
            KvSpec { num_key_value_heads: size, ..kv_spec() },
            KvSpec { head_dim: size, ..kv_spec() },
        ] {
            refused(&driver, &format!("{spec:?}"), || b.kv(&spec));
            assert!(b.footprint().kv_bytes(&spec).is_err(), "{spec:?}");
        }
        for (rows, cols) in [(size, 64), (64, size), (size, size), (size, 0), (0, size)] {
            let mut part = MatrixPart::strided(Encoding::Bf16, 1, 8, 0, &[0; 64]).unwrap();
            (part.rows, part.cols) = (rows, cols);
            let view = WeightView { name: "w", role: WeightRole::Linear, parts: &[part] };
            refused(&driver, &format!("a matrix of {rows} x {cols}"), || b.load(&view));
        }
        for limits in [
            Limits { max_num_batched_tokens: size, ..limits.clone() },
            Limits { max_num_logits: size, ..limits.clone() },
        ] {
            refused(&driver, &format!("{limits:?}"), || b.prepare(&limits, &shape));
            assert!(b.footprint().workspace_bytes(&limits, &shape).is_err(), "{limits:?}");
        }
        let wide = ModelShape { intermediate_size: size, ..shape };
        refused(&driver, &format!("{wide:?}"), || b.prepare(&limits, &wide));
    }
}

#[test]
fn operations_of_extreme_sizes_are_refused() {
    let (driver, mut b) = backend();
    let (x, mut out) = (b.alloc(4096).unwrap(), b.alloc(4096).unwrap());
    let (ids, mut found) = (b.alloc_indices(64).unwrap(), b.alloc_indices(64).unwrap());
    let bytes = vec![0; 2 * 512 * 8];
    let part = |rows| [MatrixPart::whole(Encoding::Bf16, rows, 8, &bytes).unwrap()];
    let mut load = |rows| b.load(&WeightView { name: "w", role: WeightRole::Linear, parts: &part(rows) }).unwrap();
    let (w, w_qkv) = (load(16), load(HEADS.qkv_size()));
    let mut kv = b.kv(&kv_spec()).unwrap();
    let mut inputs = StepInputs::<CudaBackend> {
        input_ids: b.alloc_indices(64).unwrap(),
        cos_sin: b.alloc(4096).unwrap(),
        slot_mapping: b.alloc_indices(64).unwrap(),
        cu_seqlens_q: b.alloc_indices(65).unwrap(),
        context_lens: b.alloc_indices(64).unwrap(),
        block_tables: b.alloc_indices(64).unwrap(),
        max_blocks_per_seq: 4,
        logits_indices: b.alloc_indices(64).unwrap(),
    };
    let mut scratch = b.alloc(64).unwrap();
    let (eps, heads, layer) = (1e-6, HEADS, 0);
    for rows in EXTREMES {
        let (x, ids, w) = (&x, &ids, &w);
        refused(&driver, "embed", || b.embed(Embed { ids, table: w, out: &mut out, rows }));
        refused(&driver, "linear", || b.linear(Linear { x, w, bias: None, out: &mut out, rows }));
        for (hidden_size, rows) in [(8, rows), (rows, 8)] {
            refused(&driver, "rms_norm", || {
                b.rms_norm(RmsNorm { x, weight: x, eps, hidden_size, out: &mut out, rows })
            });
            let silu = SiluAndMul { gate_up: x, out: &mut out, intermediate_size: hidden_size, rows };
            refused(&driver, "silu_and_mul", || b.silu_and_mul(silu));
            let gather = GatherRows { x, indices: ids, out: &mut out, width: hidden_size, rows };
            refused(&driver, "gather_rows", || b.gather_rows(gather));
            let argmax = Argmax { x, out: &mut found, width: hidden_size, valid: hidden_size, rows };
            refused(&driver, "argmax", || b.argmax(argmax));
        }
        refused(&driver, "rope", || b.rope(Rope { qkv: &mut out, cos_sin: x, heads, rows }));
        let slot_mapping = &inputs.slot_mapping;
        refused(&driver, "store_kv", || b.store_kv(StoreKv { qkv: x, slot_mapping, kv: &mut kv, layer, heads, rows }));
        refused(&driver, "add", || b.add(Add { x: &mut out, y: x, len: rows }));
        refused(&driver, "linear_add", || {
            let (residual, scratch) = (&mut out, &mut scratch);
            b.linear_add(LinearAdd { x, w, group: None, scratch, residual, hidden_size: 16, rows })
        });
        refused(&driver, "gate_up_silu", || {
            let (out, scratch) = (&mut out, &mut scratch);
            b.gate_up_silu(GateUpSilu { norm: None, x, w, scratch, out, intermediate_size: 8, rows })
        });
        refused(&driver, "qkv_rope_store", || {
            let (w, bias, inputs, qkv, kv) = (&w_qkv, x, &inputs, &mut out, &mut kv);
            b.qkv_rope_store(QkvRopeStore { norm: None, x, w, bias, inputs, heads, qkv, kv, layer, rows })
        });
        for heads in [
            HeadLayout { num_attention_heads: rows, ..HEADS },
            HeadLayout { num_attention_heads: rows, num_key_value_heads: rows, ..HEADS },
            HeadLayout { head_dim: rows, ..HEADS },
        ] {
            refused(&driver, "rope", || b.rope(Rope { qkv: &mut out, cos_sin: x, heads, rows: 1 }));
        }
        let key =
            StepKey { num_tokens: 2, num_seqs: 2, num_logits: 2, max_seqlen_q: 1, hidden: false, adapters: false };
        for key in [
            StepKey { num_tokens: rows, ..key },
            StepKey { num_seqs: rows, ..key },
            StepKey { num_tokens: rows, max_seqlen_q: rows, ..key },
            StepKey { num_seqs: rows, max_seqlen_q: 2, ..key },
        ] {
            let (qkv, kv, inputs, out) = (x, &kv, &inputs, &mut out);
            refused(&driver, "paged_attention", || {
                b.paged_attention(PagedAttention { qkv, kv, layer, heads, inputs, out, key })
            });
        }
        let held = std::mem::replace(&mut inputs.max_blocks_per_seq, rows);
        let (qkv, kv, out) = (x, &kv, &mut out);
        refused(&driver, "paged_attention", || {
            b.paged_attention(PagedAttention { qkv, kv, layer, heads, inputs: &inputs, out, key })
        });
        inputs.max_blocks_per_seq = held;
    }
    assert!(driver.calls().launched.is_empty());
}
