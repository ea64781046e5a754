//! Every text that ends by itself validates, whatever the logits: by the crate `jsonschema`.
//!
//! `SCHEMA_ANSWERS` is the number of texts that have to end, 300 without it.

use std::path::Path;

use qwen::core::engine::sampling::Constraint;
use qwen_schemas::{all, draw, ends, grammar, grammars};

#[test]
fn every_text_that_ends_by_itself_validates() {
    let wanted = std::env::var("SCHEMA_ANSWERS").map_or(300, |text| text.parse().expect("a number"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo-model");
    let tokenizer = qwen::load_tokenizer(folder).unwrap();
    let (grammars, ends, cases) = (grammars(&tokenizer), ends(&tokenizer), all());
    assert!(cases.len() >= 300, "{}", cases.len());
    let mut faults = Vec::new();
    let prepared: Vec<_> = cases
        .iter()
        .filter_map(|case| match grammars.constraint(&grammar(case), &ends) {
            Ok(constraint) => Some((case, constraint)),
            Err(error) => {
                faults.push(format!("{}: refused: {error}: {}", case.name, case.schema));
                None
            }
        })
        .collect();
    let (mut drawn, mut ended, mut has_ended) = (0, 0, vec![false; prepared.len()]);
    for seed in 0..wanted as u64 / 20 + 5 {
        for (at, (case, constraint)) in prepared.iter().enumerate() {
            if ended >= wanted && has_ended.iter().all(|has| *has) {
                break;
            }
            // After enough texts only schemas of which none has ended.
            if ended >= wanted && has_ended[at] {
                continue;
            }
            let text = match draw(&tokenizer, &**constraint as &dyn Constraint, seed * 1000 + at as u64, 300) {
                Ok(text) => text,
                Err(error) => {
                    faults.push(format!("{}: {error}", case.name));
                    has_ended[at] = true;
                    continue;
                }
            };
            drawn += 1;
            if !text.has_ended {
                continue;
            }
            (ended, has_ended[at]) = (ended + 1, true);
            let validator = jsonschema::options().should_validate_formats(true).build(&case.schema).unwrap();
            match serde_json::from_str(&text.text) {
                Ok(value) if validator.is_valid(&value) => {}
                Ok(value) => {
                    let why: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
                    faults.push(format!("{}: {:?}: {why:?}", case.name, text.text));
                }
                Err(error) => faults.push(format!("{}: {:?}: {error}", case.name, text.text)),
            }
        }
    }
    let never: Vec<&str> =
        prepared.iter().zip(&has_ended).filter(|(_, has)| !**has).map(|((case, _), _)| case.name.as_str()).collect();
    println!("{} schemas, {drawn} texts drawn, {ended} ended by themselves; never: {never:?}", cases.len());
    assert!(faults.is_empty(), "{} of {ended}:\n{}", faults.len(), faults.join("\n"));
    assert!(ended >= wanted);
}
