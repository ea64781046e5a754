//! How much memory every published model takes on a GPU: the table of docs/cuda.md, from shapes only.

use qwen_backend_cuda::CudaFootprint;
use qwen_conformance::published::{self, Headers};
use qwen_core::backend::Limits;
use qwen_core::model::plan::{Plan, PlanInput, limits_for};
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Config, Precision};

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
