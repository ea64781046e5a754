//! Results that the conformance suite does not compare closely enough: bits, and values that are not finite.

use qwen_conformance::{Outcome, Suite, cases};
use qwen_core::backend::{HeadLayout, KvSpec, QkvRopeStore, StepInputs, StepKey};
use qwen_core::backend::{Linear, PagedAttention, StoreKv, composed};

use super::*;
use crate::{WgpuBuffer, WgpuIndices, WgpuKv};

/// The bits of the logits of `ids` in one step.
pub(super) fn logits(runner: &mut dyn Runner, ids: &[u32]) -> Vec<u32> {
    let output = execute(runner, &[(ids, 0)], false).unwrap();
    output.logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn splitting_to_small_limits_changes_no_bit() {
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 1500).collect();
    for precision in [Precision::Exact, Precision::Fast] {
        let [tiny, default] = [CapabilitySet::Tiny, CapabilitySet::Default]
            .map(|set| backend_with(precision, set).map(|backend| logits(&mut runner(backend).unwrap(), &ids)));
        assert_eq!(tiny, default, "{precision:?}");
    }
}

/// On GPUs that run 32 threads in lockstep, where software Vulkan runs 8, as many read a row of a matrix.
#[test]
fn rows_that_32_threads_read_conform() {
    let names = ["linear/bf16", "linear/batch_invariance", "gate_up_silu/normed", "qkv_rope_store/normed"];
    let blocks = ["blocks/q4_0", "blocks/q4_k", "blocks/q6_k", "blocks/iq3_s", "blocks/int4_groups"];
    for precision in [Precision::Exact, Precision::Fast] {
        let suite = Suite::new(move || {
            let mut backend = WgpuBackend::new(options().precision(precision))?;
            backend.gpu.device.lanes = 32;
            Ok(backend)
        });
        let suite = suite.fast_depends_on_the_batch();
        for case in cases().iter().filter(|case| names.iter().chain(&blocks).any(|name| *name == case.name)) {
            match suite.outcome(case) {
                Outcome::Passed { .. } => {}
                Outcome::Skipped(reason) => return println!("skipped: {reason}"),
                Outcome::Failed(failures) => panic!("{failures}"),
            }
        }
    }
}

/// Values between -1 and 1 that are exact in bf16.
fn values(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + salt * 11) % 101) as f32 / 64.0 - 0.78125).collect()
}

/// `rows` rows of `x` times a matrix of `values` in bf16.
fn product(backend: &mut WgpuBackend, x: &[f32], values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let outputs = values.len() / cols;
    let stored: Vec<u8> = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
    let parts = [MatrixPart::whole(Encoding::Bf16, outputs, cols, &stored).unwrap()];
    let w = backend.load(&WeightView { name: "w", role: WeightRole::Linear, parts: &parts }).unwrap();
    let mut x_buffer = backend.alloc(rows * cols).unwrap();
    backend.write(&mut x_buffer, &x[..rows * cols]).unwrap();
    let mut out = backend.alloc(rows * outputs).unwrap();
    backend.linear(Linear { x: &x_buffer, w: &w, bias: None, out: &mut out, rows }).unwrap();
    let mut read = vec![0.0; rows * outputs];
    backend.read(&out, &mut read).unwrap();
    read
}

#[test]
fn a_row_of_a_tiled_product_does_not_depend_on_the_others() {
    for capabilities in [CapabilitySet::Default, CapabilitySet::Best] {
        let Some(mut backend) = backend_with(Precision::Fast, capabilities) else { return };
        let (cols, outputs) = (72, 70);
        let (x, w) = (values(150 * cols, 2), values(outputs * cols, 1));
        let [few, many] = [9, 150].map(|rows| product(&mut backend, &x, &w, rows, cols));
        assert_eq!(few, many[..few.len()], "{capabilities:?}");
    }
}

#[test]
fn cooperative_matrices_neither_overflow_nor_lose_what_is_small() {
    let Some(mut backend) = backend_with(Precision::Fast, CapabilitySet::Best) else { return };
    if backend.gpu.device.cooperative.is_none() {
        return println!("skipped: {} offers no cooperative matrices of f16", backend.adapter());
    }
    let (rows, cols, outputs) = (40, 100, 37);
    // Rows and weights far beyond f16 on both sides, with a channel a thousand times larger than the others.
    for (row_scale, weight_scale) in [(1.0, 1.0), (1e20, 1e-20), (1e-25, 1e9), (3e30, 1e-3), (1e-25, 1e-8)] {
        let mut x = values(rows * cols, 3);
        x.iter_mut().for_each(|value| *value *= row_scale);
        x.chunks_exact_mut(cols).for_each(|row| row[7] *= 1e3);
        x[5 * cols + 3] = f32::NAN;
        let to_bf16 = |value: f32| half::bf16::from_f32(value * weight_scale).to_f32();
        let w: Vec<f32> = values(outputs * cols, 4).into_iter().map(to_bf16).collect();
        let got = product(&mut backend, &x, &w, rows, cols);
        for (row, got) in got.chunks_exact(outputs).enumerate() {
            if row == 5 {
                assert!(got.iter().all(|value| value.is_nan()), "{got:?}");
                continue;
            }
            let x = &x[row * cols..][..cols];
            for (output, w) in w.chunks_exact(cols).enumerate() {
                let products = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (expected, scale) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                let off = (f64::from(got[output]) - expected).abs() / scale;
                assert!(off < 1.0 / 2048.0, "row {row}, output {output}: {} instead of {expected}", got[output]);
            }
        }
    }
}

const HEADS: HeadLayout = HeadLayout { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16 };

fn buffer(backend: &mut WgpuBackend, values: &[f32]) -> WgpuBuffer {
    let mut buffer = backend.alloc(values.len()).unwrap();
    backend.write(&mut buffer, values).unwrap();
    buffer
}

fn indices(backend: &mut WgpuBackend, values: impl IntoIterator<Item = u32>) -> WgpuIndices {
    let values: Vec<u32> = values.into_iter().collect();
    let mut indices = backend.alloc_indices(values.len()).unwrap();
    backend.write_indices(&mut indices, &values).unwrap();
    indices
}

fn read(backend: &mut WgpuBackend, buffer: &WgpuBuffer, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    backend.read(buffer, &mut values).unwrap();
    values
}

fn store(backend: &mut WgpuBackend, encoding: Encoding, positions: usize, heads: HeadLayout) -> WgpuKv {
    let (block_size, num_key_value_heads, head_dim) = (16, heads.num_key_value_heads, heads.head_dim);
    let (key_encodings, num_blocks) = (vec![encoding], positions.div_ceil(block_size));
    let value_encoding = encoding;
    backend
        .kv(&KvSpec { key_encodings, value_encoding, num_blocks, block_size, num_key_value_heads, head_dim })
        .unwrap()
}

/// The inputs of the last `queries` of the positions of one sequence.
fn inputs(backend: &mut WgpuBackend, cos_sin: &[f32], positions: usize, queries: usize) -> StepInputs<WgpuBackend> {
    let blocks = positions.div_ceil(16);
    StepInputs {
        input_ids: indices(backend, [0]),
        cos_sin: buffer(backend, cos_sin),
        slot_mapping: indices(backend, (positions - queries) as u32..positions as u32),
        cu_seqlens_q: indices(backend, [0, queries as u32]),
        context_lens: indices(backend, [positions as u32]),
        block_tables: indices(backend, 0..blocks as u32),
        max_blocks_per_seq: blocks,
        logits_indices: indices(backend, [0]),
    }
}

/// The attention of the last `queries` rows of `qkv`, which has one row per position, written to an array of sevens.
fn attend(backend: &mut WgpuBackend, qkv: &[f32], queries: usize) -> Vec<f32> {
    let width = HEADS.qkv_size();
    let positions = qkv.len() / width;
    let mut kv = store(backend, Encoding::F32, positions, HEADS);
    let (rows, slots) = (buffer(backend, qkv), indices(backend, 0..positions as u32));
    backend
        .store_kv(StoreKv { qkv: &rows, slot_mapping: &slots, kv: &mut kv, layer: 0, heads: HEADS, rows: positions })
        .unwrap();
    let inputs = inputs(backend, &[0.0], positions, queries);
    let last = buffer(backend, &qkv[(positions - queries) * width..]);
    let mut out = buffer(backend, &vec![7.0; queries * HEADS.q_size()]);
    let key = StepKey {
        num_tokens: queries,
        num_seqs: 1,
        num_logits: 1,
        max_seqlen_q: queries,
        hidden: false,
        adapters: false,
    };
    backend
        .paged_attention(PagedAttention {
            qkv: &last,
            kv: &kv,
            layer: 0,
            heads: HEADS,
            inputs: &inputs,
            out: &mut out,
            key,
        })
        .unwrap();
    read(backend, &out, queries * HEADS.q_size())
}

#[test]
fn what_is_not_finite_in_attention_reaches_its_output() {
    let Some(mut backend) = backend(Precision::Exact) else { return };
    let (width, positions) = (HEADS.qkv_size(), 300);
    let mut rows = values(positions * width, 5);
    // So that an infinite key has an infinite score instead of one below all others.
    rows.chunks_exact_mut(width).for_each(|row| (row[3], row[16 + 3]) = (0.5, 0.25));
    // One query, whose spans run in parallel, and two, which process all spans in order.
    for queries in [1, 2] {
        assert!(attend(&mut backend, &rows, queries).iter().all(|value| value.is_finite()));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for position in [0, 127, 128, 298] {
                // In a key, which all queries see.
                let mut rows = rows.clone();
                rows[position * width + HEADS.q_size() + 3] = bad;
                let out = attend(&mut backend, &rows, queries);
                assert!(out.iter().all(|value| value.is_nan()), "{bad} at {position} of {queries}: {out:?}");
            }
            let mut rows = rows.clone();
            rows[299 * width + 2] = bad;
            let out = attend(&mut backend, &rows, queries);
            let (hit, spared) = (&out[(queries - 1) * HEADS.q_size()..][..16], &out[queries * HEADS.q_size() - 16..]);
            assert!(hit.iter().all(|value| value.is_nan()) && spared.iter().all(|value| value.is_finite()), "{out:?}");
        }
        // All scores are -inf: the sum of the weights is 0, and the output must be overwritten.
        let mut rows = rows.clone();
        for row in rows.chunks_exact_mut(width) {
            row[..HEADS.q_size()].fill(1e30);
            row[HEADS.q_size()..][..16].fill(-1e30);
        }
        let out = attend(&mut backend, &rows, queries);
        assert!(out.iter().all(|value| value.is_nan()), "{out:?}");
    }
}

#[test]
fn keys_and_values_are_rounded_to_the_nearest_even_f16() {
    let Some(mut backend) = backend(Precision::Fast) else { return };
    // Each f16 with its f32 neighbours, and the midpoint to the next f16 with its f32 neighbours.
    let mut edges: Vec<f32> = Vec::new();
    for bits in 0..0x7c00 {
        let (this, next) = (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
        let next = if next.is_finite() { next } else { 65536.0 };
        let middle = this + (next - this) / 2.0;
        for value in [this, middle] {
            edges.extend([value.next_down(), value, value.next_up()]);
        }
    }
    edges.extend([1e30, f32::MAX, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE, f32::from_bits(1)]);
    let heads = HeadLayout { num_attention_heads: 1, num_key_value_heads: 1, head_dim: 256 };
    let (width, head_dim) = (heads.qkv_size(), heads.head_dim);
    edges.resize(edges.len().next_multiple_of(head_dim / 2), 0.0);
    // Both signs of each as a rotary pair of a key, and as adjacent channels of a value.
    let positions = edges.len() / (head_dim / 2);
    let mut qkv = vec![0.0; positions * width];
    for (row, edges) in qkv.chunks_exact_mut(width).zip(edges.chunks_exact(head_dim / 2)) {
        for (i, edge) in edges.iter().enumerate() {
            (row[head_dim + i], row[head_dim + 128 + i]) = (*edge, -edge);
            (row[2 * head_dim + 2 * i], row[2 * head_dim + 2 * i + 1]) = (*edge, -edge);
        }
    }
    let mut kv = store(&mut backend, Encoding::F16, positions, heads);
    let (rows, slots) = (buffer(&mut backend, &qkv), indices(&mut backend, 0..positions as u32));
    backend
        .store_kv(StoreKv { qkv: &rows, slot_mapping: &slots, kv: &mut kv, layer: 0, heads, rows: positions })
        .unwrap();
    let slab = &kv.0.layers[0][0];
    for array in [&slab.keys, &slab.values] {
        let stored = backend.read_array(array, edges.len());
        for (word, edge) in stored.into_iter().zip(&edges) {
            let found = [half::f16::from_bits(word as u16), half::f16::from_bits((word >> 16) as u16)];
            for (found, edge) in found.into_iter().zip([*edge, -edge]) {
                let expected = half::f16::from_f32(edge.clamp(-65504.0, 65504.0));
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && edge.is_nan(),
                    "{edge:e}: {found:e}"
                );
            }
        }
    }
}

#[test]
fn a_rotation_has_the_same_bits_in_each_kernel() {
    let Some(mut backend) = backend(Precision::Exact) else { return };
    let (rows, cols, outputs) = (5, 24, HEADS.qkv_size());
    let stored: Vec<u8> =
        values(outputs * cols, 8).into_iter().flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect();
    let parts = [MatrixPart::whole(Encoding::Bf16, outputs, cols, &stored).unwrap()];
    let w = backend.load(&WeightView { name: "qkv_proj", role: WeightRole::Linear, parts: &parts }).unwrap();
    let (x, bias) = (buffer(&mut backend, &values(rows * cols, 9)), buffer(&mut backend, &values(outputs, 10)));
    let inputs = inputs(&mut backend, &values(rows * HEADS.head_dim, 11), rows, rows);
    let mut run = |fused: bool| {
        let mut qkv = backend.alloc(rows * outputs).unwrap();
        let mut kv = store(&mut backend, Encoding::F32, rows, HEADS);
        let (x, w, bias, inputs, heads) = (&x, &w, &bias, &inputs, HEADS);
        let op = QkvRopeStore { norm: None, x, w, bias, inputs, heads, qkv: &mut qkv, kv: &mut kv, layer: 0, rows };
        match fused {
            true => backend.qkv_rope_store(op).unwrap(),
            false => composed::qkv_rope_store(&mut backend, op).unwrap(),
        }
        let queries: Vec<u32> = read(&mut backend, &qkv, rows * outputs)
            .chunks_exact(outputs)
            .flat_map(|row| row[..HEADS.q_size()].iter().map(|value| value.to_bits()).collect::<Vec<_>>())
            .collect();
        let keys = backend.read_array(&kv.0.layers[0][0].keys, rows * HEADS.head_dim);
        (queries, keys)
    };
    assert_eq!(run(true), run(false));
}
