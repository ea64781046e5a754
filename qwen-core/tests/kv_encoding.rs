//! How K/V is stored: the choice per layer, the same blocks as for weights, refusals of devices without kernels for
//! them.

use std::path::Path;

use qwen_core::backend::{KvSpec, Limits, MatrixPart, StoredSizes};
use qwen_core::model::plan::{Plan, PlanInput};
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::numerics::encoding::q8;
use qwen_core::{Config, Encoding, Error, Precision, Result};

/// Headers of a checkpoint whose key biases are at most `0.5 * layer`, and have both signs.
struct Biased;

impl WeightSource for Biased {
    fn matrix(&self, _: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        MatrixPart::whole(Encoding::Bf16, rows, cols, &[])
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let layer = name.split('.').find_map(|part| part.parse::<f32>().ok()).unwrap_or(0.0);
        let mut values = vec![1e-3; len];
        // Biases of queries and values have no influence.
        values[len / 2] = if name.contains("k_proj") { -0.5 * layer } else { 500.0 };
        Ok(values)
    }

    fn encoding(&self, _: &str) -> Result<Encoding> {
        Ok(Encoding::Bf16)
    }
}

fn limits() -> Limits {
    Limits {
        max_model_len: 64,
        max_num_batched_tokens: 64,
        max_num_seqs: 1,
        max_num_logits: 1,
        block_size: 32,
        num_blocks: 2,
        vocab_size: 151_936,
        num_token_ids: 151_665,
    }
}

/// 24 layers, 2 K/V heads of 64.
fn model() -> ModelSpec {
    let text = include_str!("data/config-0.5b-instruct.json");
    ModelSpec::new(&Config::from_json(Path::new("config.json"), text).unwrap())
}

fn keys(spec: &KvSpec) -> [usize; 3] {
    [Encoding::F32, Encoding::F16, Encoding::Q8_0]
        .map(|encoding| spec.key_encodings.iter().filter(|key| **key == encoding).count())
}

#[test]
fn keys_have_the_bits_that_their_biases_need() {
    let mut model = model();
    // Biases up to 4 in the layers 0 to 8, up to 16 in all that there are beyond.
    for (encoding, expected) in [(Encoding::Q8_0, [0, 15, 9]), (Encoding::F16, [0, 24, 0]), (Encoding::F32, [24, 0, 0])]
    {
        let spec = model.clone().with_kv_encoding(encoding).unwrap();
        for precision in [Precision::Exact, Precision::Fast] {
            let kv = spec.kv(&limits(), precision, &Biased).unwrap();
            assert_eq!((keys(&kv), kv.value_encoding), (expected, encoding), "{encoding}");
        }
    }
    let default = |precision| model.kv(&limits(), precision, &Biased).unwrap();
    assert_eq!(default(Precision::Exact).value_encoding, Encoding::F32);
    assert_eq!(default(Precision::Fast).value_encoding, Encoding::F16);
    // A separate stage, beyond 16.
    model.num_hidden_layers = 40;
    let stage = model.stage(30..40).unwrap().with_kv_encoding(Encoding::Q8_0).unwrap();
    assert_eq!(keys(&stage.kv(&limits(), Precision::Fast, &Biased).unwrap()), [7, 3, 0]);
}

#[test]
fn blocks_are_counted_whole() {
    let kv = model().with_kv_encoding(Encoding::Q8_0).unwrap().kv(&limits(), Precision::Fast, &Biased).unwrap();
    let values = 64 * 2 * 64;
    assert_eq!(kv.stored_bytes(), (24 + 9) * values / 32 * 34 + 15 * 2 * values);
    assert_eq!(kv.heads_bytes(Encoding::Q8_0, 80), u64::MAX);
    assert_eq!(kv.heads_bytes(Encoding::Q8_0, usize::MAX / 32 * 32), u64::MAX);
}

#[test]
fn a_device_without_kernels_refuses_them_when_it_plans() {
    let plan = |encoding| {
        let spec = model().with_kv_encoding(encoding).unwrap();
        let input = PlanInput {
            spec: &spec,
            limits: limits(),
            precision: Precision::Fast,
            context: 64,
            batch: 1,
            model_context: 32_768,
            available_bytes: None,
        };
        Plan::new(&Biased, &input, &StoredSizes).unwrap()
    };
    assert!(plan(Encoding::F16).fits && plan(Encoding::F32).fits);
    let refused = plan(Encoding::Q8_0);
    assert!(!refused.fits && refused.kv_bytes > 0 && refused.max_context.is_none());
    match refused.check() {
        Err(error @ Error::Unsupported { .. }) => {
            let error = error.to_string();
            assert!(
                ["K/V store in Q8_0", "F32 or F16", "`kv_encoding`"].iter().all(|part| error.contains(part)),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn blocks_are_those_of_quantised_weights() {
    let mut state = 7u32;
    let mut values: Vec<f32> = (0..32 * 200)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // From 2^-30 to 2^15, the same for a block.
            (state as i32 as f32 / 2f32.powi(31)) * 2f32.powi((i / 32 % 46) - 30)
        })
        .collect();
    values[..32].fill(0.0);
    let mut bytes = Vec::new();
    Encoding::Q8_0.quantize_row(&values, None, &mut bytes).unwrap();
    let mut decoded = vec![0.0; values.len()];
    Encoding::Q8_0.decode_row(&bytes, &mut decoded);
    q8::store_and_read(&mut values);
    assert_eq!(values, decoded);
    for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [127.0; 64];
        values[40] = damage;
        q8::store_and_read(&mut values);
        assert!(values[..32].iter().all(|value| *value == 127.0) && values[32..].iter().all(|value| value.is_nan()));
    }
    // Beyond the largest scale.
    let mut values = [f32::MAX; 32];
    q8::store_and_read(&mut values);
    assert_eq!(values, [127.0 * 65504.0; 32]);
}
