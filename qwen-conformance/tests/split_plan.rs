//! Which layers go to which device, by the figures of the published models.

use std::ops::Range;

use qwen_conformance::published::{self, Headers};
use qwen_core::backend::{Footprint, KvSpec, Limits, ModelShape, StoredSizes, WeightShape};
use qwen_core::model::plan::{Plan, PlanInput, SplitDevice, SplitInput};
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Config, Error, Precision, Result};

const GIB: u64 = 1 << 30;

/// A device with memory of its own: packing takes none of it.
#[derive(Debug)]
struct Apart;

impl Footprint for Apart {
    fn staging_bytes(&self, _: u64) -> u64 {
        0
    }
}

/// A device that holds no K/V store of more than 4096 positions.
#[derive(Debug)]
struct ShortOnly;

impl Footprint for ShortOnly {
    fn kv_bytes(&self, spec: &KvSpec) -> Result<u64> {
        match spec.num_blocks * spec.block_size {
            0..=4096 => Ok(spec.stored_bytes()),
            positions => Err(Error::unsupported(format!("a store of {positions} positions"), "at most 4096")),
        }
    }

    fn workspace_bytes(&self, _: &Limits, _: &ModelShape) -> Result<u64> {
        Ok(1 << 20)
    }
}

/// A device without kernels for these weights.
#[derive(Debug)]
struct NoKernels;

impl Footprint for NoKernels {
    fn weight_bytes(&self, shape: &WeightShape) -> Result<u64> {
        Err(Error::unsupported(format!("a matrix of {} columns", shape.cols), "it has no kernels"))
    }
}

fn config(name: &str) -> Config {
    published::shapes().into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// A device of a case: its footprint, its layers, its memory.
type Device<'a> = (&'a dyn Footprint, Option<usize>, usize);

/// Plans a model for devices and memories.
fn split(name: &str, context: usize, devices: &[Device<'_>], memories: &[Option<u64>]) -> Result<Plan> {
    within(name, context, devices, memories, None)
}

fn within(
    name: &str,
    context: usize,
    devices: &[Device<'_>],
    memories: &[Option<u64>],
    budget: Option<u64>,
) -> Result<Plan> {
    let config = config(name);
    let spec = ModelSpec::new(&config);
    let limits = Limits { vocab_size: spec.vocab_size, num_token_ids: spec.vocab_size, ..published::limits(512, 16) };
    let input = PlanInput {
        spec: &spec,
        limits,
        precision: Precision::Fast,
        context,
        batch: 1,
        model_context: 32_768,
        available_bytes: None,
    };
    let names: Vec<String> = (0..devices.len()).map(|index| format!("device {index}")).collect();
    let devices: Vec<SplitDevice<'_>> = devices
        .iter()
        .zip(&names)
        .map(|((footprint, layers, memory), name)| SplitDevice {
            name,
            footprint: *footprint,
            layers: *layers,
            memory: *memory,
        })
        .collect();
    Plan::split(&Headers, &input, None, &SplitInput { devices: &devices, memories, budget, reserved: &|_, _| Ok(0) })
}

fn layers(plan: &Plan) -> Vec<Range<usize>> {
    plan.parts.iter().map(|part| part.layers.clone()).collect()
}

#[test]
fn devices_get_as_many_layers_as_fit_and_the_last_one_the_rest() {
    for (name, spec) in published::shapes().into_iter().map(|(name, config)| (name, ModelSpec::new(&config))) {
        let all = spec.num_hidden_layers;
        let mut before = 0;
        // Growing memory of the first device, from nothing to more than the model.
        let whole = split(name, 4096, &[(&Apart, Some(all), 0)], &[None]).unwrap().total_bytes;
        for sixteenths in 0..=18 {
            let memory = whole / 16 * sixteenths;
            let devices: [Device<'_>; 2] = [(&Apart, None, 0), (&StoredSizes, None, 1)];
            let plan = split(name, 4096, &devices, &[Some(memory), Some(1 << 40)]).unwrap();
            assert!(plan.fits, "{name}: {plan}");
            let first = plan.parts[0].layers.end;
            assert_eq!(layers(&plan), [0..first, first..all]);
            assert!(plan.parts[0].plan.total_bytes <= memory && first >= before);
            before = first;
            // One more would be too many.
            if first < all {
                let devices = [(&Apart as &dyn Footprint, Some(first + 1), 0), (&StoredSizes, None, 1)];
                assert!(!split(name, 4096, &devices, &[Some(memory), Some(1 << 40)]).unwrap().fits, "{name}: {plan}");
            }
        }
        assert_eq!(before, all, "{name}");
    }
}

#[test]
fn the_parts_add_up_to_the_model() {
    for (name, spec) in published::shapes().into_iter().map(|(name, config)| (name, ModelSpec::new(&config))) {
        let all = spec.num_hidden_layers;
        let whole = split(name, 4096, &[(&Apart, None, 0)], &[None]).unwrap();
        let counts = [1, all / 3, all - 1 - all / 3];
        let devices: Vec<Device<'_>> = counts.iter().map(|count| (&Apart as &dyn Footprint, Some(*count), 0)).collect();
        let plan = split(name, 4096, &devices, &[None]).unwrap();
        assert_eq!((plan.kv_bytes, plan.read_bytes), (whole.kv_bytes, whole.read_bytes), "{name}");
        let table = 2 * (spec.vocab_size * spec.hidden_size) as u64;
        // A tied table is where the embedding is and where the head is.
        let twice = if spec.tie_word_embeddings { table } else { 0 };
        assert_eq!(plan.weight_bytes, whole.weight_bytes + twice, "{name}");
        let read: Vec<u64> = plan.parts.iter().map(|part| part.plan.read_bytes).collect();
        assert_eq!(read.iter().sum::<u64>(), plan.read_bytes);
        assert!(plan.parts[0].plan.weight_bytes - read[0] == table && read[2] > table, "{name}");
        // Only the part with the head has rows of logits.
        assert!(plan.parts[1].plan.activation_bytes < plan.parts[2].plan.activation_bytes);
    }
}

#[test]
fn devices_that_share_a_memory_fit_together_or_not_at_all() {
    let devices: [Device<'_>; 2] = [(&StoredSizes, Some(10), 0), (&StoredSizes, Some(18), 0)];
    let total = split("7B", 4096, &devices, &[None]).unwrap().total_bytes;
    let own = split("7B", 4096, &devices, &[None]).unwrap();
    assert!(own.parts.iter().all(|part| part.plan.total_bytes < total));
    for (memory, fits) in [(total, true), (total - 1, false)] {
        let plan = split("7B", 4096, &devices, &[Some(memory)]).unwrap();
        assert_eq!((plan.fits, plan.total_bytes), (fits, total));
        assert_eq!(plan.check().is_ok(), fits);
    }
    // The same sum in two memories.
    let apart: [Device<'_>; 2] = [(&StoredSizes, Some(10), 0), (&StoredSizes, Some(18), 1)];
    let memories = [Some(6 * GIB), Some(total)];
    assert!(split("7B", 4096, &apart, &memories).unwrap().fits);
    // Within a budget for all.
    assert!(!within("7B", 4096, &apart, &memories, Some(total / 2)).unwrap().fits);
    let by_plan: [Device<'_>; 2] = [(&Apart, None, 0), (&StoredSizes, None, 1)];
    let budget = Some(18 * GIB);
    let bounded = within("7B", 4096, &by_plan, &[Some(100 * GIB), Some(GIB)], budget).unwrap();
    assert!(bounded.fits && bounded.total_bytes <= 18 * GIB && bounded.available_bytes == budget, "{bounded}");
}

#[test]
fn a_context_that_no_placement_holds_is_shortened() {
    let devices: [Device<'_>; 2] = [(&Apart, None, 0), (&StoredSizes, None, 1)];
    let weights = split("7B", 64, &devices, &[Some(6 * GIB), None]).unwrap().total_bytes;
    let memories = [Some(6 * GIB), Some(weights - 6 * GIB + GIB)];
    let plan = split("7B", 32_768, &devices, &memories).unwrap();
    let fits = plan.max_context.unwrap();
    assert!(!plan.fits && (2048..32_768).contains(&fits), "{plan}: {fits}");
    let error = plan.check().unwrap_err().to_string();
    assert!(error.contains("on `device 1`") && error.contains(&format!("a context of {fits} instead of")), "{error}");
    let shorter = split("7B", fits, &devices, &memories).unwrap();
    assert!(shorter.fits && !split("7B", fits + 32, &devices, &memories).unwrap().fits);
    // A longer context leaves less room for layers.
    let roomy = [Some(6 * GIB), Some(1 << 40)];
    let first = |context| split("7B", context, &devices, &roomy).unwrap().parts[0].layers.end;
    assert!(first(32_768) < first(1024));
}

#[test]
fn what_a_device_refuses_is_refused_with_its_name() {
    let devices: [Device<'_>; 2] = [(&ShortOnly, Some(4), 0), (&StoredSizes, None, 1)];
    let plan = |context| split("0.5B", context, &devices, &[Some(64 * GIB), Some(64 * GIB)]).unwrap();
    assert!(plan(4096).fits);
    let refused = plan(8192);
    assert!(!refused.fits && refused.max_context == Some(4096));
    let error = refused.check().unwrap_err().to_string();
    assert!(error.contains("`device 0`") && error.contains("8192 positions"), "{error}");
    // By plan it is not left out in silence, as one is whose memory holds no layer.
    let by_plan: [Device<'_>; 2] = [(&ShortOnly, None, 0), (&StoredSizes, None, 1)];
    let refused = split("0.5B", 8192, &by_plan, &[Some(64 * GIB), Some(64 * GIB)]).unwrap();
    assert!(!refused.fits && refused.max_context == Some(4096), "{refused}");
    assert!(refused.check().unwrap_err().to_string().contains("`device 0`"));
    let by_plan: [Device<'_>; 2] = [(&StoredSizes, None, 0), (&StoredSizes, None, 1)];
    let plan = split("0.5B", 8192, &by_plan, &[Some(1 << 20), Some(64 * GIB)]).unwrap();
    assert!(plan.fits && layers(&plan) == [0..0, 0..24]);
    assert!(plan.to_string().contains("no layer on `device 0`"), "{plan}");

    let no_kernels: [Device<'_>; 2] = [(&StoredSizes, Some(4), 0), (&NoKernels, None, 1)];
    let error = split("0.5B", 4096, &no_kernels, &[None, None]).unwrap_err().to_string();
    assert!(error.contains("`device 1`: it has no kernels"), "{error}");
    let unknown: [Device<'_>; 2] = [(&Apart, None, 0), (&StoredSizes, None, 1)];
    let error = split("0.5B", 4096, &unknown, &[None, None]).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("`device 0` by plan"), "{error}");
    // Known to be at most the budget.
    assert!(within("0.5B", 4096, &unknown, &[None, None], Some(4 * GIB)).unwrap().fits);
    for (counts, memory) in
        [([Some(12), Some(11)], 0), ([Some(25), None], 0), ([Some(usize::MAX); 2], 0), ([None; 2], 7)]
    {
        let devices = counts.map(|count| (&Apart as &dyn Footprint, count, memory));
        let error = split("0.5B", 4096, &devices, &[Some(GIB)]).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    assert!(split("0.5B", 4096, &[], &[]).is_err());
}
