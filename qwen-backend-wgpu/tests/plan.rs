//! What every published model takes on three devices: slabs and bytes, from shapes and limits alone.

use qwen_backend_wgpu::WgpuFootprint;
use qwen_core::batch::Limits;
use qwen_core::conformance::published::{self, Headers};
use qwen_core::model::spec::ModelSpec;
use qwen_core::plan::{Plan, PlanInput, limits_for};
use qwen_core::{Config, Error, Footprint, Precision};

const MIB: u64 = 1 << 20;
/// The sets of capabilities: bytes of a binding, bytes of a buffer.
const TINY: (u64, u64) = (MIB, 256 * MIB);
const MINIMAL: (u64, u64) = (128 * MIB, 256 * MIB);
const LARGE: (u64, u64) = (2048 * MIB - 4, 2048 * MIB - 4);
const CONTEXT: usize = 32_768;

/// What a model takes: slabs and bytes of the weights, slabs and bytes of the K/V for 32,768 positions or what the
/// refusal says would fit, bytes of attention's records.
#[derive(Debug, PartialEq)]
struct Taken {
    weights: (usize, u64),
    kv: std::result::Result<(usize, u64), usize>,
    records: u64,
}

fn taken(config: &Config, (binding, buffer): (u64, u64)) -> Taken {
    let spec = ModelSpec::new(config);
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
    let limits = limits_for(&limits, CONTEXT, 1);
    let footprint = WgpuFootprint::with_limits(binding, buffer);
    let shapes: Vec<_> = spec.weights().iter().map(|weight| weight.shape(&Headers).unwrap()).collect();
    let weights = (
        shapes.iter().map(|shape| footprint.weight_slabs(shape).unwrap()).sum(),
        shapes.iter().map(|shape| footprint.weight_bytes(shape).unwrap()).sum(),
    );
    let kv = spec.kv(&limits, Precision::Fast, &Headers).unwrap();
    let plan = |context| {
        let input = PlanInput {
            spec: &spec,
            limits: limits.clone(),
            precision: Precision::Fast,
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
    Taken { weights, kv, records: footprint.workspace_bytes(&limits, &spec).unwrap() }
}

#[test]
fn every_published_shape_on_every_device() {
    let expected = [
        [
            Taken { weights: (981, 987_922_432), kv: Err(8_192), records: 946_176 },
            Taken { weights: (99, 987_922_432), kv: Ok((24, 402_653_184)), records: 7_569_408 },
            Taken { weights: (97, 987_922_432), kv: Ok((24, 402_653_184)), records: 7_569_408 },
        ],
        [
            Taken { weights: (3_023, 3_087_138_816), kv: Err(4_096), records: 0 },
            Taken { weights: (116, 3_087_138_816), kv: Ok((28, 939_524_096)), records: 12_779_520 },
            Taken { weights: (113, 3_087_138_816), kv: Ok((28, 939_524_096)), records: 12_779_520 },
        ],
        [
            Taken { weights: (5_958, 6_171_394_048), kv: Err(4_096), records: 0 },
            Taken { weights: (149, 6_171_394_048), kv: Ok((36, 1_207_959_552)), records: 17_039_360 },
            Taken { weights: (145, 6_171_394_048), kv: Ok((36, 1_207_959_552)), records: 17_039_360 },
        ],
        [
            Taken { weights: (14_824, 15_230_566_400), kv: Err(4_096), records: 0 },
            Taken { weights: (214, 15_230_566_400), kv: Ok((28, 1_879_048_192)), records: 29_818_880 },
            Taken { weights: (114, 15_230_566_400), kv: Ok((28, 1_879_048_192)), records: 29_818_880 },
        ],
        [
            Taken { weights: (28_758, 29_538_385_920), kv: Err(4_096), records: 0 },
            Taken { weights: (360, 29_538_385_920), kv: Ok((48, 6_442_450_944)), records: 42_598_400 },
            Taken { weights: (194, 29_538_385_920), kv: Ok((48, 6_442_450_944)), records: 42_598_400 },
        ],
        [
            Taken { weights: (63_782, 65_525_514_240), kv: Err(4_096), records: 0 },
            Taken { weights: (664, 65_525_514_240), kv: Ok((64, 8_589_934_592)), records: 42_598_400 },
            Taken { weights: (258, 65_525_514_240), kv: Ok((64, 8_589_934_592)), records: 42_598_400 },
        ],
        [
            Taken { weights: (142_672, 145_408_131_072), kv: Err(4_096), records: 0 },
            Taken { weights: (1_238, 145_408_131_072), kv: Ok((80, 10_737_418_240)), records: 68_157_440 },
            Taken { weights: (324, 145_408_131_072), kv: Ok((80, 10_737_418_240)), records: 68_157_440 },
        ],
    ];
    for ((name, config), expected) in published::shapes().into_iter().zip(expected) {
        for (device, expected) in [TINY, MINIMAL, LARGE].into_iter().zip(expected) {
            assert_eq!(taken(&config, device), expected, "{name} on {device:?}");
        }
    }
}
