//! Whole models of packed matrices: they compute the same as their decoded counterparts, are planned from headers, and
//! are split at groups over ranks or refused by name.

mod common;

use common::packer::{Matrix, Method, Tensor};
use common::{TempFolder, safetensors_of};
use half::f16;
use qwen_core::backend::collective::Shard;
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{Footprint, Interrupt, Limits, StoredSizes};
use qwen_core::model::Model;
use qwen_core::model::batch::{Batch, BlockId, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::plan::{Plan, PlanInput};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Checkpoint, Encoding, Error, Precision};
use serde_json::{Value, json};

const HIDDEN: usize = 64;
const VOCAB: usize = 48;
const GROUP: usize = 32;

/// A packed one-layer model, and its counterpart with the same values in f32.
struct Twins {
    packed: TempFolder,
    decoded: TempFolder,
}

/// As AutoGPTQ and AutoAWQ write them: norms, biases, embedding and head in f16, and with a bias of zeros for modules
/// that have none.
fn twins(method: Method, bits: usize, inner: usize, act_order: bool) -> Twins {
    let halves = |name: &str, shape: &[usize], scale: f32| -> Tensor {
        let values = (0..shape.iter().product::<usize>()).map(|i| scale * ((i * 37 % 101) as f32 / 50.0 - 1.0));
        (name.into(), "F16", shape.to_vec(), values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect())
    };
    let layer = |rest: &str| format!("model.layers.0.{rest}");
    let plain = vec![
        halves("model.embed_tokens.weight", &[VOCAB, HIDDEN], 1.0),
        halves("lm_head.weight", &[VOCAB, HIDDEN], 0.5),
        halves("model.norm.weight", &[HIDDEN], 1.0),
        halves(&layer("input_layernorm.weight"), &[HIDDEN], 1.0),
        halves(&layer("post_attention_layernorm.weight"), &[HIDDEN], 1.0),
        halves(&layer("self_attn.q_proj.bias"), &[HIDDEN], 0.25),
        halves(&layer("self_attn.k_proj.bias"), &[HIDDEN / 2], 0.25),
        halves(&layer("self_attn.v_proj.bias"), &[HIDDEN / 2], 0.25),
        halves(&layer("self_attn.o_proj.bias"), &[HIDDEN], 0.0),
        halves(&layer("mlp.gate_proj.bias"), &[inner], 0.0),
    ];
    let (mut packed, mut decoded) = (plain.clone(), plain);
    let mut quantization = Value::Null;
    for (seed, (module, rows, cols)) in (1..).zip([
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", HIDDEN / 2, HIDDEN),
        ("self_attn.v_proj", HIDDEN / 2, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", inner, HIDDEN),
        ("mlp.up_proj", inner, HIDDEN),
        ("mlp.down_proj", HIDDEN, inner),
    ]) {
        let mut matrix = Matrix::random(method, bits, [rows, cols, GROUP], seed);
        let sizes = matrix.scales.iter().enumerate();
        matrix.scales = sizes.map(|(i, _)| f16::from_f32(0.01 + (i % 7) as f32 / 500.0 / bits as f32)).collect();
        if act_order {
            matrix.g_idx = (0..cols).map(|col| (col * 5 + seed as usize) % (cols / GROUP)).collect();
        }
        quantization = matrix.quantization();
        packed.extend(matrix.tensors(&layer(module)));
        let values = matrix.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        decoded.push((format!("{}.weight", layer(module)), "F32", vec![rows, cols], values));
    }
    let mut config = json!({
        "model_type": "qwen2", "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": inner,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false,
    });
    let folder = |config: &Value, tensors: &[Tensor]| {
        TempFolder::new().with("config.json", config.to_string()).with("model.safetensors", safetensors_of(tensors))
    };
    let decoded = folder(&config, &decoded);
    config["quantization_config"] = quantization;
    Twins { packed: folder(&config, &packed), decoded }
}

fn limits() -> Limits {
    Limits {
        max_model_len: 32,
        max_num_batched_tokens: 16,
        max_num_seqs: 1,
        max_num_logits: 16,
        block_size: 16,
        num_blocks: 2,
        vocab_size: VOCAB,
        num_token_ids: VOCAB,
    }
}

/// The logits of a prompt on the reference.
fn logits(folder: &TempFolder) -> Vec<u32> {
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut b = Reference::new();
    let spec = ModelSpec::new(checkpoint.config());
    let model = Model::load(&mut b, spec, &limits(), &checkpoint, &mut |_, _| Ok(())).unwrap();
    let mut runner = ModelRunner::new(b, model, RopeStages::new(checkpoint.config()), limits());
    let mut batch = Batch::new(limits().block_size);
    let (ids, blocks): (Vec<u32>, _) = ((0..16).map(|i| i * 29 % VOCAB as u32).collect(), [BlockId(0), BlockId(1)]);
    let step = SequenceStep {
        input_ids: &ids,
        num_computed_tokens: 0,
        block_table: &blocks,
        logits: WantLogits::All,
        rope_stage: 0,
        adapter: None,
    };
    batch.push(step).unwrap();
    let mut output = StepOutput::default();
    runner.execute(&batch, &mut output, &Interrupt::default()).unwrap();
    output.logits.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_packed_model_computes_what_its_decoded_twin_computes() {
    for (method, bits, act_order) in [
        (Method::GptqV1, 4, false),
        (Method::GptqV1, 4, true),
        (Method::GptqV2, 4, true),
        (Method::GptqV1, 8, false),
        (Method::GptqV2, 8, true),
        (Method::Awq, 4, false),
    ] {
        // An inner width of three groups: a multiple of the group only.
        let twins = twins(method, bits, 3 * GROUP, act_order);
        let (packed, decoded) = (logits(&twins.packed), logits(&twins.decoded));
        assert_eq!(packed.len(), 16 * VOCAB);
        assert!(packed == decoded, "{method:?}, {bits} bits, act-order {act_order}");
    }
}

#[test]
fn shapes_are_known_from_headers() {
    let twins = twins(Method::GptqV1, 4, 3 * GROUP, true);
    let checkpoint = Checkpoint::open(twins.packed.path()).unwrap();
    let file = twins.packed.path().join("model.safetensors");
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(0).unwrap();
    let spec = ModelSpec::new(checkpoint.config());
    let group_bytes = |values: usize| values / GROUP * (4 + GROUP / 2);
    for weight in spec.weights() {
        let shape = weight.shape(&checkpoint).unwrap();
        let values = shape.rows() * shape.cols;
        let bytes = match shape.parts[0].0 {
            Encoding::F16 => 2 * values,
            Encoding::Group(_) => group_bytes(values),
            other => panic!("{other}"),
        };
        assert_eq!(shape.stored_bytes().unwrap(), bytes as u64, "{}", weight.name);
    }
}

/// A device with its own memory.
#[derive(Debug)]
struct Apart;

impl Footprint for Apart {
    fn staging_bytes(&self, _: u64) -> u64 {
        0
    }
}

#[test]
fn plans_count_what_is_converted_where_it_lies_in_the_same_memory() {
    // Wide enough that loading takes more memory than running.
    let twins = twins(Method::Awq, 4, 300 * GROUP, false);
    let checkpoint = Checkpoint::open(twins.packed.path()).unwrap();
    let spec = ModelSpec::new(checkpoint.config());
    let input = PlanInput {
        spec: &spec,
        limits: limits(),
        precision: Precision::Exact,
        context: 16,
        batch: 1,
        model_context: 64,
        available_bytes: None,
    };
    let [shared, apart] =
        [&StoredSizes as &dyn Footprint, &Apart].map(|footprint| Plan::new(&checkpoint, &input, footprint).unwrap());
    let stored =
        |weight: qwen_core::model::spec::WeightSpec| weight.shape(&checkpoint).unwrap().stored_bytes().unwrap();
    let weights = spec.vector_bytes() + spec.weights().into_iter().map(stored).sum::<u64>();
    assert_eq!((shared.weight_bytes, apart.weight_bytes), (weights, weights));
    // Beside what is loaded before and with it: the stored matrix itself and its converted form.
    let (head, down, gate_up) = (stored(spec.lm_head()), stored(spec.down_proj(0)), stored(spec.gate_up_proj(0)));
    assert_eq!(apart.load_bytes, weights);
    assert_eq!(shared.load_bytes, (weights - head - down + 2 * gate_up).max(weights - head + 2 * down));
}

#[test]
fn ranks_share_groups_or_are_refused_by_name() {
    let load = |folder: &TempFolder, rank: usize| {
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let spec = ModelSpec::new(checkpoint.config()).shard(Shard { rank, world_size: 2 }).unwrap();
        for weight in spec.weights() {
            weight.shape(&checkpoint)?;
        }
        Model::load(&mut Reference::new(), spec, &limits(), &checkpoint, &mut |_, _| Ok(())).map(drop)
    };
    for rank in 0..2 {
        load(&twins(Method::Awq, 4, 4 * GROUP, false).packed, rank).unwrap();
        load(&twins(Method::GptqV1, 8, 4 * GROUP, false).packed, rank).unwrap();
        match load(&twins(Method::Awq, 4, 3 * GROUP, false).packed, rank) {
            Err(Error::Unsupported { what, reason }) => {
                assert!(what.contains("mlp.down_proj") && what.contains("INT4 in groups of 32"), "{what}");
                assert!(reason.contains("another number of ranks"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        match load(&twins(Method::GptqV1, 4, 4 * GROUP, true).packed, rank) {
            Err(Error::Unsupported { what, reason }) => {
                assert!(what.contains("self_attn.o_proj.weight`") && what.contains("INT4 in groups of 32"), "{what}");
                assert!(reason.contains("another order") && reason.contains("use one rank"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}
