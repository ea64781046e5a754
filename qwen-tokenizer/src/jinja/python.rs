//! Values as Python writes them: `json.dumps`, `str` and `repr`.
//!
//! A model has seen its training text with Python's spelling of every number and separator; another spelling is
//! other tokens.

use std::rc::Rc;

use super::limits::{Budget, Result, Writer, fail};
use super::value::{Dict, Items, Value, ViewKind};

/// White space as Python has it: four separators more than Unicode's property.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// How `tojson` writes.
#[derive(Debug)]
pub(super) struct JsonOptions {
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
}

/// The `tojson` filter as transformers defines it: no HTML escapes, and characters beyond ASCII kept.
pub(super) fn to_json(value: &Value, options: &JsonOptions, budget: &Budget) -> Result<String> {
    let mut writer = JsonWriter { out: Writer::new(budget), options };
    writer.value(value, 0)?;
    Ok(writer.out.text)
}

struct JsonWriter<'a> {
    out: Writer<'a>,
    options: &'a JsonOptions,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        self.out.budget.steps(1)?;
        match value {
            Value::None => self.out.push("null"),
            Value::Bool(value) => self.out.push(if *value { "true" } else { "false" }),
            Value::Int(_) | Value::LongInt(_) | Value::Float(_) => self.out.push(&json_number(value)),
            Value::Str(text) => self.string(text),
            Value::List(items) | Value::Tuple(items) => self.list(items, depth),
            Value::Dict(dict) => self.dict(dict, depth),
            value => fail(format!("tojson: a value of type {} is not JSON", value.kind())),
        }
    }

    fn list(&mut self, items: &Items, depth: usize) -> Result<()> {
        self.out.push("[")?;
        for (i, item) in items.iter().enumerate() {
            self.separate(i, depth + 1)?;
            self.value(item, depth + 1)?;
        }
        self.close("]", items.is_empty(), depth)
    }

    fn dict(&mut self, dict: &Dict, depth: usize) -> Result<()> {
        let mut entries: Vec<(&Value, &Value)> = dict.entries().collect();
        if self.options.sort_keys {
            self.out.budget.steps(entries.len() * 8)?;
            if entries.iter().all(|(key, _)| key.as_str().is_some()) {
                entries.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
            } else if entries.iter().all(|(key, _)| key.as_float().is_some()) {
                let number = |key: &Value| key.as_float().unwrap_or(0.0);
                entries.sort_by(|(a, _), (b, _)| number(a).total_cmp(&number(b)));
            } else {
                return fail("tojson: keys of different types have no order");
            }
        }
        self.out.push("{")?;
        for (i, (key, value)) in entries.into_iter().enumerate() {
            self.separate(i, depth + 1)?;
            match key {
                Value::Str(text) => self.string(text)?,
                Value::None => self.out.push("\"null\"")?,
                Value::Bool(value) => self.out.push(if *value { "\"true\"" } else { "\"false\"" })?,
                Value::Int(_) | Value::LongInt(_) | Value::Float(_) => self.string(&json_number(key))?,
                key => return fail(format!("tojson: a key of type {} is not JSON", key.kind())),
            }
            let separator = &self.options.key_separator;
            self.out.push(separator)?;
            self.value(value, depth + 1)?;
        }
        self.close("}", dict.len() == 0, depth)
    }

    fn separate(&mut self, i: usize, depth: usize) -> Result<()> {
        if i > 0 {
            self.out.push(&self.options.item_separator)?;
        }
        self.line(depth)
    }

    fn close(&mut self, bracket: &str, is_empty: bool, depth: usize) -> Result<()> {
        if !is_empty {
            self.line(depth)?;
        }
        self.out.push(bracket)
    }

    fn line(&mut self, depth: usize) -> Result<()> {
        if let Some(indent) = &self.options.indent {
            self.out.push("\n")?;
            self.out.repeat(indent, depth)?;
        }
        Ok(())
    }

    fn string(&mut self, string: &str) -> Result<()> {
        self.out.push("\"")?;
        let is_plain = |c: char| c >= ' ' && c != '"' && c != '\\' && (!self.options.ensure_ascii || c <= '~');
        let mut rest = string;
        while let Some(at) = rest.find(|c| !is_plain(c)) {
            let (plain, special) = rest.split_at(at);
            self.out.push(plain)?;
            let mut chars = special.chars();
            match chars.next().unwrap_or_default() {
                '"' => self.out.push("\\\"")?,
                '\\' => self.out.push("\\\\")?,
                '\n' => self.out.push("\\n")?,
                '\r' => self.out.push("\\r")?,
                '\t' => self.out.push("\\t")?,
                '\u{8}' => self.out.push("\\b")?,
                '\u{c}' => self.out.push("\\f")?,
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push(&format!("\\u{unit:04x}"))?;
                    }
                }
            }
            rest = chars.as_str();
        }
        self.out.push(rest)?;
        self.out.push("\"")
    }
}

/// Appends Python's `str` of a value.
pub(super) fn write_str(value: &Value, out: &mut Writer<'_>) -> Result<()> {
    match value {
        Value::Str(text) => out.push(text),
        Value::Undefined(_) => Ok(()),
        value => write_repr(value, out),
    }
}

/// Python's `str` of a value.
pub(super) fn to_str(value: &Value, budget: &Budget) -> Result<Value> {
    if let Value::Str(_) = value {
        return Ok(value.clone());
    }
    let mut out = Writer::new(budget);
    write_str(value, &mut out)?;
    Ok(Value::made(out.text))
}

/// Appends Python's `repr` of a value.
pub(super) fn write_repr(value: &Value, out: &mut Writer<'_>) -> Result<()> {
    out.budget.steps(1)?;
    match value {
        Value::Undefined(_) => out.push("Undefined"),
        Value::None => out.push("None"),
        Value::Bool(value) => out.push(if *value { "True" } else { "False" }),
        Value::Int(_) | Value::LongInt(_) | Value::Float(_) => out.push(&number_text(value)),
        Value::Str(text) => repr_string(text, out),
        Value::List(items) => repr_items(items, "[", "]", out),
        Value::Tuple(items) if items.len() == 1 => repr_items(items, "(", ",)", out),
        Value::Tuple(items) => repr_items(items, "(", ")", out),
        Value::Dict(dict) => {
            out.push("{")?;
            for (i, (key, value)) in dict.entries().enumerate() {
                out.push(if i > 0 { ", " } else { "" })?;
                write_repr(key, out)?;
                out.push(": ")?;
                write_repr(value, out)?;
            }
            out.push("}")
        }
        Value::View(view) => match view.kind {
            ViewKind::Range { start, stop, step: 1 } => out.push(&format!("range({start}, {stop})")),
            ViewKind::Range { start, stop, step } => out.push(&format!("range({start}, {stop}, {step})")),
            ViewKind::Generator => out.push("<generator object>"),
            _ => {
                out.push(value.kind())?;
                repr_items(&view.items, "([", "])", out)
            }
        },
        Value::Namespace(entries) => {
            let entries = Value::Dict(Rc::new(entries.borrow().clone()));
            out.push("<Namespace ")?;
            write_repr(&entries, out)?;
            out.push(">")
        }
        Value::Loop(state) => out.push(&format!("<LoopContext {}/{}>", state.index.get() + 1, state.items.len())),
        Value::Macro(callable) => {
            out.push("<Macro ")?;
            repr_string(&callable.definition.name, out)?;
            out.push(">")
        }
        value => {
            out.push("<")?;
            out.push(value.kind())?;
            out.push(">")
        }
    }
}

/// Appends Python's `ascii` of a value: its `repr` with all beyond ASCII escaped.
pub(super) fn write_ascii(value: &Value, out: &mut Writer<'_>) -> Result<()> {
    let mut inner = Writer::new(out.budget);
    write_repr(value, &mut inner)?;
    for c in inner.text.chars() {
        match c.is_ascii() {
            true => out.push_char(c)?,
            false => out.push(&escaped(c))?,
        }
    }
    Ok(())
}

/// A character by its number.
fn escaped(c: char) -> String {
    match u32::from(c) {
        n @ ..=0xff => format!("\\x{n:02x}"),
        n @ ..=0xffff => format!("\\u{n:04x}"),
        n => format!("\\U{n:08x}"),
    }
}

fn repr_items(items: &Items, open: &str, close: &str, out: &mut Writer<'_>) -> Result<()> {
    out.push(open)?;
    for (i, item) in items.iter().enumerate() {
        out.push(if i > 0 { ", " } else { "" })?;
        write_repr(item, out)?;
    }
    out.push(close)
}

fn repr_string(string: &str, out: &mut Writer<'_>) -> Result<()> {
    let quote = if string.contains('\'') && !string.contains('"') { "\"" } else { "'" };
    out.push(quote)?;
    for c in string.chars() {
        match c {
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            c if quote.starts_with(c) => {
                out.push("\\")?;
                out.push(quote)?;
            }
            ' '..='~' => out.push_char(c)?,
            c if is_printable(c) => out.push_char(c)?,
            c => out.push(&escaped(c))?,
        }
    }
    out.push(quote)
}

/// Whether Python's `repr` leaves the character as it is. The standard library's own escaping draws the same line
/// (but for what newer Unicode added); a letter before it keeps combining marks from being escaped.
pub(super) fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'') || ['a', c].iter().collect::<String>().escape_debug().nth(1) == Some(c)
}

/// A number as JSON writes it in Python: `repr`, except for the three that are no numbers.
fn json_number(value: &Value) -> String {
    match value {
        Value::Float(x) if x.is_nan() => "NaN".into(),
        Value::Float(x) if x.is_infinite() => if *x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        value => number_text(value),
    }
}

/// Python's `str` of a number.
pub(super) fn number_text(value: &Value) -> String {
    match value {
        Value::Int(number) => number.to_string(),
        Value::LongInt(digits) => digits.to_string(),
        Value::Float(x) if x.is_nan() => "nan".into(),
        Value::Float(x) if x.is_infinite() => if *x > 0.0 { "inf" } else { "-inf" }.into(),
        Value::Float(x) => repr_float(*x),
        _ => String::new(),
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
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
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
            let budget = Budget::of_rendering(0);
            let mut out = Writer::new(&budget);
            repr_string(string, &mut out).unwrap();
            assert_eq!(out.text, quoted);
        }
    }
}
