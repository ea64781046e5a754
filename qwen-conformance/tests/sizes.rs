//! Sizes at the ends of their range: a plan that does not fit or a typed error, never a panic and never a size that
//! overflowed.

use qwen_conformance::model::{GEOMETRIES, RandomModel};
use qwen_conformance::published::{self, Headers};
use qwen_core::backend::Limits;
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{Backend, StoredSizes};
use qwen_core::model::Model;
use qwen_core::model::plan::{Plan, PlanInput, limits_for};
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Error, Precision};

/// Beyond what any device holds, or nothing at all.
const EXTREMES: [usize; 6] = [0, u32::MAX as usize, 1 << 53, 1 << 60, usize::MAX - 1, usize::MAX];

fn limits(vocab_size: usize) -> Limits {
    Limits {
        max_model_len: 4096,
        max_num_batched_tokens: 512,
        max_num_seqs: 8,
        max_num_logits: 16,
        block_size: 32,
        num_blocks: 128,
        vocab_size,
        num_token_ids: vocab_size,
    }
}

#[test]
fn a_plan_of_extreme_sizes_does_not_fit() {
    let (name, config) = &published::shapes()[0];
    let spec = ModelSpec::new(config);
    let plan = |context: usize, batch: usize, available_bytes: Option<u64>| {
        let limits = limits_for(&limits(spec.vocab_size), context, batch);
        let precision = Precision::Fast;
        let model_context = 32_768;
        let input = PlanInput { spec: &spec, limits, precision, context, batch, model_context, available_bytes };
        Plan::new(&Headers, &input, &StoredSizes).unwrap()
    };
    for available in [None, Some(64 << 30), Some(u64::MAX)] {
        assert!(plan(4096, 1, available).fits, "{name}");
        for extreme in EXTREMES {
            for (context, batch) in [(extreme, 1), (4096, extreme), (extreme, extreme)] {
                let plan = plan(context, batch, available);
                assert!(!plan.fits, "{name}: context {context}, batch {batch}, available {available:?}: {plan:?}");
                assert!(plan.check().is_err());
            }
        }
    }
}

#[test]
fn a_model_is_not_loaded_for_extreme_limits() {
    let model = RandomModel::new(GEOMETRIES[0]).unwrap();
    let usual = limits(model.config.vocab_size);
    let load = |limits: &Limits| {
        Model::load(&mut Reference::new(), ModelSpec::new(&model.config), limits, &model, &mut |_, _| Ok(()))
    };
    load(&usual).unwrap();
    for value in EXTREMES {
        for field in 0..8 {
            let mut limits = usual.clone();
            *[
                &mut limits.max_model_len,
                &mut limits.max_num_batched_tokens,
                &mut limits.max_num_seqs,
                &mut limits.max_num_logits,
                &mut limits.block_size,
                &mut limits.num_blocks,
                &mut limits.vocab_size,
                &mut limits.num_token_ids,
            ][field] = value;
            let error = load(&limits).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "field {field} of {value}: {error}");
        }
    }
}

#[test]
fn the_reference_refuses_buffers_that_memory_cannot_address() {
    let mut b = Reference::new();
    for len in [1 << 61, usize::MAX - 1, usize::MAX] {
        assert!(matches!(b.alloc(len), Err(Error::InvalidArgument { .. })), "{len}");
        assert!(matches!(b.alloc_indices(len), Err(Error::InvalidArgument { .. })), "{len}");
    }
}
