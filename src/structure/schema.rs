//! JSON schemas as the compiler takes them: with the white space and the bounds of a [`Grammar`].

use serde_json::{Map, Value, json};

use super::formats;
use crate::grammar::{Grammar, Whitespace};

/// The deepest schema.
const MAX_DEPTH: usize = 100;

/// The largest number that a schema without bounds allows.
const MAX_NUMBER: i64 = 1_000_000_000_000_000;

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
    let mut narrower = Narrower { grammar, closes: !mentions(&schema, "allOf"), has_any: false };
    narrower.narrow_open(&mut schema);
    if narrower.has_any
        && let Value::Object(root) = &mut schema
        && let Value::Object(definitions) = root.entry("$defs").or_insert_with(|| json!({}))
    {
        let mut any = Grammar::any_value(&format!("#/$defs/{ANY}"));
        Narrower { grammar, closes: false, has_any: false }.narrow(&mut any);
        definitions.insert(ANY.into(), any);
    }
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

/// Whether a key is anywhere in it.
fn mentions(value: &Value, name: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| key == name || mentions(value, name)),
        Value::Array(values) => values.iter().any(|value| mentions(value, name)),
        _ => false,
    }
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

/// The definition of any value, where the schema has an open place.
const ANY: &str = "any value";

/// Bounds what a schema leaves open, so that every reader takes what it allows: numbers, formats, patterns, and strings and
/// arrays as the grammar says.
struct Narrower<'a> {
    grammar: &'a Grammar,
    /// Whether open places become any value within bounds. Not in schemas that are combined with others.
    closes: bool,
    has_any: bool,
}

impl Narrower<'_> {
    fn any(&mut self) -> Value {
        self.has_any = true;
        json!({"$ref": format!("#/$defs/{ANY}")})
    }

    /// Any value, or a schema.
    fn narrow_open(&mut self, schema: &mut Value) {
        let is_open = match &*schema {
            Value::Bool(open) => *open,
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        match self.closes && is_open {
            true => *schema = self.any(),
            false => self.narrow(schema),
        }
    }

    fn narrow(&mut self, schema: &mut Value) {
        let Value::Object(map) = schema else { return };
        for (key, value) in map.iter_mut() {
            match (key.as_str(), value) {
                ("properties", Value::Object(schemas)) => {
                    schemas.values_mut().for_each(|schema| self.narrow_open(schema));
                }
                ("patternProperties", Value::Object(schemas)) => {
                    let narrowed = std::mem::take(schemas).into_iter().map(|(pattern, mut schema)| {
                        self.narrow_open(&mut schema);
                        (formats::portable(&pattern), schema)
                    });
                    *schemas = narrowed.collect();
                }
                ("$defs" | "definitions", Value::Object(schemas)) => {
                    schemas.values_mut().for_each(|schema| self.narrow(schema));
                }
                ("items" | "additionalProperties", value) => self.narrow_open(value),
                ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(schemas)) => {
                    schemas.iter_mut().for_each(|schema| self.narrow(schema));
                }
                _ => {}
            }
        }
        if self.closes && has_type(map, "object") && is_whole(map, "additionalProperties") {
            let any = self.any();
            map.insert("additionalProperties".into(), any);
        }
        if self.closes && has_type(map, "array") && is_whole(map, "items") {
            let any = self.any();
            map.insert("items".into(), any);
        }
        bound_numbers(map);
        narrow_strings(map);
        bound_lengths(map, self.grammar);
    }
}

/// Whether a schema says what it allows without others, and has nothing to say of `key`.
fn is_whole(map: &Map<String, Value>, key: &str) -> bool {
    !["$ref", "anyOf", "oneOf", "const", "enum", key].iter().any(|key| map.contains_key(*key))
}

/// Formats become patterns, and patterns those of other readers.
fn narrow_strings(map: &mut Map<String, Value>) {
    if let Some(Value::String(pattern)) = map.get_mut("pattern") {
        *pattern = formats::portable(pattern);
    }
    let format = map.get("format").and_then(Value::as_str).and_then(formats::pattern);
    if let Some(pattern) = format.filter(|_| may_be(map, "string")) {
        map.remove("format");
        let has_pattern = map.contains_key("pattern");
        match map.get_mut("allOf") {
            Some(Value::Array(parts)) => parts.push(json!({"pattern": pattern})),
            _ if has_pattern => drop(map.insert("allOf".into(), json!([{"pattern": pattern}]))),
            _ => drop(map.insert("pattern".into(), pattern.into())),
        }
    }
}

/// Strings and arrays to which the schema sets no bound.
fn bound_lengths(map: &mut Map<String, Value>, grammar: &Grammar) {
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

/// Numbers without bounds stay where they are exact in every reader, and have no exponents.
fn bound_numbers(schema: &mut Map<String, Value>) {
    if !(has_type(schema, "number") || has_type(schema, "integer")) || schema.contains_key("enum") {
        return;
    }
    let bound = |schema: &Map<String, Value>, keys: [&str; 2]| {
        keys.iter().find_map(|key| schema.get(*key)).map(|value| value.as_f64().unwrap_or(f64::NAN))
    };
    let least = bound(schema, ["minimum", "exclusiveMinimum"]);
    let most = bound(schema, ["maximum", "exclusiveMaximum"]);
    let limit = MAX_NUMBER as f64;
    if most.is_none() && least.is_none_or(|least| least < limit) {
        schema.insert("maximum".into(), MAX_NUMBER.into());
    }
    if least.is_none() && most.is_none_or(|most| most > -limit) {
        schema.insert("minimum".into(), (-MAX_NUMBER).into());
    }
}

/// Whether a schema says nothing against a type.
fn may_be(schema: &Map<String, Value>, name: &str) -> bool {
    !schema.contains_key("type") || has_type(schema, name)
}

fn has_type(schema: &Map<String, Value>, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    }
}
