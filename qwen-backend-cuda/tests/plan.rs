//! What every published model takes on a card: the table of docs/cuda.md, from shapes alone.

use qwen_backend_cuda::CudaFootprint;
use qwen_core::backend::MatrixPart;
use qwen_core::batch::Limits;
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::plan::{Plan, PlanInput, limits_for};
use qwen_core::{Config, Encoding, Error, Precision, Result};

/// Prompt tokens of a step, as the facade has them on cards.
const PROMPT_CHUNK: usize = 2048;

/// hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size, vocab_size, tied.
type Shape = (usize, usize, usize, usize, usize, usize, bool);
const SHAPES: [(&str, Shape); 7] = [
    ("0.5B", (896, 24, 14, 2, 4_864, 151_936, true)),
    ("1.5B", (1_536, 28, 12, 2, 8_960, 151_936, true)),
    ("3B", (2_048, 36, 16, 2, 11_008, 151_936, true)),
    ("7B", (3_584, 28, 28, 4, 18_944, 152_064, false)),
    ("14B", (5_120, 48, 40, 8, 13_824, 152_064, false)),
    ("32B", (5_120, 64, 40, 8, 27_648, 152_064, false)),
    ("72B", (8_192, 80, 64, 8, 29_568, 152_064, false)),
];

/// bf16 weights whose key biases are small.
struct Headers;

impl WeightSource for Headers {
    fn matrix(&self, name: &str, _: usize, _: usize) -> Result<MatrixPart<'_>> {
        Err(Error::unsupported(name, "a plan reads headers alone"))
    }

    fn vector(&self, _: &str, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn encoding(&self, _: &str) -> Result<Encoding> {
        Ok(Encoding::Bf16)
    }
}

fn plan((hidden, layers, heads, kv_heads, inner, vocab, tied): Shape, context: usize) -> Plan {
    let config = format!(
        r#"{{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": {hidden}, "intermediate_size": {inner}, "num_hidden_layers": {layers},
        "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads}, "vocab_size": {vocab},
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": {tied}}}"#
    );
    let spec = ModelSpec::new(&Config::from_json("config.json", &config).unwrap());
    let limits = Limits {
        max_model_len: context,
        max_num_batched_tokens: PROMPT_CHUNK,
        max_num_seqs: 8,
        max_num_logits: 16,
        block_size: 32,
        num_blocks: 0,
        vocab_size: vocab,
        num_token_ids: vocab,
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
    for (name, shape) in SHAPES {
        let short = plan(shape, 4_096);
        let totals = [32_768, 131_072].map(|context| gigabytes(plan(shape, context).total_bytes));
        let row = format!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} |",
            gigabytes(short.weight_bytes),
            gigabytes(short.total_bytes),
            totals[0],
            totals[1]
        );
        assert!(document.contains(&row), "docs/cuda.md lacks the row\n{row}");
    }
}
