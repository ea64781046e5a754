//! Sizes that overflow, unchecked indices, and whether plans match the memory used.

use qwen_core::backend::{
    Add, Argmax, Embed, GatherRows, HeadLayout, KvSpec, Linear, ModelShape, PagedAttention, RmsNorm, Rope as RopeOp,
    SiluAndMul, StepInputs, StepKey, StoreKv,
};

use qwen_conformance::published;
use qwen_core::model::plan::{Plan, PlanInput};
use qwen_core::model::spec::Cut;
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};

use super::*;
use crate::runtime::{params, staging};
use crate::{WgpuBuffer, WgpuIndices, WgpuKv, WgpuWeight};

/// Sizes whose products with small numbers wrap to 0 or close to it.
const HUGE: [usize; 5] =
    [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX / 4 + 1, usize::MAX - 3, usize::MAX];

const HEADS: HeadLayout = HeadLayout { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16 };

fn kv_spec(num_blocks: usize, block_size: usize, num_key_value_heads: usize, head_dim: usize) -> KvSpec {
    let (key_encodings, value_encoding) = (vec![Encoding::F16], Encoding::F16);
    KvSpec { key_encodings, value_encoding, num_blocks, block_size, num_key_value_heads, head_dim }
}

fn buffer(backend: &mut WgpuBackend, values: &[f32]) -> WgpuBuffer {
    let mut buffer = backend.alloc(values.len()).unwrap();
    backend.write(&mut buffer, values).unwrap();
    buffer
}

fn indices(backend: &mut WgpuBackend, values: &[u32]) -> WgpuIndices {
    let mut indices = backend.alloc_indices(values.len()).unwrap();
    backend.write_indices(&mut indices, values).unwrap();
    indices
}

fn matrix(backend: &mut WgpuBackend, rows: usize, cols: usize) -> WgpuWeight {
    let data: Vec<u8> = (0..rows * cols).flat_map(|i| half::bf16::from_f32(i as f32 / 64.0).to_le_bytes()).collect();
    let parts = [MatrixPart::whole(Encoding::Bf16, rows, cols, &data).unwrap()];
    backend.load(&WeightView { name: "w", role: WeightRole::Linear, parts: &parts }).unwrap()
}

#[test]
fn arrays_matrices_and_stores_without_a_number_of_bytes_are_refused() {
    let mut backend = idle_backend(Precision::Fast);
    backend.gpu.device.info.memory = Some(1 << 40);
    let objects = backend.stats().objects();
    let refused = |what: &str, refusal: Result<()>| match refusal {
        Err(
            Error::Device { .. }
            | Error::Unsupported { .. }
            | Error::InvalidArgument { .. }
            | Error::OutOfMemory { .. },
        ) => {}
        other => panic!("{what}: {other:?}"),
    };
    for huge in HUGE {
        refused("alloc", backend.alloc(huge).map(drop));
        refused("alloc_indices", backend.alloc_indices(huge).map(drop));
        for spec in
            [kv_spec(huge, 16, 1, 64), kv_spec(1, huge, 1, 64), kv_spec(1, 16, 1, huge), kv_spec(huge, huge, 1, 8)]
        {
            refused("kv", backend.kv(&spec).map(drop));
        }
        // Overlapping rows: a part with any number of rows in a few bytes.
        let data = [0; 64];
        let part = MatrixPart::strided(Encoding::Bf16, huge, 8, 0, &data).unwrap();
        let view = WeightView { name: "w", role: WeightRole::Linear, parts: &[part.clone(), part] };
        refused("load", backend.load(&view).map(drop));
    }
    for spec in [kv_spec(0, 16, 1, 64), kv_spec(1, 0, 1, 64), kv_spec(1, 16, 0, 64), kv_spec(1, 16, 1, 0)] {
        refused("an empty store", backend.kv(&spec).map(drop));
    }
    assert_eq!(backend.stats().objects(), objects, "something was made for what was refused");
}

#[test]
fn a_store_beyond_the_memory_is_refused_before_any_of_it_is_taken() {
    let mut backend = idle_backend(Precision::Fast);
    let objects = backend.stats().objects();
    // 2^36 heads of 2 KiB: each slab fits, all of them do not.
    let many_heads = kv_spec(1, 16, 1 << (usize::BITS / 2 + 4).min(36), 64);
    match backend.kv(&many_heads) {
        Err(Error::OutOfMemory { what, bytes, .. }) => assert!(what.contains("K/V") && bytes > 1 << 30),
        other => panic!("{other:?}"),
    }
    assert_eq!(backend.stats().objects(), objects);
}

#[test]
fn operations_with_more_rows_than_can_be_counted_are_refused() {
    let mut b = idle_backend(Precision::Fast);
    let (x, y, mut out) = (buffer(&mut b, &[0.0; 64]), buffer(&mut b, &[0.0; 64]), b.alloc(64).unwrap());
    let (ids, mut chosen) = (indices(&mut b, &[0; 8]), b.alloc_indices(8).unwrap());
    let w = matrix(&mut b, 8, 8);
    let mut kv = b.kv(&kv_spec(1, 16, 1, 16)).unwrap();
    for rows in HUGE {
        let heads = HeadLayout { num_attention_heads: rows, ..HEADS };
        let refusals = [
            b.embed(Embed { ids: &ids, table: &w, out: &mut out, rows }),
            b.linear(Linear { x: &x, w: &w, bias: None, out: &mut out, rows }),
            b.rms_norm(RmsNorm { x: &x, weight: &y, eps: 1e-6, hidden_size: 8, out: &mut out, rows }),
            b.rms_norm(RmsNorm { x: &x, weight: &y, eps: 1e-6, hidden_size: rows, out: &mut out, rows: 8 }),
            b.rope(RopeOp { qkv: &mut out, cos_sin: &y, heads: HEADS, rows }),
            b.rope(RopeOp { qkv: &mut out, cos_sin: &y, heads, rows: 1 }),
            b.store_kv(StoreKv { qkv: &x, slot_mapping: &ids, kv: &mut kv, layer: 0, heads: HEADS, rows }),
            b.store_kv(StoreKv { qkv: &x, slot_mapping: &ids, kv: &mut kv, layer: 0, heads, rows: 1 }),
            b.silu_and_mul(SiluAndMul { gate_up: &x, out: &mut out, intermediate_size: 8, rows }),
            b.silu_and_mul(SiluAndMul { gate_up: &x, out: &mut out, intermediate_size: rows, rows: 8 }),
            b.add(Add { x: &mut out, y: &y, len: rows }),
            b.gather_rows(GatherRows { x: &x, indices: &ids, out: &mut out, width: 8, rows }),
            b.gather_rows(GatherRows { x: &x, indices: &ids, out: &mut out, width: rows, rows: 8 }),
            b.argmax(Argmax { x: &x, out: &mut chosen, width: 8, valid: 8, rows }),
            b.argmax(Argmax { x: &x, out: &mut chosen, width: rows, valid: 8, rows: 8 }),
        ];
        for (i, refusal) in refusals.into_iter().enumerate() {
            assert!(matches!(refusal, Err(Error::Device { .. })), "operation {i} of {rows} rows: {refusal:?}");
        }
    }
}

/// The parts of a step of attention over `lengths`, whose arrays a test may overwrite.
struct Attention {
    kv: WgpuKv,
    inputs: StepInputs<WgpuBackend>,
    qkv: WgpuBuffer,
    out: WgpuBuffer,
    key: StepKey,
}

/// Blocks of the store, and of a sequence at most.
const BLOCKS: usize = 20;

impl Attention {
    /// Two sequences with `tokens` tokens each and 300 positions.
    fn new(b: &mut WgpuBackend, tokens: usize) -> Self {
        let kv = b.kv(&kv_spec(BLOCKS, 16, 1, 16)).unwrap();
        let (rows, table): (_, Vec<u32>) = (2 * tokens, (0..2 * BLOCKS as u32).map(|i| i % BLOCKS as u32).collect());
        let values: Vec<f32> = (0..rows * HEADS.qkv_size()).map(|i| (i % 13) as f32 / 8.0 - 0.5).collect();
        let inputs = StepInputs {
            input_ids: indices(b, &vec![0; rows]),
            cos_sin: buffer(b, &vec![0.5; rows * 16]),
            slot_mapping: indices(b, &vec![0; rows]),
            cu_seqlens_q: indices(b, &[0, tokens as u32, 2 * tokens as u32]),
            context_lens: indices(b, &[300, 300]),
            block_tables: indices(b, &table),
            max_blocks_per_seq: BLOCKS,
            logits_indices: indices(b, &[0]),
        };
        let key = StepKey {
            num_tokens: rows,
            num_seqs: 2,
            num_logits: 1,
            max_seqlen_q: tokens,
            hidden: false,
            adapters: false,
        };
        Attention { kv, inputs, qkv: buffer(b, &values), out: b.alloc(rows * HEADS.q_size()).unwrap(), key }
    }

    fn run(&mut self, b: &mut WgpuBackend) -> Vec<f32> {
        let Attention { kv, inputs, qkv, out, key } = self;
        b.paged_attention(PagedAttention { qkv, kv, layer: 0, heads: HEADS, inputs, out, key: *key }).unwrap();
        let mut read = vec![0.0; key.num_tokens * HEADS.q_size()];
        b.read(out, &mut read).unwrap();
        read
    }
}

/// The largest number, and others beyond every array.
const HOSTILE: [u32; 5] = [u32::MAX, u32::MAX - 127, 1 << 31, 1 << 20, 321];

/// A kernel that trusted these values would leave its arrays, or run for minutes: a context of 2^32 positions has 33
/// million partitions, and the position after the last of them wraps to 0.
#[test]
fn attention_bounds_every_index_and_length_that_it_reads() {
    let Some(mut b) = backend(Precision::Fast) else { return };
    // Single tokens, whose partitions run in parallel, and prompts, which process them in order.
    for tokens in [1, 5] {
        let mut attention = Attention::new(&mut b, tokens);
        let sound = attention.run(&mut b);
        assert!(sound.iter().all(|value| value.is_finite()));
        for hostile in HOSTILE {
            b.write_indices(&mut attention.inputs.context_lens, &[hostile, 300]).unwrap();
            attention.run(&mut b);
            b.write_indices(&mut attention.inputs.context_lens, &[300, 300]).unwrap();
            b.write_indices(&mut attention.inputs.cu_seqlens_q, &[hostile, hostile, hostile]).unwrap();
            attention.run(&mut b);
            b.write_indices(&mut attention.inputs.cu_seqlens_q, &[0, 3, hostile]).unwrap();
            attention.run(&mut b);
            b.write_indices(&mut attention.inputs.cu_seqlens_q, &[0, tokens as u32, 2 * tokens as u32]).unwrap();
            b.write_indices(&mut attention.inputs.block_tables, &[hostile; 2 * BLOCKS]).unwrap();
            attention.run(&mut b);
            let table: Vec<u32> = (0..2 * BLOCKS as u32).map(|i| i % BLOCKS as u32).collect();
            b.write_indices(&mut attention.inputs.block_tables, &table).unwrap();
        }
        // Nothing was damaged.
        assert_eq!(attention.run(&mut b), sound, "{tokens} tokens");
    }
    b.synchronize().unwrap();
}

#[test]
fn ids_slots_and_rows_beyond_their_arrays_touch_nothing() {
    let Some(mut b) = backend(Precision::Fast) else { return };
    let w = matrix(&mut b, 8, 8);
    let (rows, width) = (HOSTILE.len(), HEADS.qkv_size());
    let hostile = indices(&mut b, &HOSTILE);
    let mut out = buffer(&mut b, &vec![7.0; rows * 8]);
    let mut read = vec![1.0; rows * 8];
    b.embed(Embed { ids: &hostile, table: &w, out: &mut out, rows }).unwrap();
    b.read(&out, &mut read).unwrap();
    assert_eq!(read, vec![0.0; rows * 8], "an id outside of the table gives zeros");

    let (x, mut out) = (buffer(&mut b, &[3.0; 64]), buffer(&mut b, &vec![7.0; rows * 8]));
    b.gather_rows(GatherRows { x: &x, indices: &hostile, out: &mut out, width: 8, rows }).unwrap();
    b.read(&out, &mut read).unwrap();
    assert_eq!(read, vec![7.0; rows * 8], "rows that are not there are not gathered");

    let mut kv = b.kv(&kv_spec(BLOCKS, 16, 1, 16)).unwrap();
    let qkv = buffer(&mut b, &vec![1.5; rows * width]);
    let slots = indices(&mut b, &[u32::MAX, u32::MAX - 127, 1 << 31, 1 << 20, 16 * BLOCKS as u32]);
    b.store_kv(StoreKv { qkv: &qkv, slot_mapping: &slots, kv: &mut kv, layer: 0, heads: HEADS, rows }).unwrap();
    let words = 16 * BLOCKS * 8;
    for array in [kv.0.layers[0][0].keys.clone(), kv.0.layers[0][0].values.clone()] {
        assert!(b.read_array(&array, words).into_iter().all(|word| word == 0), "a slot that is not there was stored");
    }
}

/// A kernel reads and clamps the values that an earlier one wrote in the same step: a check by the host would have seen
/// the old values.
#[test]
fn indices_that_an_argmax_writes_are_read_in_the_same_step() {
    let Some(mut b) = backend(Precision::Fast) else { return };
    let rows = buffer(&mut b, &[0.0, 5.0, 1.0, 0.0, f32::NAN, 0.0, 2.0, 0.0, 9.0]);
    let x = buffer(&mut b, &[10.0, 11.0, 20.0, 21.0, 30.0, 31.0]);
    let (mut chosen, mut out) = (indices(&mut b, &[0; 3]), buffer(&mut b, &[7.0; 6]));
    let key = StepKey { num_tokens: 3, num_seqs: 3, num_logits: 3, max_seqlen_q: 1, hidden: false, adapters: false };
    // Recorded, and replayed.
    for _ in 0..2 {
        b.write(&mut out, &[7.0; 6]).unwrap();
        b.write_indices(&mut chosen, &[0; 3]).unwrap();
        b.step(key, &Interrupt::default(), &mut |b| {
            b.argmax(Argmax { x: &rows, out: &mut chosen, width: 3, valid: 3, rows: 3 })?;
            b.gather_rows(GatherRows { x: &x, indices: &chosen, out: &mut out, width: 2, rows: 3 })
        })
        .unwrap();
        let (mut ids, mut read) = ([0; 3], [0.0; 6]);
        b.read_indices(&chosen, &mut ids).unwrap();
        b.read(&out, &mut read).unwrap();
        // The row with a NaN has no largest value: its index is out of range, and the gathered row is left unchanged.
        assert_eq!((ids, read), ([1, u32::MAX, 2], [20.0, 21.0, 7.0, 7.0, 30.0, 31.0]));
    }
    // A context length written by a kernel is used in full, though the host knows a shorter one.
    let mut attention = Attention::new(&mut b, 1);
    let sound = attention.run(&mut b);
    let mut lengths = vec![0.0; 2 * 512];
    (lengths[300], lengths[512 + 300]) = (1.0, 1.0);
    let lengths = buffer(&mut b, &lengths);
    b.write_indices(&mut attention.inputs.context_lens, &[1, 1]).unwrap();
    let out = &mut attention.inputs.context_lens;
    b.argmax(Argmax { x: &lengths, out, width: 512, valid: 512, rows: 2 }).unwrap();
    assert_eq!(attention.run(&mut b), sound);
}

#[test]
fn the_plan_of_the_workspace_is_what_is_taken_before_and_after_steps() {
    let capabilities = [CapabilitySet::Tiny, CapabilitySet::Default, CapabilitySet::Best];
    for (capabilities, logits) in capabilities.into_iter().flat_map(|set| [4, 48].map(|logits| (set, logits))) {
        let Some(mut backend) = backend_with(Precision::Fast, capabilities) else { return };
        let checkpoint = checkpoint();
        let config = checkpoint.config();
        let limits = Limits {
            max_model_len: CONTEXT,
            max_num_batched_tokens: 32,
            max_num_seqs: 3,
            max_num_logits: logits,
            block_size: BLOCK_SIZE,
            num_blocks: 3 * CONTEXT / BLOCK_SIZE,
            vocab_size: config.vocab_size,
            num_token_ids: config.vocab_size,
        };
        let (spec, stats) = (ModelSpec::new(config), backend.stats());
        let planned = backend.footprint().workspace_bytes(&limits, &spec.shape()).unwrap();
        backend.prepare(&limits, &spec.shape()).unwrap();
        // The buffers for parameters and host writes are created with the device, and not counted.
        let taken = stats.allocated_bytes() + params::SIZE + staging::BYTES;
        assert_eq!(taken, planned, "{capabilities:?} with {logits} rows of logits");
        let model = Model::load(&mut backend, spec, &limits, &checkpoint, &mut |_, _| Ok(())).unwrap();
        let loaded = stats.allocated_bytes();
        let mut runner = ModelRunner::new(backend, model, RopeStages::new(config), limits);
        let ids: Vec<u32> = (0..32).collect();
        for (tokens, computed) in [(32, 0), (32, 32), (1, 64), (9, 65), (1, 74), (1, 300)] {
            let blocks: Vec<BlockId> = (0..(CONTEXT / BLOCK_SIZE) as u32).map(BlockId).collect();
            let mut batch = Batch::new(BLOCK_SIZE);
            let want = if tokens <= logits { WantLogits::All } else { WantLogits::Last };
            let (input_ids, block_table) = (&ids[..tokens], &blocks[..]);
            let (num_computed_tokens, logits) = (computed, want);
            let step =
                SequenceStep { input_ids, num_computed_tokens, block_table, logits, rope_stage: 0, adapter: None };
            batch.push(step).unwrap();
            runner.execute(&batch, &mut StepOutput::default(), &Interrupt::default()).unwrap();
        }
        // No step took more.
        assert_eq!(stats.allocated_bytes(), loaded, "{capabilities:?} with {logits} rows of logits");
    }
}

#[test]
fn the_plan_of_the_weights_counts_the_tables_of_reordered_columns() {
    let (_, mut config) = published::shapes().swap_remove(0);
    (config.num_hidden_layers, config.vocab_size) = (2, 4096);
    let spec = ModelSpec::new(&config);
    let group = Encoding::Group(GroupEncoding { bits: GroupBits::Eight, group_size: 32 });
    for reordered in [false, true] {
        let source = Zeros { reordered, ..Zeros::new(group, 896 * 4864) };
        let mut backend = idle_backend(Precision::Fast);
        let limits = Limits {
            max_model_len: 16,
            max_num_batched_tokens: 16,
            max_num_seqs: 1,
            max_num_logits: 1,
            block_size: 16,
            num_blocks: 1,
            vocab_size: config.vocab_size,
            num_token_ids: config.vocab_size,
        };
        let input = PlanInput {
            spec: &spec,
            limits,
            precision: Precision::Fast,
            context: 16,
            batch: 1,
            model_context: 16,
            available_bytes: None,
        };
        let plan = Plan::new(&source, &input, backend.footprint().as_ref()).unwrap();
        let before = backend.stats().allocated_bytes();
        for weight in spec.weights() {
            let part = |cut: &Cut| source.matrix(&cut.tensor, cut.shape.0, cut.shape.1).unwrap();
            let parts: Vec<_> = weight.cuts.iter().map(part).collect();
            backend.load(&WeightView { name: &weight.name, role: weight.role, parts: &parts }).unwrap();
        }
        let taken = backend.stats().allocated_bytes() - before;
        assert_eq!(plan.weight_bytes, taken + spec.vector_bytes(), "reordered: {reordered}");
    }
}

#[test]
fn what_is_longer_than_the_planned_buffer_is_read_in_parts() {
    let Some(mut backend) = backend(Precision::Fast) else { return };
    let limits = Limits {
        max_model_len: 16,
        max_num_batched_tokens: 16,
        max_num_seqs: 1,
        max_num_logits: 1,
        block_size: 16,
        num_blocks: 1,
        vocab_size: 7,
        num_token_ids: 7,
    };
    let shape = ModelShape { hidden_size: 16, intermediate_size: 16, vocab_size: 7, heads: HEADS };
    backend.prepare(&limits, &shape).unwrap();
    let values: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let buffer = buffer(&mut backend, &values);
    let taken = backend.stats().allocated_bytes();
    for len in [0, 1, 6, 7, 8, 14, 15, 100] {
        let mut read = vec![-1.0; len];
        backend.read(&buffer, &mut read).unwrap();
        assert_eq!(read, values[..len]);
    }
    assert_eq!(backend.stats().allocated_bytes(), taken);
}
