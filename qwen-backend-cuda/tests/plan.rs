//! How much memory every published model takes on a GPU: the table of docs/cuda.md, and weights in block formats, from
//! shapes only.

use qwen_backend_cuda::CudaFootprint;
use qwen_conformance::published::{self, Headers};
use qwen_core::backend::Limits;
use qwen_core::model::plan::{Plan, PlanInput, limits_for};
use qwen_core::model::spec::ModelSpec;
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};
use qwen_core::{Config, Encoding, Footprint, Precision};

/// Prompt tokens per step, as set by the facade for GPUs.
const PROMPT_CHUNK: usize = 2048;

fn plan(config: &Config, context: usize) -> Plan {
    let spec = ModelSpec::new(config);
    let limits = Limits {
        max_model_len: context,
        max_num_batched_tokens: PROMPT_CHUNK,
        max_num_seqs: 8,
        max_num_logits: 16,
        block_size: 32,
        num_blocks: 0,
        vocab_size: config.vocab_size,
        num_token_ids: config.vocab_size,
    };
    let input = PlanInput {
        spec: &spec,
        limits: limits_for(&limits, context, 1),
        precision: Precision::Fast,
        context,
        batch: 1,
        model_context: 131_072,
        available_bytes: None,
    };
    Plan::new(&Headers, &input, &CudaFootprint::new(true, Precision::Fast)).unwrap()
}

#[test]
fn the_documents_state_what_every_published_shape_takes() {
    let document = include_str!("../../docs/cuda.md");
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let mut missing = Vec::new();
    for (name, config) in published::shapes() {
        let short = plan(&config, 4_096);
        let totals = [32_768, 131_072].map(|context| gigabytes(plan(&config, context).total_bytes));
        let row = format!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} |",
            gigabytes(short.weight_bytes),
            gigabytes(short.total_bytes),
            totals[0],
            totals[1]
        );
        if !document.contains(&row) {
            missing.push(row);
        }
    }
    assert!(missing.is_empty(), "docs/cuda.md lacks these rows\n{}", missing.join("\n"));
}

#[test]
fn published_shapes_in_block_formats_take_hardly_more_than_in_the_file() {
    let groups = |bits| Encoding::Group(GroupEncoding { bits, group_size: 128 });
    let named = [
        Encoding::Q4_0,
        Encoding::Q5_1,
        Encoding::Q8_0,
        Encoding::Iq4Nl,
        Encoding::Q2K,
        Encoding::Q4K,
        Encoding::Q6K,
        Encoding::Iq4Xs,
        Encoding::Iq2S,
        Encoding::Iq3S,
    ];
    let footprint = CudaFootprint::new(true, Precision::Fast);
    for (name, config) in published::shapes() {
        let spec = ModelSpec::new(&config);
        for encoding in named.into_iter().chain([groups(GroupBits::Four), groups(GroupBits::Eight)]) {
            let shapes = spec.weights().into_iter().map(|weight| {
                let mut shape = weight.shape(&Headers).unwrap();
                shape.parts.iter_mut().for_each(|(part, _)| *part = encoding);
                shape
            });
            // Files take another format where rows are not whole blocks of this one.
            let shapes: Vec<_> = shapes.filter(|shape| shape.stored_bytes().is_ok()).collect();
            let stored: u64 = shapes.iter().map(|shape| shape.stored_bytes().unwrap()).sum();
            let taken: u64 = shapes.iter().map(|shape| footprint.weight_bytes(shape).unwrap()).sum();
            assert!(taken >= stored, "{name} in {encoding}: {taken} of {stored} bytes");
            // Arrays take whole pages of 2 MiB, which matters where matrices are small.
            let pages = shapes.len() as u64 * (2 << 20);
            let most = (1.03 * stored as f64) as u64 + pages;
            assert!(taken <= most, "{name} in {encoding}: {taken} of {stored} bytes");
        }
    }
}
