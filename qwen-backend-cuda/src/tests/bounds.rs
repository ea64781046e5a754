//! Indices that kernels read from device memory, with values beyond their arrays. The emulator checks the guards around
//! every array after every kernel and fills them with NaNs, so that a kernel that writes or reads beyond one is found.

use std::sync::Arc;

use qwen_core::backend::{
    Backend, Embed, GatherRows, HeadLayout, KvSpec, MatrixPart, PagedAttention, QkvRopeStore, StepInputs, StepKey,
    StoreKv, WeightRole, WeightView,
};
use qwen_core::{Encoding, Precision};

use crate::backend::{CudaBackend, CudaBuffer, CudaIndices, CudaKv};
use crate::driver::emulated::{Emulated, EmulatedGpu};
use crate::driver::library::Kernels;
use crate::options::CudaOptions;

/// Values beyond every array of these tests: just beyond, far beyond, and such that products or sums of them wrap.
const HOSTILE: [u32; 9] = [64, 300, 65_535, 1 << 28, (1 << 28) + 1, i32::MAX as u32, 1 << 31, u32::MAX - 16, u32::MAX];

/// GPUs and precisions that choose different kernels.
const GPUS: [((u32, u32), Precision); 2] = [((7, 5), Precision::Exact), ((9, 0), Precision::Fast)];

const HEADS: HeadLayout = HeadLayout { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64 };
const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 4;
/// A block table has room for two partitions.
const MAX_BLOCKS_PER_SEQ: usize = 16;

/// Run `test` on every GPU. Without a compiler it is skipped, with the reason.
fn on_gpus(test: impl Fn(CudaBackend)) {
    let Some(kernels) = Kernels::for_tests() else { return };
    for ((major, minor), precision) in GPUS {
        let gpu = EmulatedGpu::new(&kernels).compute_capability(major, minor);
        test(CudaBackend::on(Arc::new(Emulated::new(gpu)), &CudaOptions::new().precision(precision)));
    }
}

fn indices(b: &mut CudaBackend, values: &[u32]) -> CudaIndices {
    let mut indices = b.alloc_indices(values.len()).unwrap();
    b.write_indices(&mut indices, values).unwrap();
    indices
}

fn buffer(b: &mut CudaBackend, values: &[f32]) -> CudaBuffer {
    let mut buffer = b.alloc(values.len()).unwrap();
    b.write(&mut buffer, values).unwrap();
    buffer
}

/// Pseudo-random values between -1 and 1.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + i / 7 * 11) % 41) as f32 / 20.0 - 1.0).collect()
}

fn read(b: &mut CudaBackend, from: &CudaBuffer, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    b.read(from, &mut values).unwrap();
    values
}

#[test]
fn rows_and_ids_beyond_their_tables_are_zeros() {
    on_gpus(|mut b| {
        let (width, rows) = (10, 3);
        let table = values(rows * width);
        let bytes: Vec<u8> = table.iter().flat_map(|value| value.to_le_bytes()).collect();
        let parts = [MatrixPart::whole(Encoding::F32, rows, width, &bytes).unwrap()];
        let matrix = b.load(&WeightView { name: "table", role: WeightRole::Embedding, parts: &parts }).unwrap();
        let x = buffer(&mut b, &table);
        for hostile in [[3, 4, 5].as_slice(), &HOSTILE].concat() {
            let ids = indices(&mut b, &[2, hostile, 1]);
            let expected = [&table[2 * width..], &vec![0.0; width], &table[width..2 * width]].concat();
            // Outputs initially hold other values.
            let mut gathered = buffer(&mut b, &values(3 * width));
            b.gather_rows(GatherRows { x: &x, indices: &ids, out: &mut gathered, width, rows: 3 }).unwrap();
            assert_eq!(read(&mut b, &gathered, 3 * width), expected, "gather_rows of {hostile}");
            let mut embedded = buffer(&mut b, &values(3 * width));
            b.embed(Embed { ids: &ids, table: &matrix, out: &mut embedded, rows: 3 }).unwrap();
            assert_eq!(read(&mut b, &embedded, 3 * width), expected, "embed of {hostile}");
        }
    });
}

/// The sequences of a step: token counts and contexts of two sequences.
#[derive(Clone)]
struct Step {
    cu_seqlens_q: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<u32>,
}

impl Step {
    fn new(tokens: [u32; 2], context_lens: [u32; 2]) -> Self {
        let block_tables = (0..2 * MAX_BLOCKS_PER_SEQ).map(|i| (i % NUM_BLOCKS) as u32).collect();
        let cu_seqlens_q = vec![0, tokens[0], tokens[0] + tokens[1]];
        Step { cu_seqlens_q, context_lens: context_lens.to_vec(), block_tables }
    }

    fn tokens(&self) -> usize {
        self.cu_seqlens_q[2] as usize
    }
}

/// A K/V store with values in every slot, and activations that attend to it.
struct Attended {
    kv: CudaKv,
    qkv: CudaBuffer,
    tokens: usize,
    key: StepKey,
}

impl Attended {
    fn new(b: &mut CudaBackend, key_encoding: Encoding, value_encoding: Encoding, step: &Step) -> Self {
        let mut kv = b
            .kv(&KvSpec {
                key_encodings: vec![key_encoding],
                value_encoding,
                num_blocks: NUM_BLOCKS,
                block_size: BLOCK_SIZE,
                num_key_value_heads: HEADS.num_key_value_heads,
                head_dim: HEADS.head_dim,
            })
            .unwrap();
        let slots: Vec<u32> = (0..(NUM_BLOCKS * BLOCK_SIZE) as u32).collect();
        let stored = buffer(b, &values(slots.len() * HEADS.qkv_size()));
        let slot_mapping = indices(b, &slots);
        let (heads, rows) = (HEADS, slots.len());
        b.store_kv(StoreKv { qkv: &stored, slot_mapping: &slot_mapping, kv: &mut kv, layer: 0, heads, rows }).unwrap();
        let tokens = step.tokens();
        let qkv = buffer(b, &values(tokens * HEADS.qkv_size()));
        let max_seqlen_q = step.cu_seqlens_q.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap();
        Attended {
            kv,
            qkv,
            tokens,
            key: StepKey {
                num_tokens: tokens,
                num_seqs: 2,
                num_logits: 0,
                max_seqlen_q,
                hidden: false,
                adapters: false,
            },
        }
    }

    /// The attention output for these inputs, for each token.
    fn attend(&self, b: &mut CudaBackend, step: &Step) -> Vec<Vec<f32>> {
        let inputs = StepInputs {
            input_ids: indices(b, &[]),
            cos_sin: buffer(b, &[]),
            slot_mapping: indices(b, &[]),
            cu_seqlens_q: indices(b, &step.cu_seqlens_q),
            context_lens: indices(b, &step.context_lens),
            block_tables: indices(b, &step.block_tables),
            max_blocks_per_seq: MAX_BLOCKS_PER_SEQ,
            logits_indices: indices(b, &[]),
        };
        let mut out = b.alloc(self.tokens * HEADS.q_size()).unwrap();
        b.paged_attention(PagedAttention {
            qkv: &self.qkv,
            kv: &self.kv,
            layer: 0,
            heads: HEADS,
            inputs: &inputs,
            out: &mut out,
            key: self.key,
        })
        .unwrap();
        read(b, &out, self.tokens * HEADS.q_size()).chunks(HEADS.q_size()).map(<[f32]>::to_vec).collect()
    }
}

/// Steps and stores that exercise every attention kernel: single tokens within one partition and over two, and prompts.
fn every_kind(test: impl Fn(&mut CudaBackend, &Attended, &Step)) {
    on_gpus(|mut b| {
        let stores = match b.info().precision {
            Precision::Exact => [(Encoding::F32, Encoding::F32), (Encoding::Q8_0, Encoding::Q8_0)].as_slice(),
            Precision::Fast => &[
                (Encoding::F16, Encoding::F16),
                (Encoding::F32, Encoding::F16),
                (Encoding::Q8_0, Encoding::Q8_0),
                (Encoding::F16, Encoding::Q8_0),
            ],
        };
        for (keys, values) in stores {
            for step in [Step::new([1, 1], [40, 250]), Step::new([70, 9], [200, 130])] {
                let attended = Attended::new(&mut b, *keys, *values, &step);
                test(&mut b, &attended, &step);
            }
        }
    });
}

#[test]
fn blocks_beyond_the_store_leave_attention_within_it() {
    every_kind(|b, attended, step| {
        let expected = attended.attend(b, step);
        let first = step.cu_seqlens_q[1] as usize;
        for hostile in HOSTILE {
            let mut step = step.clone();
            // The first blocks of the second sequence, and a block that is read together with others.
            for entry in [0, 1, 5] {
                step.block_tables[MAX_BLOCKS_PER_SEQ + entry] = hostile;
            }
            let found = attended.attend(b, &step);
            assert_eq!(found[..first], expected[..first], "the other sequence, block {hostile}");
            let finite = found[first..].iter().flatten().all(|value| value.is_finite() && value.abs() <= 1.0);
            assert!(finite, "block {hostile}: values that no slot holds");
        }
    });
}

#[test]
fn contexts_beyond_the_block_tables_leave_attention_within_them() {
    every_kind(|b, attended, step| {
        let expected = attended.attend(b, step);
        let first = step.cu_seqlens_q[1] as usize;
        for hostile in [[0, 1, 257].as_slice(), &HOSTILE].concat() {
            let mut step = step.clone();
            step.context_lens[1] = hostile;
            let found = attended.attend(b, &step);
            assert_eq!(found[..first], expected[..first], "the other sequence, a context of {hostile}");
        }
    });
}

#[test]
fn token_counts_beyond_the_batch_leave_attention_within_it() {
    every_kind(|b, attended, step| {
        for hostile in [[0, 1, 2, 5].as_slice(), &HOSTILE].concat() {
            for index in 0..3 {
                let mut step = step.clone();
                step.cu_seqlens_q[index] = hostile;
                attended.attend(b, &step);
            }
            let step = Step { cu_seqlens_q: vec![hostile; 3], context_lens: vec![hostile; 2], ..step.clone() };
            attended.attend(b, &step);
        }
        // The backend still works.
        let again = attended.attend(b, step);
        assert!(again.iter().flatten().all(|value| value.is_finite()));
    });
}

#[test]
fn slots_beyond_the_store_are_not_stored() {
    let step = Step::new([1, 1], [40, 250]);
    on_gpus(|mut b| {
        let encoding = if b.info().precision == Precision::Exact { Encoding::Q8_0 } else { Encoding::F16 };
        let mut attended = Attended::new(&mut b, encoding, encoding, &step);
        let expected = attended.attend(&mut b, &step);
        let (heads, rows, layer, hidden_size) = (HEADS, 3, 0, 16);
        let matrix: Vec<u8> =
            values(HEADS.qkv_size() * hidden_size).iter().flat_map(|value| value.to_le_bytes()).collect();
        let parts = [MatrixPart::whole(Encoding::F32, HEADS.qkv_size(), hidden_size, &matrix).unwrap()];
        let w = b.load(&WeightView { name: "qkv", role: WeightRole::Qkv, parts: &parts }).unwrap();
        let (x, bias) = (buffer(&mut b, &values(rows * hidden_size)), buffer(&mut b, &values(HEADS.qkv_size())));
        for hostile in HOSTILE {
            let inputs = StepInputs {
                input_ids: indices(&mut b, &[]),
                cos_sin: buffer(&mut b, &values(rows * HEADS.head_dim)),
                slot_mapping: indices(&mut b, &[hostile; 3]),
                cu_seqlens_q: indices(&mut b, &[0, 3]),
                context_lens: indices(&mut b, &[3]),
                block_tables: indices(&mut b, &[0; MAX_BLOCKS_PER_SEQ]),
                max_blocks_per_seq: MAX_BLOCKS_PER_SEQ,
                logits_indices: indices(&mut b, &[]),
            };
            let mut qkv = buffer(&mut b, &values(rows * HEADS.qkv_size()));
            let (kv, slot_mapping) = (&mut attended.kv, &inputs.slot_mapping);
            b.store_kv(StoreKv { qkv: &qkv, slot_mapping, kv, layer, heads, rows }).unwrap();
            let (norm, inputs, qkv) = (None, &inputs, &mut qkv);
            let (x, w, bias, kv) = (&x, &w, &bias, &mut attended.kv);
            b.qkv_rope_store(QkvRopeStore { norm, x, w, bias, inputs, heads, qkv, kv, layer, rows }).unwrap();
            assert_eq!(attended.attend(&mut b, &step), expected, "slot {hostile}");
        }
    });
}
