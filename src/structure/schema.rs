//! JSON schemas as the compiler takes them: with the white space and the bounds of a [`Grammar`].

use serde_json::{Map, Value, json};

use crate::grammar::{Grammar, Whitespace};

/// The deepest schema.
const MAX_DEPTH: usize = 100;

/// A space, or a line break with an indentation.
const BOUNDED: &str = r"\x20|\n(\x20{0,24}|\t{0,8})";

/// The schema with what `grammar` says of white space and bounds.
///
/// # Errors
/// For a schema that is nested too deeply, and for options of the compiler in it.
pub(super) fn prepared(schema: &Value, grammar: &Grammar) -> Result<Value, String> {
    if depth_exceeds(schema, MAX_DEPTH) {
        return Err(format!("the schema is nested more than {MAX_DEPTH} levels deep"));
    }
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("the schema `false` allows nothing".into()),
        _ => return Err("a schema is an object or a boolean".into()),
    };
    if schema.get("x-guidance").is_some() {
        return Err("`x-guidance` in a schema is not read: set what it says on the `Grammar`".into());
    }
    cap(&mut schema, grammar);
    let options = match &grammar.whitespace {
        Whitespace::Bounded => json!({"whitespace_pattern": BOUNDED}),
        Whitespace::Compact => json!({"whitespace_flexible": false}),
        Whitespace::Any => json!({"whitespace_flexible": true}),
        Whitespace::Pattern(pattern) => json!({"whitespace_pattern": pattern}),
    };
    if let Value::Object(schema) = &mut schema {
        schema.insert("x-guidance".into(), options);
    }
    Ok(schema)
}

/// Without recursion: the depth is what is asked.
fn depth_exceeds(value: &Value, most: usize) -> bool {
    let mut rest = vec![(value, 0)];
    while let Some((value, depth)) = rest.pop() {
        if depth > most {
            return true;
        }
        match value {
            Value::Object(map) => rest.extend(map.values().map(|value| (value, depth + 1))),
            Value::Array(values) => rest.extend(values.iter().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    false
}

/// Bound the strings and arrays to which the schema sets no bound.
fn cap(schema: &mut Value, grammar: &Grammar) {
    let Value::Object(map) = schema else { return };
    for (key, value) in map.iter_mut() {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().for_each(|schema| cap(schema, grammar));
            }
            ("items" | "additionalProperties" | "additionalItems" | "propertyNames" | "contains", value) => {
                cap(value, grammar);
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(|schema| cap(schema, grammar));
            }
            _ => {}
        }
    }
    let is_open = |of: &str, bounds: &[&str]| {
        has_type(map, of) && !["const", "enum"].iter().chain(bounds).any(|key| map.contains_key(*key))
    };
    let string = is_open("string", &["maxLength", "pattern", "format"]);
    let array = is_open("array", &["maxItems"]);
    let at_least = |key: &str| map.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (min_length, min_items) = (at_least("minLength"), at_least("minItems"));
    if let Some(most) = grammar.max_length.filter(|_| string) {
        map.insert("maxLength".into(), (most as u64).max(min_length).into());
    }
    if let Some(most) = grammar.max_items.filter(|_| array) {
        map.insert("maxItems".into(), (most as u64).max(min_items).into());
    }
}

fn has_type(schema: &Map<String, Value>, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    }
}
