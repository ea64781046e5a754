//! Lists and mappings of JSON that may hold so many entries and no more.
//!
//! An entry of two bytes in a file may take a hundred in memory, so a bound on the file is not enough.

use std::fmt;
use std::marker::PhantomData;

use ahash::AHashMap;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A list of at most `MOST` items.
#[derive(Debug)]
pub(crate) struct BoundedList<T, const MOST: usize>(pub(crate) Vec<T>);

impl<T, const MOST: usize> Default for BoundedList<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for BoundedList<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
            type Value = BoundedList<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} items")
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(BoundedList::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MOST {
                        return Err(A::Error::custom(format!("a list of more than {MOST} items")));
                    }
                    items.push(item);
                }
                Ok(BoundedList(items))
            }
        }

        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

/// A mapping of at most `MOST` entries.
#[derive(Debug)]
pub(crate) struct BoundedMap<T, const MOST: usize>(pub(crate) AHashMap<String, T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for BoundedMap<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for MapVisitor<T, MOST> {
            type Value = BoundedMap<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a mapping of at most {MOST} entries")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = AHashMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if entries.len() == MOST {
                        return Err(A::Error::custom(format!("a mapping of more than {MOST} entries")));
                    }
                    entries.insert(key, value);
                }
                Ok(BoundedMap(entries))
            }
        }

        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}
