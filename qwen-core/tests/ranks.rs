//! Over how many ranks each published model can be split, and that the parts add up to the whole.

use qwen_core::Config;
use qwen_core::backend::collective::Shard;
use qwen_core::model::spec::{Cut, ModelSpec};
use serde_json::json;

struct Shape {
    name: &'static str,
    hidden_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    intermediate_size: usize,
    /// Which of 2, 4 and 8 ranks the model can be split over.
    ranks: &'static [usize],
}

const fn shape(name: &'static str, sizes: [usize; 4], ranks: &'static [usize]) -> Shape {
    let [hidden_size, num_attention_heads, num_key_value_heads, intermediate_size] = sizes;
    Shape { name, hidden_size, num_attention_heads, num_key_value_heads, intermediate_size, ranks }
}

/// Every size of Qwen2.5; Coder and Math models have the shapes of their sizes.
const PUBLISHED: [Shape; 8] = [
    shape("0.5B", [896, 14, 2, 4864], &[2]),
    shape("1.5B", [1536, 12, 2, 8960], &[2, 4]),
    shape("3B", [2048, 16, 2, 11008], &[2, 4, 8]),
    shape("7B", [3584, 28, 4, 18944], &[2, 4]),
    shape("14B", [5120, 40, 8, 13824], &[2, 4, 8]),
    shape("32B", [5120, 40, 8, 27648], &[2, 4, 8]),
    shape("72B", [8192, 64, 8, 29568], &[2, 4, 8]),
    // The official quantised files have a wider MLP.
    shape("72B quantised", [8192, 64, 8, 29696], &[2, 4, 8]),
];

fn spec(shape: &Shape) -> ModelSpec {
    let config = json!({
        "model_type": "qwen2", "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": 2, "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads, "vocab_size": 1000, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": false,
    });
    ModelSpec::new(&Config::from_json("config.json", &config.to_string()).expect(shape.name))
}

/// The parts of all `ranks` ranks, or why the model cannot be split over them.
fn shards(shape: &Shape, ranks: usize) -> qwen_core::Result<Vec<ModelSpec>> {
    (0..ranks).map(|rank| spec(shape).shard(Shard { rank, world_size: ranks })).collect()
}

#[test]
fn every_published_shape_says_over_how_many_ranks_it_can_be_cut() {
    for shape in &PUBLISHED {
        let counts: Vec<usize> = spec(shape).rank_counts().collect();
        for ranks in [2, 4, 8] {
            let divides = shape.ranks.contains(&ranks);
            assert_eq!(counts.contains(&ranks), divides, "{} over {ranks}", shape.name);
            match shards(shape, ranks) {
                Ok(_) => assert!(divides, "{} over {ranks}", shape.name),
                Err(error) => {
                    assert!(!divides, "{} over {ranks}: {error}", shape.name);
                    let works = counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    let expected = format!("can be cut over this many ranks: {works}");
                    assert!(error.to_string().ends_with(&expected), "{error}");
                }
            }
        }
    }
}

/// Check that the ranks' cuts of one matrix are consecutive and add up to the whole, by rows or by columns.
fn tile(name: &str, cuts: &[Cut]) {
    let (rows, cols) = cuts[0].shape;
    let (mut row, mut col) = (0, 0);
    for cut in cuts {
        if cut.cols == (0..cols) {
            assert_eq!(cut.rows.start, row, "{name}");
            row = cut.rows.end;
        } else {
            assert_eq!((cut.cols.start, &cut.rows), (col, &(0..rows)), "{name}");
            col = cut.cols.end;
        }
    }
    assert!((row, col) == (rows, 0) || (row, col) == (0, cols), "{name}");
}

#[test]
fn the_cuts_of_all_ranks_make_up_the_model() {
    for shape in &PUBLISHED {
        let head_dim = shape.hidden_size / shape.num_attention_heads;
        let group = shape.num_attention_heads / shape.num_key_value_heads;
        for ranks in shape.ranks {
            let parts = shards(shape, *ranks).unwrap();
            let cuts = |take: &dyn Fn(&ModelSpec) -> Cut| parts.iter().map(take).collect::<Vec<_>>();
            tile(shape.name, &cuts(&|part| part.qkv_proj(1).cuts[0].clone()));
            tile(shape.name, &cuts(&|part| part.o_proj(1).cuts[0].clone()));
            tile(shape.name, &cuts(&|part| part.gate_up_proj(1).cuts[0].clone()));
            tile(shape.name, &cuts(&|part| part.gate_up_proj(1).cuts[1].clone()));
            tile(shape.name, &cuts(&|part| part.down_proj(1).cuts[0].clone()));
            for part in &parts {
                // A rank holds the K/V heads of its query heads, and no others.
                let [q, k, v] = part.qkv_proj(1).cuts.try_into().unwrap();
                let queries = q.rows.start / head_dim..q.rows.end / head_dim;
                let served = queries.start / group * head_dim..queries.end.div_ceil(group) * head_dim;
                assert_eq!((&k.rows, &v.rows), (&served, &served), "{} over {ranks}", shape.name);
                assert_eq!(part.heads.num_attention_heads % part.heads.num_key_value_heads, 0);
            }
        }
    }
}

#[test]
fn a_part_without_its_head_holds_no_output_weights() {
    let names = |spec: &ModelSpec| spec.weights().into_iter().map(|weight| weight.name).collect::<Vec<_>>();
    let whole = spec(&PUBLISHED[3]);
    assert!(names(&whole).contains(&"lm_head.weight".to_owned()));
    let headless = whole.clone().without_head();
    assert!(!names(&headless).contains(&"lm_head.weight".to_owned()));
    assert!(names(&headless).contains(&"model.embed_tokens.weight".to_owned()));
    assert_eq!(whole.vector_bytes() - headless.vector_bytes(), 4 * 3584);
}
