//! Schemas, patterns and grammars: one that is accepted gives masks, and what they allow it follows.

use std::path::Path;
use std::sync::OnceLock;

use qwen::bench_support::Grammars;
use qwen::{ErrorKind, Grammar};

/// No text is followed further.
const MOST_TOKENS: usize = 12;

/// `j` and a JSON schema, `r` and a regular expression, or `l` and a grammar.
pub fn grammar(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let grammar = match text.split_at_checked(1) {
        Some(("j", schema)) => match serde_json::from_str::<serde_json::Value>(schema) {
            Ok(schema) => Grammar::json_schema(schema).max_length(5).max_items(2),
            Err(_) => return,
        },
        Some(("r", pattern)) => Grammar::regex(pattern),
        Some(("l", grammar)) => Grammar::lark(grammar),
        _ => return,
    };
    static GRAMMARS: OnceLock<(Grammars, u32)> = OnceLock::new();
    let (grammars, end) = GRAMMARS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model");
        let tokenizer = qwen::load_tokenizer(folder).expect("the demo model's tokenizer");
        let end = tokenizer.eos_token_id().expect("it has one");
        (Grammars::new(tokenizer), end)
    });
    let constraint = match grammars.constraint(&grammar, &[*end]) {
        Ok(constraint) => constraint,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Grammar, "{error}"),
    };
    let (mut state, mut answer) = (constraint.start(), Vec::new());
    let mut random = input.iter().fold(7u32, |sum, byte| sum.wrapping_mul(31) ^ u32::from(*byte));
    while answer.len() < MOST_TOKENS {
        let forced = state.forced(&answer, 4);
        let Ok(mask) = state.mask(&answer) else { return };
        assert!(forced.first().is_none_or(|id| mask.allows(*id)), "a forced token is ruled out");
        let ids: Vec<u32> = mask.ids().filter(|id| id != end).collect();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let Some(id) = ids.get(random as usize >> 8).or(ids.get(random as usize % ids.len().max(1))) else { return };
        answer.push(*id);
    }
}
