//! Values as Python writes them: `json.dumps`, `str` and `repr`.
//!
//! A model has seen its training text with Python's spelling of every number and separator; another spelling is
//! other tokens. Which filters use this is said in `environment`.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::value::{Kwargs, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Deeper than any JSON text can be that this crate reads.
const MAX_DEPTH: usize = 256;

/// An integer beyond 128 bits: Python's integers have no end, and all that happens to it is that it is written.
#[derive(Debug)]
pub(super) struct BigInt(pub(super) String);

impl Object for BigInt {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `tojson` filter as transformers defines it: no HTML escapes, and characters beyond ASCII kept.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Some(spaces)) if spaces <= 64 => Some(" ".repeat(spaces)),
            _ => {
                return Err(invalid(
                    "tojson: `indent` is a number of spaces up to 64, or a string",
                ));
            }
        },
    };
    let (item_separator, key_separator) = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |i| pair.get_item_by_index(i).map(|part| part.to_string());
            (part(0)?, part(1)?)
        }
        _ => (
            if indent.is_some() { "," } else { ", " }.to_owned(),
            ": ".to_owned(),
        ),
    };
    let flag = |name| {
        options
            .get::<Option<bool>>(name)
            .map(Option::unwrap_or_default)
    };
    let mut writer = JsonWriter {
        text: String::new(),
        ensure_ascii: flag("ensure_ascii")?,
        sort_keys: flag("sort_keys")?,
        indent,
        item_separator,
        key_separator,
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.text)
}

struct JsonWriter {
    text: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self
                .text
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.text.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.value(item, depth + 1)?;
                }
                self.close(']', items.is_empty(), depth);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.text.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.key(key)?;
                    self.text.push_str(&self.key_separator);
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close('}', keys.is_empty(), depth);
            }
            kind => match value.downcast_object_ref::<BigInt>() {
                Some(BigInt(digits)) => self.text.push_str(digits),
                None => {
                    return Err(invalid(format!(
                        "tojson: a value of type {kind} is not JSON"
                    )));
                }
            },
        }
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None => self.text.push_str("\"null\""),
            ValueKind::Bool => self.text.push_str(if key.is_true() {
                "\"true\""
            } else {
                "\"false\""
            }),
            ValueKind::Number => self.string(&number(key)),
            kind => return Err(invalid(format!("tojson: a key of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn separate(&mut self, i: usize, depth: usize) {
        if i > 0 {
            self.text.push_str(&self.item_separator);
        }
        self.line(depth);
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
        self.text.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text
                .extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for c in string.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        push(&mut self.text, format_args!("\\u{unit:04x}"));
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }
}

/// Python's `str`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => {
            let mut text = String::new();
            repr(value, &mut text, 0)?;
            Ok(text)
        }
    }
}

fn repr(value: &Value, text: &mut String, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => text.push_str("Undefined"),
        ValueKind::None => text.push_str("None"),
        ValueKind::Bool => text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => text.push_str(&python_number(value)),
        ValueKind::String => repr_string(value.as_str().unwrap_or_default(), text),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() {
                ('(', ')')
            } else {
                ('[', ']')
            };
            text.push(open);
            for (i, item) in value.try_iter()?.enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                repr(&item, text, depth + 1)?;
            }
            if value.is_tuple() && value.len() == Some(1) {
                text.push(',');
            }
            text.push(close);
        }
        ValueKind::Map => {
            text.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                repr(&key, text, depth + 1)?;
                text.push_str(": ");
                repr(&value.get_item(&key)?, text, depth + 1)?;
            }
            text.push('}');
        }
        _ => push(text, format_args!("{value}")),
    }
    Ok(())
}

fn repr_string(string: &str, text: &mut String) {
    let quote = if string.contains('\'') && !string.contains('"') {
        '"'
    } else {
        '\''
    };
    text.push(quote);
    for c in string.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c == quote => {
                text.push('\\');
                text.push(c);
            }
            c if is_printable(c) => text.push(c),
            c => match u32::from(c) {
                n @ ..=0xff => push(text, format_args!("\\x{n:02x}")),
                n @ ..=0xffff => push(text, format_args!("\\u{n:04x}")),
                n => push(text, format_args!("\\U{n:08x}")),
            },
        }
    }
    text.push(quote);
}

/// Whether Python's `repr` leaves the character as it is. The standard library's own escaping draws the same line
/// (but for what newer Unicode added); a letter before it keeps combining marks from being escaped.
fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'') || ['a', c].iter().collect::<String>().escape_debug().nth(1) == Some(c)
}

/// A number as JSON writes it in Python: `repr`, except for the three that are no numbers.
fn number(value: &Value) -> String {
    match float(value) {
        Some(x) if x.is_nan() => "NaN".into(),
        Some(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Some(x) => repr_float(x),
        None => value.to_string(),
    }
}

fn python_number(value: &Value) -> String {
    match float(value) {
        Some(x) if x.is_nan() => "nan".into(),
        Some(x) if x.is_infinite() => if x > 0.0 { "inf" } else { "-inf" }.into(),
        Some(x) => repr_float(x),
        None => value.to_string(),
    }
}

fn float(value: &Value) -> Option<f64> {
    if value.is_integer() {
        None
    } else {
        f64::try_from(value.clone()).ok()
    }
}

/// The shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on.
fn repr_float(x: f64) -> String {
    let shortest = format!("{x:e}");
    let Some((digits, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let Ok(exponent) = exponent.parse::<i32>() else {
        return shortest;
    };
    if (-4..16).contains(&exponent) {
        // `{:?}` writes these without an exponent, and with ".0" where there is no fraction.
        let plain = format!("{x}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!(
            "a value is nested more than {MAX_DEPTH} deep"
        )));
    }
    Ok(())
}

/// Writing to a string does not fail.
fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

fn invalid(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(repr_float(x), text);
        }
    }

    #[test]
    fn strings_are_quoted_as_python_quotes_them() {
        for (string, quoted) in [
            ("é", "'é'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("a\nb\\", "'a\\nb\\\\'"),
            ("\0\u{7f}\u{a0}", "'\\x00\\x7f\\xa0'"),
            ("\u{200b}\u{e000}e\u{301}", "'\\u200b\\ue000e\u{301}'"),
            ("😀\u{f0000}", "'😀\\U000f0000'"),
        ] {
            let mut text = String::new();
            repr_string(string, &mut text);
            assert_eq!(text, quoted);
        }
    }
}
