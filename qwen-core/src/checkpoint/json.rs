//! Typed reads from the JSON objects of a checkpoint's configuration files.
//!
//! Here: the leniency that those files need (integers in place of floats and the reverse, `null` for "not set", one id
//! or a list of ids) and errors that name file and key. What keys mean is defined in [`crate::checkpoint::config`] and
//! [`crate::checkpoint::generation_config`].
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::checkpoint::files::{self, invalid};
use crate::error::{Error, Result};

/// The size limit of a configuration file. Published ones have a few kilobytes; parsed, they take up to ten times as
/// much.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// One JSON object, with its file and the dotted path of its parents.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top-level object of a file.
    pub(crate) fn root(path: &'a Path, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Fields { path, prefix: String::new(), map }),
            other => Err(invalid(path, format!("expected a JSON object, found {}", describe(other)))),
        }
    }

    /// The value of `key`; `null` counts as missing.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// All keys with their values.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// The nested object `key`.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { path: self.path, prefix: self.dotted(key) + ".", map })),
            Some(other) => Err(self.expected(key, "an object", other)),
        }
    }

    /// A string.
    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.expected(key, "a string", other)),
        }
    }

    /// `true` or `false`.
    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.expected(key, "true or false", other)),
        }
    }

    /// A number within `min..=max`; an integer counts.
    pub(crate) fn f64(&self, key: &str, min: f64, max: f64) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(self.expected(key, &format!("a number from {min:?} to {max:?}"), value)),
        }
    }

    /// A whole number within `min..=max`; a float without a fraction counts.
    pub(crate) fn usize(&self, key: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match whole(value).and_then(|number| usize::try_from(number).ok()) {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(self.expected(key, &format!("a whole number from {min} to {max}"), value)),
        }
    }

    /// A token id or a list of them; missing means none.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |value: &Value| {
            whole(value)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.expected(key, "a token id or a list of token ids", value))
        };
        match value {
            Value::Array(values) => values.iter().map(one).collect(),
            value => Ok(vec![one(value)?]),
        }
    }

    /// `value`, or the error that `key` is missing.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, "is missing"))
    }

    /// An error about `key`.
    pub(crate) fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::InvalidConfig { path: self.path.to_path_buf(), key: self.dotted(key), reason: reason.into() }
    }

    /// An [`Error::Unsupported`] about `key`.
    pub(crate) fn unsupported(&self, key: &str, what: &str, reason: impl Into<String>) -> Error {
        Error::unsupported(format!("{what} ({}: key `{}`)", self.path.display(), self.dotted(key)), reason)
    }

    fn expected(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(key, format!("expected {expected}, found {}", describe(found)))
    }

    fn dotted(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// The text of a configuration file. Anything other than a regular file of a sensible size is refused before it is
/// read.
pub(crate) fn read_config(path: &Path) -> Result<String> {
    files::read_text(path, MAX_CONFIG_BYTES)
}

/// The JSON value of a file's text. `NaN`, `Infinity` and `-Infinity`, which Python writes and reads but JSON lacks,
/// become strings: ignored if the key is not used, and an error that shows the word if a number is needed.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Value> {
    let not_json = |error: serde_json::Error| {
        // If the file is a server's message, it helps to show it.
        let begins = text.trim_start();
        let shown: String = begins.chars().take(40).collect();
        match begins.starts_with(['{', '[']) || begins.is_empty() {
            true => invalid(path, format!("not JSON: {error}")),
            false => invalid(path, format!("not JSON: {error}; it begins with {shown:?}")),
        }
    };
    serde_json::from_str(text).or_else(|error| match quote_non_finite(text) {
        Some(quoted) => serde_json::from_str(&quoted).map_err(not_json),
        None => Err(not_json(error)),
    })
}

/// The text with quotes around every `NaN`, `Infinity` and `-Infinity` outside of strings; `None` if there is none.
fn quote_non_finite(text: &str) -> Option<String> {
    const NAMES: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    let mut out = String::new();
    let (mut rest, mut in_string, mut found) = (text, false, false);
    while let Some(first) = rest.chars().next() {
        let name = NAMES.iter().find(|name| !in_string && rest.starts_with(**name));
        let len = match (name, first) {
            (Some(name), _) => {
                found = true;
                out.extend(["\"", name, "\""]);
                rest = rest.strip_prefix(*name).unwrap_or_default();
                continue;
            }
            (None, '\\') if in_string => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            (None, first) => {
                in_string ^= first == '"';
                first.len_utf8()
            }
        };
        let (taken, left) = rest.split_at(len);
        out.push_str(taken);
        rest = left;
    }
    found.then_some(out)
}

/// `value` as a non-negative whole number, whether written as `4` or as `4.0`.
fn whole(value: &Value) -> Option<u64> {
    // 2^53: up to here every whole number is exact in f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|number| number.fract() == 0.0 && (0.0..=EXACT).contains(number))
            .map(|number| number as u64)
    })
}

/// A value as shown in an error: short, whatever the file contains.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.chars().count() <= 60 => format!("{text:?}"),
        Value::String(text) => format!("a string of {} bytes", text.len()),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(map) => format!("an object of {} keys", map.len()),
    }
}

/// The entries of a JSON object in the file's order, with values of one type. Serde's maps keep the last of two equal
/// keys; here a duplicate is an error, and an error in a value names its key. `__metadata__` is skipped: in safetensors
/// headers it is free text.
pub(crate) struct Entries<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
    type Value = Entries<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("`{key}` appears twice")));
            }
            if key == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match map.next_value() {
                Ok(value) => entries.push((key, value)),
                Err(error) => return Err(A::Error::custom(format_args!("`{key}`: {error}"))),
            }
        }
        Ok(Entries(entries))
    }
}
