//! How much memory every published model takes with each set of capabilities on a typical adapter: slabs and bytes,
//! from shapes and limits only.

use qwen_backend_wgpu::{CapabilitySet, WgpuFootprint};
use qwen_conformance::published::{self, Headers};
use qwen_core::backend::Limits;
use qwen_core::model::plan::{Plan, PlanInput, limits_for};
use qwen_core::model::spec::ModelSpec;
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};
use qwen_core::{Config, Encoding, Error, Footprint, Precision};

/// Bytes of a binding, and of a buffer, that large GPUs offer.
const OFFERED: u64 = (2 << 30) - 4;
/// Parameters and inputs.
const HOST_BYTES: u64 = 5 << 19;
const CONTEXT: usize = 32_768;

/// The memory of a model: slabs and bytes of the weights, slabs and bytes of the K/V for 32,768 positions or the
/// context that the refusal says would fit, and bytes of the workspace.
#[derive(Debug, PartialEq)]
struct Taken {
    weights: (usize, u64),
    kv: std::result::Result<(usize, u64), usize>,
    workspace: u64,
}

/// Limits of steps of 512 tokens, and of the context.
fn limits(config: &Config) -> Limits {
    let limits = Limits {
        max_model_len: CONTEXT,
        max_num_batched_tokens: 512,
        max_num_seqs: 8,
        max_num_logits: 16,
        block_size: 32,
        num_blocks: 0,
        vocab_size: config.vocab_size,
        num_token_ids: config.vocab_size,
    };
    limits_for(&limits, CONTEXT, 1)
}

fn taken(config: &Config, set: CapabilitySet, precision: Precision) -> Taken {
    let (spec, limits) = (ModelSpec::new(config), limits(config));
    let footprint = WgpuFootprint::with_capabilities(set, OFFERED, OFFERED);
    let shapes: Vec<_> = spec.weights().iter().map(|weight| weight.shape(&Headers).unwrap()).collect();
    let weights = (
        shapes.iter().map(|shape| footprint.weight_slabs(shape).unwrap()).sum(),
        shapes.iter().map(|shape| footprint.weight_bytes(shape).unwrap()).sum(),
    );
    let kv = spec.kv(&limits, precision, &Headers).unwrap();
    let plan = |context| {
        let input = PlanInput {
            spec: &spec,
            limits: limits.clone(),
            precision,
            context,
            batch: 1,
            model_context: 131_072,
            available_bytes: None,
        };
        Plan::new(&Headers, &input, &footprint).unwrap()
    };
    let planned = plan(CONTEXT);
    assert_eq!(planned.weight_bytes, weights.1 + spec.vector_bytes());
    let kv = match footprint.kv_slabs(&kv) {
        Ok(slabs) => {
            assert!(planned.fits && planned.check().is_ok());
            Ok((slabs, footprint.kv_bytes(&kv).unwrap()))
        }
        Err(error) => {
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            let longest = planned.max_context.unwrap();
            let refusal = planned.check().unwrap_err().to_string();
            assert!(!planned.fits && refusal.contains(&error.to_string()), "{refusal}");
            assert!(refusal.contains(&format!("a context of {longest} instead of {CONTEXT} would fit")), "{refusal}");
            assert!(plan(longest).fits && !plan(longest + 32).fits);
            Err(longest)
        }
    };
    Taken { weights, kv, workspace: footprint.workspace_bytes(&limits, &spec.shape()).unwrap() }
}

#[test]
fn every_published_shape_on_every_device() {
    // (slabs of weights, slabs of K/V in Fast and in Exact, bytes of attention's partial results)
    let expected = [
        [(981, Err(8_192), Err(4_096), 946_176), (99, Ok(24), Ok(24), 7_569_408), (97, Ok(24), Ok(24), 7_569_408)],
        [(3_023, Err(4_096), Err(2_048), 0), (116, Ok(28), Ok(28), 12_779_520), (113, Ok(28), Ok(28), 12_779_520)],
        [(5_958, Err(4_096), Err(2_048), 0), (149, Ok(36), Ok(36), 17_039_360), (145, Ok(36), Ok(36), 17_039_360)],
        [(14_824, Err(4_096), Err(2_048), 0), (214, Ok(28), Ok(28), 29_818_880), (114, Ok(28), Ok(28), 29_818_880)],
        [(28_758, Err(4_096), Err(2_048), 0), (360, Ok(48), Ok(48), 42_598_400), (194, Ok(48), Ok(48), 42_598_400)],
        [(63_782, Err(4_096), Err(2_048), 0), (664, Ok(64), Ok(64), 42_598_400), (258, Ok(64), Ok(64), 42_598_400)],
        [(142_672, Err(4_096), Err(2_048), 0), (1_238, Ok(80), Ok(80), 68_157_440), (324, Ok(80), Ok(80), 68_157_440)],
    ];
    let weight_bytes =
        [987_922_432, 3_087_138_816, 6_171_394_048, 15_230_566_400, 29_538_385_920, 65_525_514_240, 145_408_131_072];
    for (((name, config), expected), weight_bytes) in published::shapes().into_iter().zip(expected).zip(weight_bytes) {
        let [tiny, minimal, default] = expected;
        let sets = [
            (CapabilitySet::Tiny, tiny),
            (CapabilitySet::Minimal, minimal),
            (CapabilitySet::Default, default),
            // As the default, with activations as f16 in addition.
            (CapabilitySet::Best, default),
        ];
        for (set, (weight_slabs, fast, exact, partials)) in sets {
            let beside = HOST_BYTES + 4 * (16 * config.vocab_size) as u64;
            let widest = config.intermediate_size.max(config.num_attention_heads * config.head_dim);
            let signed_rows = 12 * widest as u64;
            let f16_rows = if set == CapabilitySet::Best { 512 * (2 * widest + 4) as u64 } else { 0 };
            for (precision, kv) in [(Precision::Fast, fast), (Precision::Exact, exact)] {
                let bytes = if precision == Precision::Exact { 4 } else { 2 };
                let position = 2 * bytes * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
                let expected = Taken {
                    weights: (weight_slabs, weight_bytes),
                    kv: kv.map(|slabs| (slabs, (CONTEXT * position) as u64)),
                    workspace: partials + beside + signed_rows + f16_rows,
                };
                assert_eq!(taken(&config, set, precision), expected, "{name} with {set:?} in {precision:?}");
            }
        }
    }
}

#[test]
fn published_shapes_with_keys_and_values_in_8_bits() {
    // Slabs with bindings of 128 MiB and of 2 GiB: half as many as in f16 need.
    for (name, config) in published::shapes() {
        let spec = ModelSpec::new(&config).with_kv_encoding(Encoding::Q8_0).unwrap();
        for set in [CapabilitySet::Minimal, CapabilitySet::Default] {
            let footprint = WgpuFootprint::with_capabilities(set, OFFERED, OFFERED);
            for precision in [Precision::Fast, Precision::Exact] {
                let kv = spec.kv(&limits(&config), precision, &Headers).unwrap();
                let positions = 2 * CONTEXT * config.num_hidden_layers * config.num_key_value_heads;
                let expected = (positions * config.head_dim / 32 * 34) as u64;
                assert_eq!(footprint.kv_bytes(&kv).unwrap(), expected, "{name} with {set:?}");
                assert_eq!(footprint.kv_slabs(&kv).unwrap(), config.num_hidden_layers, "{name} with {set:?}");
            }
        }
    }
}

/// With each set of capabilities, in slabs of at most 128 MiB and of 2 GiB.
#[test]
fn published_shapes_in_block_formats_take_hardly_more_than_in_the_file() {
    let groups = |bits| Encoding::Group(GroupEncoding { bits, group_size: 128 });
    let small = [Encoding::Q4_0, Encoding::Q5_1, Encoding::Q8_0, Encoding::Iq4Nl];
    let large = [Encoding::Q2K, Encoding::Q4K, Encoding::Q6K, Encoding::Iq4Xs, Encoding::Iq2S, Encoding::Iq3S];
    let groups = [groups(GroupBits::Four), groups(GroupBits::Eight)];
    for (name, config) in published::shapes() {
        let spec = ModelSpec::new(&config);
        for encoding in small.into_iter().chain(large).chain(groups) {
            let shapes = spec.weights().into_iter().map(|weight| {
                let mut shape = weight.shape(&Headers).unwrap();
                shape.parts.iter_mut().for_each(|(part, _)| *part = encoding);
                shape
            });
            // Files take another format where rows are not whole blocks of this one.
            let shapes: Vec<_> = shapes.filter(|shape| shape.stored_bytes().is_ok()).collect();
            let stored: u64 = shapes.iter().map(|shape| shape.stored_bytes().unwrap()).sum();
            for set in [CapabilitySet::Minimal, CapabilitySet::Default] {
                let footprint = WgpuFootprint::with_capabilities(set, OFFERED, OFFERED);
                let taken: u64 = shapes.iter().map(|shape| footprint.weight_bytes(shape).unwrap()).sum();
                assert!(taken >= stored, "{name} in {encoding} with {set:?}: {taken} of {stored} bytes");
                assert!(
                    taken as f64 <= 1.03 * stored as f64,
                    "{name} in {encoding} with {set:?}: {taken} of {stored} bytes"
                );
            }
        }
    }
}
