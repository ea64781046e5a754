//! Some 300 JSON schemas of our own, family by family, in the manner of published suites: what answers are sampled from and
//! validated by, and what masks are timed with.

mod families;

use qwen::bench_support::Grammars;
use qwen::core::engine::sampling::{Constraint, Sampler, SamplingParams, Workspace};
use qwen::{Grammar, Tokenizer};
use serde_json::Value;

pub use families::all;

/// A schema with the name of its family.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its family, and its number there.
    pub name: String,
    /// The schema.
    pub schema: Value,
}

/// A text that was drawn without a model: from random logits, at temperature 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Its token ids.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Whether it ended by itself.
    pub has_ended: bool,
}

/// The ids that end texts of a tokenizer.
///
/// # Panics
/// Where it has none.
pub fn ends(tokenizer: &Tokenizer) -> Vec<u32> {
    vec![tokenizer.eos_token_id().expect("the tokenizer has a token that ends texts")]
}

/// Draw a text of at most `most` tokens.
///
/// # Errors
/// What the grammar does not allow any more, as text.
pub fn draw(
    tokenizer: &Tokenizer,
    constraint: &dyn Constraint,
    seed: u64,
    most: usize,
) -> Result<Drawn, Box<dyn std::error::Error>> {
    let ends = ends(tokenizer);
    let params = SamplingParams::new().temperature(2.0).seed(seed);
    let mut sampler = Sampler::new(params, &[])?.stop_token_ids(&ends).constrained(constraint.start());
    let (mut ids, mut workspace) = (Vec::new(), Workspace::default());
    let mut logits = vec![0.0; tokenizer.num_ids()];
    let mut random = seed;
    while ids.len() < most {
        logits.iter_mut().for_each(|logit| *logit = normal(&mut random));
        let id = sampler.sample(&ids, &mut logits, &mut workspace)?;
        if ends.contains(&id) {
            let text = tokenizer.decode(&ids, false);
            return Ok(Drawn { ids, text, has_ended: true });
        }
        ids.push(id);
    }
    let text = tokenizer.decode(&ids, false);
    Ok(Drawn { ids, text, has_ended: false })
}

/// About a normal distribution, as logits have.
fn normal(random: &mut u64) -> f32 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let mixed = (*random ^ (*random >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed.to_le_bytes().iter().map(|byte| f32::from(*byte) / 255.0 - 0.5).sum::<f32>() * 2.0
}

/// The grammar of a case, with bounds on what its schema leaves open, so that random texts end.
pub fn grammar(case: &Case) -> Grammar {
    Grammar::json_schema(case.schema.clone()).max_length(8).max_items(3)
}

/// The grammars of a tokenizer without an engine.
pub fn grammars(tokenizer: &Tokenizer) -> Grammars {
    Grammars::new(tokenizer.clone())
}
