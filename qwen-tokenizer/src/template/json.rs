//! JSON to template values without losing anything: the order of keys, integers of any length, `1.0` and `1`.
//!
//! `serde_json::Value` keeps integers up to 64 bits and turns longer ones into floats, which a template would
//! then write as such. This reads the text itself, one level at a time.

use std::fmt;

use minijinja::Value;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json};

use super::python::BigInt;

/// As deep as `serde_json` goes; each level is read again by the one above, so depth costs time as well as stack.
const MAX_DEPTH: usize = 128;

/// Reads JSON text.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|e| e.to_string())?;
    build(raw, 0)
}

/// Converts a JSON value that a caller has built.
pub(super) fn convert(json: &Json, depth: usize) -> Result<Value, String> {
    check_depth(depth)?;
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(yes) => Value::from(*yes),
        Json::String(text) => Value::from(text.as_str()),
        Json::Number(number) => self::number(&number.to_string())?,
        Json::Array(items) => items
            .iter()
            .map(|item| convert(item, depth + 1))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::from)?,
        Json::Object(entries) => Value::from_pairs(convert_entries(entries, depth)?),
    })
}

/// Converts the entries of an object that a caller has built.
pub(super) fn convert_entries(
    entries: &Map<String, Json>,
    depth: usize,
) -> Result<Vec<(String, Value)>, String> {
    entries
        .iter()
        .map(|(key, value)| Ok((key.clone(), convert(value, depth + 1)?)))
        .collect()
}

fn build(raw: &RawValue, depth: usize) -> Result<Value, String> {
    check_depth(depth)?;
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let Entries(entries) = read(text)?;
            let build_entry = |(key, raw)| Ok::<_, String>((key, build(raw, depth + 1)?));
            Ok(Value::from_pairs(
                entries
                    .into_iter()
                    .map(build_entry)
                    .collect::<Result<Vec<(String, _)>, _>>()?,
            ))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = read(text)?;
            items
                .into_iter()
                .map(|raw| build(raw, depth + 1))
                .collect::<Result<Vec<_>, _>>()
                .map(Value::from)
        }
        Some(b'"') => read::<String>(text).map(Value::from),
        Some(b't' | b'f') => read::<bool>(text).map(Value::from),
        Some(b'n') => Ok(Value::from(())),
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
        return text
            .parse::<f64>()
            .map(Value::from)
            .map_err(|e| e.to_string());
    }
    // Python reads -0 as the integer 0.
    Ok(match (text.parse::<i64>(), text.parse::<i128>()) {
        (Ok(small), _) => Value::from(small),
        (_, Ok(large)) => Value::from(large),
        _ => Value::from_object(BigInt(text.to_owned())),
    })
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

    #[test]
    fn nothing_is_lost() {
        let text = "{'b': [1, 1.0, -0, 1e400], 'a': {'x': null}, 'b2': true}".replace('\'', "\"");
        let value = parse(&text).unwrap();
        let keys: Vec<String> = value
            .try_iter()
            .unwrap()
            .map(|key| key.to_string())
            .collect();
        assert_eq!(keys, ["b", "a", "b2"]);
        let digits = "9".repeat(60);
        for integer in [
            "18446744073709551616",
            "-170141183460469231731687303715884105728",
            &digits,
        ] {
            assert_eq!(parse(integer).unwrap().to_string(), integer);
        }
    }

    #[test]
    fn depth_is_an_error() {
        let deep = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(&deep(100)).is_ok());
        assert!(parse(&deep(5000)).is_err());
        assert!(parse("{").is_err());
    }
}
