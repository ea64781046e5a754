//! JSON to template values without losing anything: the order of keys, integers of any length, `1.0` and `1`.
//!
//! `serde_json::Value` keeps integers up to 64 bits and turns longer ones into floats, which a template would
//! then write as such. This reads the text itself, one level at a time.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json};

use super::limits::{Budget, FaultKind};
use super::value::Value;

/// As deep as `serde_json` goes; each level is read again by the one above, so depth costs time as well as stack.
const MAX_DEPTH: usize = 128;

/// Reads JSON text. The budget only counts what is made of it.
pub(crate) fn parse(text: &str, budget: &Budget) -> Result<Value, String> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|e| e.to_string())?;
    build(raw, 0, budget)
}

/// Converts a JSON value that a caller has built.
pub(crate) fn convert(json: &Json, depth: usize, budget: &Budget) -> Result<Value, String> {
    check_depth(depth)?;
    Ok(match json {
        Json::Null => Value::None,
        Json::Bool(yes) => Value::Bool(*yes),
        Json::String(text) => string(text, budget),
        Json::Number(number) => self::number(&number.to_string())?,
        Json::Array(items) => {
            let items = items.iter().map(|item| convert(item, depth + 1, budget)).collect::<Result<_, _>>()?;
            list(items, budget)?
        }
        Json::Object(entries) => dict(convert_entries(entries, depth, budget)?, budget)?,
    })
}

/// Converts the entries of an object that a caller has built.
pub(crate) fn convert_entries(
    entries: &Map<String, Json>,
    depth: usize,
    budget: &Budget,
) -> Result<Vec<(String, Value)>, String> {
    entries.iter().map(|(key, value)| Ok((key.clone(), convert(value, depth + 1, budget)?))).collect()
}

/// A text of the input.
pub(crate) fn string(text: &str, budget: &Budget) -> Value {
    // A budget of the input has no limit.
    Value::copied(text, budget).unwrap_or(Value::None)
}

/// A list of the input.
pub(crate) fn list(items: Vec<Value>, budget: &Budget) -> Result<Value, String> {
    Value::list(items, budget).map_err(|fault| said(fault.kind()))
}

/// A mapping of the input.
pub(crate) fn dict(entries: Vec<(String, Value)>, budget: &Budget) -> Result<Value, String> {
    Value::dict(entries, budget).map_err(|fault| said(fault.kind()))
}

fn said(kind: FaultKind) -> String {
    match kind {
        FaultKind::Problem(problem) | FaultKind::Raised(problem) => problem,
        FaultKind::TooLong => String::new(),
        FaultKind::Limit { what, found, limit } => format!("{found} {what}, more than {limit}"),
    }
}

fn build(raw: &RawValue, depth: usize, budget: &Budget) -> Result<Value, String> {
    check_depth(depth)?;
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let Entries(entries) = read(text)?;
            let entry = |(key, raw)| Ok::<_, String>((key, build(raw, depth + 1, budget)?));
            dict(entries.into_iter().map(entry).collect::<Result<_, _>>()?, budget)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = read(text)?;
            list(items.into_iter().map(|raw| build(raw, depth + 1, budget)).collect::<Result<_, _>>()?, budget)
        }
        Some(b'"') => read::<String>(text).map(|text| string(&text, budget)),
        Some(b't' | b'f') => read::<bool>(text).map(Value::Bool),
        Some(b'n') => Ok(Value::None),
        _ => number(text),
    }
}

fn check_depth(depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested more than {MAX_DEPTH} deep"));
    }
    Ok(())
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn number(text: &str) -> Result<Value, String> {
    if text.contains(['.', 'e', 'E']) {
        return text.parse().map(Value::Float).map_err(|e: std::num::ParseFloatError| e.to_string());
    }
    // Python reads -0 as the integer 0.
    Ok(text.parse().map_or_else(|_| Value::LongInt(text.into()), Value::Int))
}

/// The entries of an object in their order. Where a key comes twice the last value stands, as in Python.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jinja::limits::Writer;
    use crate::jinja::python::write_repr;

    fn written(text: &str) -> Result<String, String> {
        let budget = Budget::of_input();
        let value = parse(text, &budget)?;
        let mut out = Writer::new(&budget);
        write_repr(&value, &mut out).unwrap();
        Ok(out.text)
    }

    #[test]
    fn nothing_is_lost() {
        let text = "{'b': [1, 1.0, -0, 1e400], 'a': {'x': null}, 'b2': true, 'a': 2}".replace('\'', "\"");
        assert_eq!(written(&text).unwrap(), "{'b': [1, 1.0, 0, inf], 'a': 2, 'b2': True}");
        let digits = "9".repeat(60);
        for integer in ["18446744073709551616", "-170141183460469231731687303715884105728", &digits] {
            assert_eq!(written(integer).unwrap(), integer);
        }
    }

    #[test]
    fn depth_is_an_error() {
        let deep = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(written(&deep(100)).is_ok());
        assert!(written(&deep(5000)).is_err());
        assert!(written("{").is_err());
    }
}
