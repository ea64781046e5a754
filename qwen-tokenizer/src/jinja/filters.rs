//! The filters of Jinja, and `tojson` as transformers has it.
//!
//! Those that choose, order and group items are in `collections`.

use super::access;
use super::arguments::CallArguments;
use super::collections;
use super::format;
use super::limits::{Budget, Result, Writer, fail};
use super::methods;
use super::python::{self, JsonOptions, is_space, to_str};
use super::value::{Value, undefined};
use super::wordwrap;

/// `value | name(arguments)`
pub(super) fn apply(name: &str, value: Value, mut arguments: CallArguments, budget: &Budget) -> Result<Value> {
    budget.steps(1)?;
    let result = match name {
        "default" | "d" => {
            let otherwise = arguments.take("default_value").unwrap_or_else(|| Value::str(""));
            let also_false = arguments.flag("boolean")?;
            let is_missing = matches!(value, Value::Undefined(_)) || (also_false && !value.is_true());
            if is_missing { otherwise } else { value }
        }
        "string" | "safe" => to_str(&value, budget)?,
        "tojson" => tojson(&value, &mut arguments, budget)?,
        "trim" => {
            let chars = arguments.text("chars")?;
            with_text(&value, budget, |text| {
                let part = methods::strip(text, chars.as_deref(), true, true);
                if part.len() == text.len() { to_str(&value, budget) } else { Value::copied(part, budget) }
            })?
        }
        "upper" => with_text(&value, budget, |text| methods::upper(text, budget))?,
        "lower" => with_text(&value, budget, |text| methods::lower(text, budget))?,
        "capitalize" => with_text(&value, budget, |text| methods::capitalized(text, budget))?,
        "title" => with_text(&value, budget, |text| title(text, budget))?,
        "escape" | "e" | "forceescape" => with_text(&value, budget, |text| escape(text, budget))?,
        "replace" => {
            let (old, new) = (arguments.need("old")?, arguments.need("new")?);
            let count = arguments.int("count")?.and_then(|count| usize::try_from(count).ok());
            let (old, new) = (to_str(&old, budget)?, to_str(&new, budget)?);
            let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
            with_text(&value, budget, |text| methods::replace(text, old, new, count, budget))?
        }
        "center" => {
            let width = arguments.int("width")?.unwrap_or(80);
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            with_text(&value, budget, |text| methods::pad(text, width, " ", "center", budget))?
        }
        "indent" => indent(&value, &mut arguments, budget)?,
        "truncate" => truncate(&value, &mut arguments, budget)?,
        "wordcount" => with_text(&value, budget, |text| {
            let is_word = |c: char| methods::is_alnum(c) || c == '_';
            Ok(Value::Int(text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count() as i128))
        })?,
        "format" => {
            let values = arguments.rest();
            let named = std::mem::take(&mut arguments.named);
            let named = named.into_iter().map(|(name, value)| (name.to_string(), value)).collect::<Vec<_>>();
            if !named.is_empty() && !values.is_empty() {
                return fail("format: values by place and by name");
            }
            with_text(&value, budget, |text| match Value::dict(named, budget)? {
                named @ Value::Dict(_) if named.is_true() => {
                    format::percent(text, std::slice::from_ref(&named), Some(&named), budget)
                }
                _ => format::percent(text, &values, None, budget),
            })?
        }
        "length" | "count" => match value.length() {
            Some(length) => {
                budget.scan(if let Value::Str(text) = &value { text.len() } else { 0 })?;
                Value::Int(length as i128)
            }
            None => return fail(format!("{name}: a value of type {} has no length", value.kind())),
        },
        "abs" => match (value.as_int(), value) {
            (Some(number), _) => Value::Int(number.saturating_abs()),
            (_, Value::Float(number)) => Value::Float(number.abs()),
            (_, value) => return fail(format!("abs: a number, not {}", value.kind())),
        },
        "int" | "float" if matches!(value, Value::Undefined(_)) => value.defined()?,
        "int" => to_int(&value, &mut arguments)?,
        "float" => {
            let otherwise = arguments.take("default").unwrap_or(Value::Float(0.0));
            match &value {
                Value::Str(text) => parse_float(text).map_or(otherwise, Value::Float),
                value => value.as_float().map_or(otherwise, Value::Float),
            }
        }
        "filesizeformat" => filesize(&value, &mut arguments, budget)?,
        "urlencode" => urlencode(&value, budget)?,
        "wordwrap" => wordwrap::apply(&value, &mut arguments, budget)?,
        "round" => round(&value, &mut arguments)?,
        "attr" => {
            if let Value::Undefined(name) = &value {
                return Err(undefined(name));
            }
            let name = arguments.need("name")?.defined()?;
            let name = to_str(&name, budget)?;
            access::method(&value, name.as_str().unwrap_or_default())
        }
        _ => return collections::apply(name, value, arguments, apply, budget),
    };
    arguments.finish(name)?;
    Ok(result)
}

/// Calls `f` with Python's `str` of a value.
fn with_text(value: &Value, budget: &Budget, f: impl FnOnce(&str) -> Result<Value>) -> Result<Value> {
    let text = to_str(value, budget)?;
    let text = text.as_str().unwrap_or_default();
    budget.scan(text.len())?;
    f(text)
}

fn tojson(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    if let Value::Undefined(name) = value {
        return Err(undefined(name));
    }
    let ensure_ascii = arguments.flag("ensure_ascii")?;
    let indent = match arguments.take("indent") {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(value) => match value.as_int().map(|count| usize::try_from(count).unwrap_or(0)) {
            Some(count) if count <= 64 => Some(" ".repeat(count)),
            _ => return fail("tojson: `indent` is a number of spaces up to 64, or a text"),
        },
    };
    let (item_separator, key_separator) = match arguments.take("separators") {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(Value::List(pair) | Value::Tuple(pair)) => match &**pair {
            [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
            _ => return fail("tojson: `separators` are two texts"),
        },
        Some(_) => return fail("tojson: `separators` are two texts"),
    };
    let sort_keys = arguments.flag("sort_keys")?;
    let options = JsonOptions { ensure_ascii, sort_keys, indent, item_separator, key_separator };
    Ok(Value::made(python::to_json(value, &options, budget)?))
}

fn escape(text: &str, budget: &Budget) -> Result<Value> {
    let mut out = Writer::new(budget);
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
        let (before, after) = rest.split_at(at);
        out.push(before)?;
        out.push(match after.as_bytes().first() {
            Some(b'&') => "&amp;",
            Some(b'<') => "&lt;",
            Some(b'>') => "&gt;",
            Some(b'"') => "&#34;",
            _ => "&#39;",
        })?;
        rest = after.get(1..).unwrap_or_default();
    }
    out.push(rest)?;
    Ok(Value::made(out.text))
}

/// A capital at the beginning of each word, where words end at white space, hyphens and open brackets.
fn title(text: &str, budget: &Budget) -> Result<Value> {
    budget.text(0, text.len().saturating_mul(3))?;
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        let ends = is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
        match in_word {
            _ if ends => out.push(c),
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        in_word = !ends;
    }
    Ok(Value::made(out))
}

fn indent(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let width = arguments.take("width").unwrap_or(Value::Int(4));
    let (first, blank) = (arguments.flag("first")?, arguments.flag("blank")?);
    let (unit, count) = match &width {
        Value::Str(text) => (&**text, 1),
        width => match width.as_int() {
            Some(count) => (" ", usize::try_from(count.max(0)).unwrap_or(usize::MAX)),
            None => return fail("indent: `width` is a number or a text"),
        },
    };
    if value.as_str().is_none() {
        return fail(format!("indent: a text, not {}", value.kind()));
    }
    with_text(value, budget, |text| {
        let mut out = Writer::new(budget);
        let mut is_first = true;
        // Jinja adds a line break first, so that a text that ends with one ends with an empty line.
        let last = text.chars().next_back().is_none_or(|c| c != '\r' && methods::ends_line(c)).then_some("");
        for line in methods::lines(text, false).chain(last) {
            if !std::mem::take(&mut is_first) {
                out.push("\n")?;
                if blank || !line.is_empty() {
                    out.repeat(unit, count)?;
                }
            } else if first {
                out.repeat(unit, count)?;
            }
            out.push(line)?;
        }
        Ok(Value::made(out.text))
    })
}

fn truncate(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let size = |number: Option<i128>, otherwise: usize| {
        number.map_or(otherwise, |number| usize::try_from(number.max(0)).unwrap_or(usize::MAX))
    };
    let length = size(arguments.int("length")?, 255);
    let kill_words = arguments.flag("killwords")?;
    let end = arguments.text("end")?.unwrap_or_else(|| "...".into());
    let leeway = size(arguments.int("leeway")?, 5);
    if value.as_str().is_none() {
        return fail(format!("truncate: a text, not {}", value.kind()));
    }
    with_text(value, budget, |text| {
        if text.chars().count() <= length.saturating_add(leeway) {
            return to_str(value, budget);
        }
        let kept = length.saturating_sub(end.chars().count());
        let kept = text.char_indices().nth(kept).and_then(|(at, _)| text.get(..at)).unwrap_or(text);
        let kept = if kill_words { kept } else { kept.rsplit_once(' ').map_or(kept, |(before, _)| before) };
        let mut out = Writer::new(budget);
        out.push(kept)?;
        out.push(&end)?;
        Ok(Value::made(out.text))
    })
}

/// A number of bytes for people.
fn filesize(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let is_binary = arguments.flag("binary")?;
    let number = match value {
        Value::Str(text) => parse_float(text),
        value => value.as_float(),
    };
    let Some(bytes) = number else { return fail(format!("filesizeformat: a number, not {}", value.kind())) };
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    let text = if bytes == 1.0 {
        "1 Byte".to_owned()
    } else if bytes < base {
        format!("{:.0} Bytes", bytes.trunc() + 0.0)
    } else {
        let mut unit = base * base;
        let mut prefixes = "kMGTPEZY".chars().peekable();
        while bytes >= unit && prefixes.clone().nth(1).is_some() {
            unit *= base;
            prefixes.next();
        }
        let prefix = prefixes.next().unwrap_or('Y');
        let prefix = if is_binary { format!("{}i", prefix.to_ascii_uppercase()) } else { prefix.to_string() };
        format!("{:.1} {prefix}B", base * bytes / unit)
    };
    Value::copied(&text, budget)
}

/// Percent signs for what a URL does not take; `key=value` with `&` between for a mapping or pairs.
fn urlencode(value: &Value, budget: &Budget) -> Result<Value> {
    let mut out = Writer::new(budget);
    let quote = |value: &Value, in_query: bool, out: &mut Writer<'_>| -> Result<()> {
        let text = to_str(value, budget)?;
        for byte in text.as_str().unwrap_or_default().bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push_char(byte.into())?,
                b'/' if !in_query => out.push("/")?,
                b' ' if in_query => out.push("+")?,
                byte => out.push(&format!("%{byte:02X}"))?,
            }
        }
        Ok(())
    };
    let pairs = match value {
        Value::Dict(dict) => methods::entries(dict, budget)?,
        Value::List(_) | Value::Tuple(_) | Value::View(_) => value.iterate(budget)?.to_vec(),
        value => {
            quote(value, false, &mut out)?;
            return Ok(Value::made(out.text));
        }
    };
    for (i, pair) in pairs.iter().enumerate() {
        let pair = pair.iterate(budget)?;
        let [key, value] = &**pair else { return fail("urlencode: a mapping or pairs") };
        out.push(if i > 0 { "&" } else { "" })?;
        quote(key, true, &mut out)?;
        out.push("=")?;
        quote(value, true, &mut out)?;
    }
    Ok(Value::made(out.text))
}

fn to_int(value: &Value, arguments: &mut CallArguments) -> Result<Value> {
    let otherwise = arguments.take("default").unwrap_or(Value::Int(0));
    let base = arguments.int("base")?.unwrap_or(10);
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base)).unwrap_or(10);
    let of_float = |number: f64| (number.is_finite() && number.abs() < 1e38).then_some(Value::Int(number as i128));
    let result = match value {
        Value::Str(text) => {
            let text = methods::strip(text, None, true, true);
            let digits = match base {
                16 => text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text),
                8 => text.strip_prefix("0o").or_else(|| text.strip_prefix("0O")).unwrap_or(text),
                2 => text.strip_prefix("0b").or_else(|| text.strip_prefix("0B")).unwrap_or(text),
                _ => text,
            };
            let whole = i128::from_str_radix(digits, base).ok().map(Value::Int);
            whole.or_else(|| parse_float(text).and_then(of_float))
        }
        Value::Float(number) => of_float(*number),
        Value::LongInt(_) => Some(value.clone()),
        value => value.as_int().map(Value::Int),
    };
    Ok(result.unwrap_or(otherwise))
}

fn parse_float(text: &str) -> Option<f64> {
    methods::strip(text, None, true, true).parse().ok()
}

fn round(value: &Value, arguments: &mut CallArguments) -> Result<Value> {
    let precision = arguments.int("precision")?.unwrap_or(0);
    let method = arguments.text("method")?;
    let precision = i32::try_from(precision.clamp(-300, 300)).unwrap_or(0);
    let scale = 10_f64.powi(precision);
    let number = match value.as_float() {
        Some(number) => number,
        None => return fail(format!("round: a number, not {}", value.kind())),
    };
    Ok(match method.as_deref().unwrap_or("common") {
        "common" if precision >= 0 => match value.as_int() {
            Some(number) => Value::Int(number),
            None => {
                let digits = usize::try_from(precision).unwrap_or(0);
                Value::Float(format!("{number:.digits$}").parse().unwrap_or(number))
            }
        },
        "common" => {
            let rounded = (number * scale).round_ties_even() / scale;
            if value.as_int().is_some() { Value::Int(rounded as i128) } else { Value::Float(rounded) }
        }
        // Python goes through an integer, which has no negative zero.
        "ceil" => Value::Float((number * scale).ceil() / scale + 0.0),
        "floor" => Value::Float((number * scale).floor() / scale + 0.0),
        _ => return fail("round: the method is `common`, `ceil` or `floor`"),
    })
}
