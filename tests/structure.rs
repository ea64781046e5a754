//! Answers that have to be something: JSON of a schema, a regular expression, a grammar.
#![cfg(feature = "structure")]

mod common;

use common::{demo, options};
use qwen::{Engine, ErrorKind, FinishReason, GenerateOptions, Grammar, Speculation};
use serde_json::{Value, json};

fn engine() -> Engine {
    options().load(demo()).unwrap()
}

fn answer(engine: &Engine, grammar: Grammar, options: GenerateOptions) -> (String, Option<FinishReason>) {
    let mut stream = engine.generate("What is 3 + 4?", &options.grammar(grammar)).unwrap();
    let text = stream.by_ref().collect::<qwen::Result<String>>().unwrap();
    (text, stream.finish_reason())
}

fn wild(seed: u64) -> GenerateOptions {
    GenerateOptions::new().temperature(2.0).top_k(0).top_p(1.0).repetition_penalty(1.0).seed(seed).max_new_tokens(200)
}

#[test]
fn an_answer_is_what_it_has_to_be() {
    let engine = engine();
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false
    });
    for seed in 0..20 {
        let (text, reason) = answer(&engine, Grammar::json_schema(person.clone()), wild(seed));
        assert_eq!(reason, Some(FinishReason::Stop), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["name"].as_str().unwrap().chars().count() <= 10, "{text}");
        assert!(value["age"].as_u64().unwrap() <= 130, "{text}");
        assert!(value["tags"].as_array().unwrap().iter().all(|tag| tag == "a" || tag == "b"), "{text}");
        assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
        let (text, _) = answer(&engine, Grammar::regex("(yes|no), [0-9]{2}/[a-c]+x"), wild(seed));
        let (yes, rest) = text.split_once(", ").unwrap();
        assert!(yes == "yes" || yes == "no");
        assert_eq!(rest.as_bytes()[2], b'/');
        let (text, _) = answer(&engine, Grammar::lark("start: \"(\" start \")\" | \"x\""), wild(seed));
        let depth = text.find('x').unwrap_or(text.len());
        assert!(text[..depth].chars().all(|c| c == '('), "{text}");
    }
}

#[test]
fn guesses_do_not_change_the_answer() {
    let engine = engine();
    let schema = json!({"type": "object", "properties": {"a quite long name": {"type": "string", "maxLength": 20}, "another": {"type": "number"}},
        "required": ["a quite long name", "another"], "additionalProperties": false});
    for seed in 0..10 {
        let [plain, guessed] = [Speculation::Off, Speculation::PromptLookup].map(|speculation| {
            answer(&engine, Grammar::json_schema(schema.clone()), wild(seed).speculation(speculation))
        });
        assert_eq!(plain, guessed);
    }
    assert!(engine.stats().accepted_tokens > 0);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let engine = engine();
    for (grammar, says) in [
        (Grammar::json_schema(json!({"oneOf": [{"minimum": 1}, {"type": "number"}]})), "oneOf"),
        (Grammar::json_schema(json!({"$ref": "https://example.com/schema.json"})), "$ref"),
        (Grammar::json_schema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (Grammar::json_schema(json!({"type": "string", "format": "unheard of"})), "format"),
        (Grammar::json_schema(json!(3)), "an object or a boolean"),
        (Grammar::json_schema(json!(false)), "nothing"),
        (Grammar::json_schema(json!({"x-guidance": {"lenient": true}})), "x-guidance"),
        (Grammar::regex("("), ""),
        (Grammar::regex("(?=a)b"), ""),
        (Grammar::lark("start: missing"), "missing"),
        (Grammar::lark(""), ""),
    ] {
        let error = engine.generate("Hi", &GenerateOptions::new().grammar(grammar.clone())).unwrap_err();
        println!("{error}");
        assert_eq!(error.kind(), ErrorKind::Grammar, "{grammar:?}: {error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
