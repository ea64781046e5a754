//! The entries of a JSON object whose values are kept as the text that they are: nothing is lost of a number that no type
//! of Rust's holds, and keys that are not known come out as they went in.

use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Keys and values in their order.
pub(crate) struct Entries(Vec<(String, Box<RawValue>)>);

impl Entries {
    /// The text under `key`, which is gone from here afterwards. Where a key comes twice the last value stands.
    pub(crate) fn take(&mut self, key: &str) -> Option<Box<RawValue>> {
        let mut found = None;
        while let Some(at) = self.0.iter().position(|(name, _)| name == key) {
            found = Some(self.0.remove(at).1);
        }
        found
    }

    /// The value under `key`; `None` where there is none, or `null`.
    pub(crate) fn take_as<T: DeserializeOwned, E: Error>(&mut self, key: &str) -> Result<Option<T>, E> {
        let Some(json) = self.take(key) else { return Ok(None) };
        serde_json::from_str(json.get()).map_err(|e| E::custom(format!("`{key}`: {e}")))
    }

    /// What is left.
    pub(crate) fn rest<E: Error>(self) -> Result<Map<String, Value>, E> {
        let entry = |(key, json): (String, Box<RawValue>)| {
            let value = serde_json::from_str(json.get()).map_err(|e| E::custom(format!("`{key}`: {e}")))?;
            Ok((key, value))
        };
        self.0.into_iter().map(entry).collect()
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
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
