//! Sizes at the ends of their range: each is an error, never a panic, and never a product that overflows and looks
//! small.
//!
//! An operation may report its error when it is issued or at the next wait.

use crate::compare;
use crate::rig::Rig;
use qwen_core::Encoding;
use qwen_core::backend::{
    Add, Argmax, Backend, Embed, GateUpSilu, GatherRows, HeadLayout, KvSpec, Linear, LinearAdd, MatrixPart,
    PagedAttention, QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepInputs, StepKey, StoreKv, WeightRole, WeightView,
};
use qwen_core::error::Result;

const MAX: usize = usize::MAX;
/// The product of two of these wraps to 0.
const HALF: usize = 1 << (usize::BITS / 2);
/// Elements that could be addressed, but exceed any machine's memory.
const BEYOND: usize = if usize::BITS == 64 { MAX >> 6 } else { MAX / 8 + 1 };

/// `outcome` has to be an error, at once or at the next wait.
fn refused<B: Backend, T>(rig: &mut Rig<'_, B>, what: &str, outcome: Result<T>) {
    let later = rig.b.synchronize();
    let refused = match (outcome, later) {
        (Ok(_), Ok(())) => Err("accepted".into()),
        _ => Ok(()),
    };
    rig.note(|| what.into(), refused);
}

/// The backend still works.
fn works<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let (mut x, mut y) = (rig.b.alloc(3)?, rig.b.alloc(3)?);
    rig.b.write(&mut x, &[1.0, 2.0, 3.0])?;
    rig.b.write(&mut y, &[0.5, 0.5, 0.5])?;
    rig.b.add(Add { x: &mut x, y: &y, len: 3 })?;
    let mut got = [0.0; 3];
    rig.b.read(&x, &mut got)?;
    rig.note(|| "a sum after the refusals".into(), compare::bits(&got, &[1.5, 2.5, 3.5], 3));
    Ok(())
}

fn spec() -> KvSpec {
    KvSpec {
        key_encodings: vec![Encoding::F32; 2],
        value_encoding: Encoding::F32,
        num_blocks: 2,
        block_size: 16,
        num_key_value_heads: 2,
        head_dim: 32,
    }
}

/// Buffers and K/V stores larger than any memory.
pub fn allocations<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for len in [MAX, MAX - 1, MAX / 2, MAX / 4 + 1, MAX / 4, MAX / 8 + 1, BEYOND] {
        let outcome = rig.b.alloc(len);
        refused(rig, &format!("alloc({len})"), outcome);
        let outcome = rig.b.alloc_indices(len);
        refused(rig, &format!("alloc_indices({len})"), outcome);
    }
    rig.b.kv(&spec())?;
    for spec in [
        KvSpec { num_blocks: MAX, ..spec() },
        KvSpec { num_blocks: MAX / 2 + 1, ..spec() },
        KvSpec { num_blocks: (MAX >> 11) + 1, ..spec() },
        KvSpec { num_blocks: (MAX >> 10) + 1, ..spec() },
        KvSpec { num_blocks: HALF, block_size: HALF, ..spec() },
        KvSpec { block_size: MAX - 15, ..spec() },
        KvSpec { num_key_value_heads: MAX / 2 + 1, ..spec() },
        KvSpec { num_key_value_heads: HALF, head_dim: HALF, ..spec() },
        KvSpec { head_dim: MAX, ..spec() },
        KvSpec { head_dim: MAX - 31, ..spec() },
        KvSpec { key_encodings: vec![], num_blocks: MAX, ..spec() },
    ] {
        let outcome = rig.b.kv(&spec);
        refused(rig, &format!("{spec:?}"), outcome);
    }
    works(rig)
}

/// Matrices with impossible shapes.
pub fn weights<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let data = [0u8; 64 * 4];
    let part = MatrixPart::whole(Encoding::F32, 8, 8, &data)?;
    // Rows, columns and strides beyond the data.
    let of = |rows, cols, row_bytes| {
        let mut extreme = part.clone();
        (extreme.rows, extreme.cols, extreme.row_bytes) = (rows, cols, row_bytes);
        extreme
    };
    for role in [WeightRole::Linear, WeightRole::Qkv, WeightRole::GateUp, WeightRole::Embedding] {
        for parts in [
            vec![of(2, 8, MAX)],
            vec![of(3, 8, MAX / 2 + 1)],
            vec![of(MAX, 1, 4)],
            vec![of(MAX, 0, 0)],
            vec![of(MAX / 2 + 1, 2, 8)],
            vec![of(HALF, HALF, HALF)],
            vec![of(1, MAX, MAX)],
            vec![of(1, MAX / 4 + 1, MAX)],
            vec![of(MAX / 2 + 1, 8, 32), of(MAX / 2 + 1, 8, 32)],
            vec![part.clone(), of(MAX - 7, 8, 32)],
            vec![part.clone(), of(9, 8, 32)],
        ] {
            let view = WeightView { name: "extreme", role, parts: &parts };
            let outcome = rig.b.load(&view);
            let shapes: Vec<_> = parts.iter().map(|part| (part.rows, part.cols, part.row_bytes)).collect();
            refused(rig, &format!("a matrix of (rows, columns, bytes a row) {shapes:?} for {role:?}"), outcome);
        }
    }
    works(rig)
}

/// Operations on more than their buffers hold, on sizes whose product overflows, and on invalid heads.
pub fn operands<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    const WIDTH: usize = 128;
    static DATA: [u8; 4 * WIDTH * WIDTH] = [0; 4 * WIDTH * WIDTH];
    let heads = HeadLayout { num_attention_heads: 2, num_key_value_heads: 2, head_dim: 32 };
    let key = StepKey { num_tokens: 1, num_seqs: 1, num_logits: 1, max_seqlen_q: 1, hidden: false, adapters: false };
    let load = |b: &mut B, role, rows| {
        let parts = [MatrixPart::whole(Encoding::F32, rows, WIDTH, &DATA)?];
        b.load(&WeightView { name: "small", role, parts: &parts })
    };
    let small = load(&mut rig.b, WeightRole::Linear, WIDTH)?;
    let table = load(&mut rig.b, WeightRole::Embedding, WIDTH)?;
    let gate_up = load(&mut rig.b, WeightRole::GateUp, WIDTH)?;
    // Rows for three times two heads of 32, while the buffers have 128: no layout of heads fits.
    let qkv_w = load(&mut rig.b, WeightRole::Qkv, WIDTH)?;
    let (x, y) = (rig.b.alloc(WIDTH * 4)?, rig.b.alloc(WIDTH * 4)?);
    let (mut out, mut scratch) = (rig.b.alloc(WIDTH * 4)?, rig.b.alloc(WIDTH * 4)?);
    let mut ids = rig.b.alloc_indices(16)?;
    let mut kv = rig.b.kv(&spec())?;
    let mut inputs = StepInputs::<B> {
        input_ids: rig.b.alloc_indices(16)?,
        cos_sin: rig.b.alloc(WIDTH)?,
        slot_mapping: rig.b.alloc_indices(16)?,
        cu_seqlens_q: rig.b.alloc_indices(16)?,
        context_lens: rig.b.alloc_indices(16)?,
        block_tables: rig.b.alloc_indices(16)?,
        max_blocks_per_seq: 1,
        logits_indices: rig.b.alloc_indices(16)?,
    };
    for rows in [MAX, MAX / 2 + 1, MAX / WIDTH + 1, HALF, 1 << 20] {
        let about = |op: &str| format!("{op} of {rows} rows");
        let outcome = rig.b.embed(Embed { ids: &ids, table: &table, out: &mut out, rows });
        refused(rig, &about("embed"), outcome);
        let outcome = rig.b.linear(Linear { x: &x, w: &small, bias: None, out: &mut out, rows });
        refused(rig, &about("linear"), outcome);
        for hidden_size in [WIDTH, HALF, MAX] {
            let op = RmsNorm { x: &x, weight: &y, eps: 1e-6, hidden_size, out: &mut out, rows };
            let outcome = rig.b.rms_norm(op);
            refused(rig, &about("rms_norm"), outcome);
            let op = SiluAndMul { gate_up: &x, out: &mut out, intermediate_size: hidden_size, rows };
            let outcome = rig.b.silu_and_mul(op);
            refused(rig, &about("silu_and_mul"), outcome);
            let op = GatherRows { x: &x, indices: &ids, out: &mut out, width: hidden_size, rows };
            let outcome = rig.b.gather_rows(op);
            refused(rig, &about("gather_rows"), outcome);
            let outcome = rig.b.argmax(Argmax { x: &x, out: &mut ids, width: hidden_size, valid: 1, rows });
            refused(rig, &about("argmax"), outcome);
            let (scratch, residual) = (&mut scratch, &mut out);
            let op = LinearAdd { x: &x, w: &small, group: None, scratch, residual, hidden_size, rows };
            let outcome = rig.b.linear_add(op);
            refused(rig, &about("linear_add"), outcome);
        }
        for intermediate_size in [WIDTH / 2, MAX / 2 + 1 + WIDTH / 2] {
            let (scratch, out) = (&mut scratch, &mut out);
            let op = GateUpSilu { norm: None, x: &x, w: &gate_up, scratch, out, intermediate_size, rows };
            let outcome = rig.b.gate_up_silu(op);
            refused(rig, &about("gate_up_silu"), outcome);
        }
        let outcome = rig.b.add(Add { x: &mut out, y: &y, len: rows });
        refused(rig, &about("add"), outcome);
        let outcome = rig.b.rope(Rope { qkv: &mut out, cos_sin: &x, heads, rows });
        refused(rig, &about("rope"), outcome);
        let (slot_mapping, kv) = (&inputs.slot_mapping, &mut kv);
        let outcome = rig.b.store_kv(StoreKv { qkv: &x, slot_mapping, kv, layer: 0, heads, rows });
        refused(rig, &about("store_kv"), outcome);
        for key in [StepKey { num_tokens: rows, ..key }, StepKey { num_seqs: rows, ..key }] {
            let (inputs, out) = (&inputs, &mut out);
            let op = PagedAttention { qkv: &x, kv, layer: 0, heads, inputs, out, key };
            let outcome = rig.b.paged_attention(op);
            refused(rig, &format!("paged_attention of {key:?}"), outcome);
        }
        inputs.max_blocks_per_seq = rows;
        let op = PagedAttention { qkv: &x, kv, layer: 0, heads, inputs: &inputs, out: &mut out, key };
        let outcome = rig.b.paged_attention(op);
        refused(rig, &about("paged_attention with block tables"), outcome);
        inputs.max_blocks_per_seq = 1;
    }
    // Layers and heads that the store does not have.
    let with = |num_attention_heads, num_key_value_heads, head_dim| HeadLayout {
        num_attention_heads,
        num_key_value_heads,
        head_dim,
    };
    let layouts = [
        with(2, 0, 32),
        with(3, 2, 32),
        with(2, 2, 0),
        with(0, 0, 0),
        with(2, 1, 32),
        with(2, 2, 16),
        with(MAX - 1, 2, 32),
        with(HALF, 2, HALF),
        with(MAX, MAX, MAX),
    ];
    for (layer, heads) in [(2, heads), (MAX, heads)].into_iter().chain(layouts.map(|layout| (0, layout))) {
        let about = |op: &str| format!("{op} in layer {layer} with {heads:?}");
        let slot_mapping = &inputs.slot_mapping;
        let outcome = rig.b.store_kv(StoreKv { qkv: &x, slot_mapping, kv: &mut kv, layer, heads, rows: 1 });
        refused(rig, &about("store_kv"), outcome);
        let (qkv, kv, inputs) = (&mut out, &mut kv, &inputs);
        let op = QkvRopeStore { norm: None, x: &x, w: &qkv_w, bias: &y, inputs, heads, qkv, kv, layer, rows: 1 };
        let outcome = rig.b.qkv_rope_store(op);
        refused(rig, &about("qkv_rope_store"), outcome);
        let op = PagedAttention { qkv: &x, kv, layer, heads, inputs, out: &mut scratch, key };
        let outcome = rig.b.paged_attention(op);
        refused(rig, &about("paged_attention"), outcome);
    }
    for heads in [with(MAX - 1, 2, 32), with(HALF, 2, HALF), with(MAX, MAX, MAX)] {
        let outcome = rig.b.rope(Rope { qkv: &mut out, cos_sin: &x, heads, rows: 1 });
        refused(rig, &format!("rope with {heads:?}"), outcome);
    }
    // Empty rows: refused or done, but quickly.
    let nothing = RmsNorm { x: &x, weight: &y, eps: 1e-6, hidden_size: 0, out: &mut out, rows: MAX };
    drop(rig.b.rms_norm(nothing));
    drop(rig.b.silu_and_mul(SiluAndMul { gate_up: &x, out: &mut out, intermediate_size: 0, rows: MAX }));
    drop(rig.b.rope(Rope { qkv: &mut out, cos_sin: &x, heads: with(0, 0, 0), rows: MAX }));
    drop(rig.b.argmax(Argmax { x: &x, out: &mut ids, width: 0, valid: 0, rows: 16 }));
    drop(rig.b.synchronize());
    works(rig)
}
