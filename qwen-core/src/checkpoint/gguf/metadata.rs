//! The metadata of a GGUF file: values of a few types by key.
//!
//! Here: the types, and reading them by key. Not here: what keys mean ([`super::config`] for the model's, the
//! text layer for those that begin with `tokenizer.`).

use std::collections::BTreeMap;

use super::reader::{Reader, shown};
use super::strings::Strings;
use crate::error::Result;

/// The maximum nesting of arrays. Published files have no nested ones.
const MAX_DEPTH: usize = 4;

/// The metadata of a GGUF file.
///
/// ```no_run
/// use qwen_core::Checkpoint;
///
/// let checkpoint = Checkpoint::open("qwen2.5-0.5b-instruct-q4_k_m.gguf")?;
/// let metadata = checkpoint.gguf_metadata().expect("it is a GGUF file");
/// assert_eq!(metadata.get_str("general.architecture"), Some("qwen2"));
/// assert_eq!(metadata.get_u32("qwen2.block_count"), Some(24));
/// let tokens = metadata.strings("tokenizer.ggml.tokens").expect("it has a vocabulary");
/// println!("{} tokens, the last one {:?}", tokens.len(), tokens.iter().last());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // named as what they hold
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A list of values of one type.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // named as what they hold
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Metadata {
    /// The value of `key`, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Set the value of `key` and return the previous one.
    ///
    /// ```
    /// use qwen_core::checkpoint::gguf::{Metadata, Value};
    ///
    /// let mut metadata = Metadata::default();
    /// assert_eq!(metadata.insert("qwen2.block_count", Value::U32(24)), None);
    /// assert_eq!(metadata.get_u32("qwen2.block_count"), Some(24));
    /// ```
    pub fn insert(&mut self, key: impl Into<String>, value: Value) -> Option<Value> {
        self.entries.insert(key.into(), value)
    }

    /// Remove the value of `key`.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.entries.remove(key)
    }

    /// All keys with their values, in the order of the keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub fn get_bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A whole number of any integer type, if it fits.
    pub fn get_u32(&self, key: &str) -> Option<u32> {
        u32::try_from(self.get(key)?.as_u64()?).ok()
    }

    /// A whole number of any integer type, if it is not negative.
    pub fn get_u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// A token id; `None` if the file has -1 or the largest 32-bit number, which both mean "none".
    pub fn token_id(&self, key: &str) -> Option<u32> {
        self.get_u32(key).filter(|id| *id != u32::MAX)
    }

    /// A float of either width.
    pub fn get_f64(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::F32(value) => Some((*value).into()),
            Value::F64(value) => Some(*value),
            _ => None,
        }
    }

    /// A list of strings.
    pub fn strings(&self, key: &str) -> Option<&Strings> {
        match self.get(key)? {
            Value::Array(Array::String(values)) => Some(values),
            _ => None,
        }
    }

    /// A list of signed 32-bit numbers.
    pub fn i32s(&self, key: &str) -> Option<&[i32]> {
        match self.get(key)? {
            Value::Array(Array::I32(values)) => Some(values),
            _ => None,
        }
    }

    /// A list of 32-bit floats.
    pub fn f32s(&self, key: &str) -> Option<&[f32]> {
        match self.get(key)? {
            Value::Array(Array::F32(values)) => Some(values),
            _ => None,
        }
    }

    /// Append all entries in the file's format.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.entries {
            write_string(key, out);
            value.write(out);
        }
    }

    /// Read `count` entries.
    pub(super) fn read(reader: &mut Reader<'_>, count: usize) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for index in 0..count {
            reader.reading(format!("entry {index} of the metadata"));
            let key = reader.name()?;
            reader.reading(format!("key `{}`", shown(&key)));
            let value = Value::read(reader)?;
            if entries.insert(key, value).is_some() {
                return Err(reader.error("appears twice: it is unclear which value is meant"));
            }
        }
        Ok(Metadata { entries })
    }
}

impl Value {
    /// A whole number of any integer type, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(value) => Some(value.into()),
            Value::I8(value) => value.try_into().ok(),
            Value::U16(value) => Some(value.into()),
            Value::I16(value) => value.try_into().ok(),
            Value::U32(value) => Some(value.into()),
            Value::I32(value) => value.try_into().ok(),
            Value::U64(value) => Some(value),
            Value::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value as an error shows it: short, whatever the file holds.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::U8(value) => value.to_string(),
            Value::I8(value) => value.to_string(),
            Value::U16(value) => value.to_string(),
            Value::I16(value) => value.to_string(),
            Value::U32(value) => value.to_string(),
            Value::I32(value) => value.to_string(),
            Value::U64(value) => value.to_string(),
            Value::I64(value) => value.to_string(),
            Value::F32(value) => format!("{value:?}"),
            Value::F64(value) => format!("{value:?}"),
            Value::Bool(value) => value.to_string(),
            Value::String(text) if text.chars().count() <= 60 => format!("{text:?}"),
            Value::String(text) => format!("a string of {} bytes", text.len()),
            Value::Array(array) => format!("a list of {}", array.len()),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(value) => write_value(0, value.to_le_bytes(), out),
            Value::I8(value) => write_value(1, value.to_le_bytes(), out),
            Value::U16(value) => write_value(2, value.to_le_bytes(), out),
            Value::I16(value) => write_value(3, value.to_le_bytes(), out),
            Value::U32(value) => write_value(4, value.to_le_bytes(), out),
            Value::I32(value) => write_value(5, value.to_le_bytes(), out),
            Value::F32(value) => write_value(6, value.to_le_bytes(), out),
            Value::Bool(value) => write_value(7, [u8::from(*value)], out),
            Value::String(text) => {
                out.extend(8_u32.to_le_bytes());
                write_string(text, out);
            }
            Value::Array(array) => {
                out.extend(9_u32.to_le_bytes());
                array.write(out);
            }
            Value::U64(value) => write_value(10, value.to_le_bytes(), out),
            Value::I64(value) => write_value(11, value.to_le_bytes(), out),
            Value::F64(value) => write_value(12, value.to_le_bytes(), out),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(match reader.u32()? {
            0 => Value::U8(u8::from_le_bytes(reader.bytes()?)),
            1 => Value::I8(i8::from_le_bytes(reader.bytes()?)),
            2 => Value::U16(u16::from_le_bytes(reader.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(reader.bytes()?)),
            4 => Value::U32(reader.u32()?),
            5 => Value::I32(i32::from_le_bytes(reader.bytes()?)),
            6 => Value::F32(f32::from_le_bytes(reader.bytes()?)),
            7 => match reader.bytes()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(reader.error(format!("{other} is neither true (1) nor false (0)"))),
            },
            8 => Value::String(reader.string()?),
            9 => Value::Array(Array::read(reader, 1)?),
            10 => Value::U64(reader.u64()?),
            11 => Value::I64(i64::from_le_bytes(reader.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(reader.bytes()?)),
            other => return Err(reader.error(format!("{other} is not a type of values: GGUF has 0 to 12"))),
        })
    }
}

impl Array {
    /// Its number of values.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(values) => values.len(),
            Array::I8(values) => values.len(),
            Array::U16(values) => values.len(),
            Array::I16(values) => values.len(),
            Array::U32(values) => values.len(),
            Array::I32(values) => values.len(),
            Array::F32(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::String(values) => values.len(),
            Array::Array(values) => values.len(),
            Array::U64(values) => values.len(),
            Array::I64(values) => values.len(),
            Array::F64(values) => values.len(),
        }
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write(&self, out: &mut Vec<u8>) {
        let len = self.len() as u64;
        match self {
            Array::U8(values) => write_values(0, values, u8::to_le_bytes, out),
            Array::I8(values) => write_values(1, values, i8::to_le_bytes, out),
            Array::U16(values) => write_values(2, values, u16::to_le_bytes, out),
            Array::I16(values) => write_values(3, values, i16::to_le_bytes, out),
            Array::U32(values) => write_values(4, values, u32::to_le_bytes, out),
            Array::I32(values) => write_values(5, values, i32::to_le_bytes, out),
            Array::F32(values) => write_values(6, values, f32::to_le_bytes, out),
            Array::Bool(values) => write_values(7, values, |value| [u8::from(value)], out),
            Array::String(strings) => {
                write_value(8, len.to_le_bytes(), out);
                strings.iter().for_each(|string| write_string(string, out));
            }
            Array::Array(arrays) => {
                write_value(9, len.to_le_bytes(), out);
                arrays.iter().for_each(|array| array.write(out));
            }
            Array::U64(values) => write_values(10, values, u64::to_le_bytes, out),
            Array::I64(values) => write_values(11, values, i64::to_le_bytes, out),
            Array::F64(values) => write_values(12, values, f64::to_le_bytes, out),
        }
    }

    /// Read an array that is nested in `depth - 1` others.
    fn read(reader: &mut Reader<'_>, depth: usize) -> Result<Self> {
        if depth > MAX_DEPTH {
            return Err(reader.error(format!("lists are nested to a depth of more than {MAX_DEPTH}")));
        }
        Ok(match reader.u32()? {
            0 => Array::U8(reader.numbers(u8::from_le_bytes)?),
            1 => Array::I8(reader.numbers(i8::from_le_bytes)?),
            2 => Array::U16(reader.numbers(u16::from_le_bytes)?),
            3 => Array::I16(reader.numbers(i16::from_le_bytes)?),
            4 => Array::U32(reader.numbers(u32::from_le_bytes)?),
            5 => Array::I32(reader.numbers(i32::from_le_bytes)?),
            6 => Array::F32(reader.numbers(f32::from_le_bytes)?),
            7 => Array::Bool(reader.numbers(|[byte]: [u8; 1]| byte != 0)?),
            8 => Array::String(Strings::read(reader)?),
            9 => {
                // At least a type and a count each.
                let count = reader.count(12, size_of::<Array>())?;
                Array::Array((0..count).map(|_| Array::read(reader, depth + 1)).collect::<Result<_>>()?)
            }
            10 => Array::U64(reader.numbers(u64::from_le_bytes)?),
            11 => Array::I64(reader.numbers(i64::from_le_bytes)?),
            12 => Array::F64(reader.numbers(f64::from_le_bytes)?),
            other => return Err(reader.error(format!("{other} is not a type of list elements: GGUF has 0 to 12"))),
        })
    }
}

/// A string in the file's format: its length and its bytes.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number of a type and what follows it.
fn write_value<const N: usize>(kind: u32, bytes: [u8; N], out: &mut Vec<u8>) {
    out.extend(kind.to_le_bytes());
    out.extend(bytes);
}

fn write_values<T: Copy, const N: usize>(kind: u32, values: &[T], bytes: impl Fn(T) -> [u8; N], out: &mut Vec<u8>) {
    write_value(kind, (values.len() as u64).to_le_bytes(), out);
    values.iter().for_each(|value| out.extend(bytes(*value)));
}
