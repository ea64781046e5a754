//! Methods of texts, lists and mappings, as Python has them.

use std::rc::Rc;

use super::arguments::CallArguments;
use super::ast::Text;
use super::format;
use super::limits::{Budget, Result, Writer, fail, problem};
use super::ops::equal;
use super::python::is_space;
use super::value::{Dict, Items, Value};

const OF_TEXTS: [&str; 40] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const OF_LISTS: [&str; 3] = ["copy", "count", "index"];
const OF_MAPPINGS: [&str; 5] = ["copy", "get", "items", "keys", "values"];
/// Methods that change a mapping. The sandbox of transformers has them undefined.
const CHANGING: [&str; 6] = ["clear", "fromkeys", "pop", "popitem", "setdefault", "update"];

/// Whether `value` has a method of this name; `None` if the name is one that the sandbox takes away.
pub(super) fn has(value: &Value, name: &str) -> Option<bool> {
    match value {
        Value::Str(_) => Some(OF_TEXTS.contains(&name)),
        Value::List(_) | Value::Tuple(_) => Some(OF_LISTS.contains(&name)),
        Value::Dict(_) if CHANGING.contains(&name) => None,
        Value::Dict(_) => Some(OF_MAPPINGS.contains(&name)),
        _ => Some(false),
    }
}

/// Calls a method that [`has`] has found.
pub(super) fn call(value: &Value, name: &str, mut arguments: CallArguments, budget: &Budget) -> Result<Value> {
    let result = match value {
        Value::Str(text) => {
            budget.scan(text.len())?;
            if name == "format" {
                return format::braces(text, &arguments, budget);
            }
            of_text(value, text, name, &mut arguments, budget)?
        }
        Value::List(items) | Value::Tuple(items) => of_list(value, items, name, &mut arguments, budget)?,
        Value::Dict(dict) => of_mapping(value, dict, name, &mut arguments, budget)?,
        value => return fail(format!("{} has no method `{name}`", value.kind())),
    };
    arguments.finish(name)?;
    Ok(result)
}

fn of_mapping(
    value: &Value,
    dict: &Rc<Dict>,
    name: &str,
    arguments: &mut CallArguments,
    budget: &Budget,
) -> Result<Value> {
    match name {
        "get" => {
            let key = arguments.need("key")?;
            let otherwise = arguments.take("default").unwrap_or(Value::None);
            Ok(dict.get(&key, budget)?.cloned().unwrap_or(otherwise))
        }
        "items" => entries(dict, budget),
        "keys" => Value::list(dict.entries().map(|(key, _)| key.clone()).collect(), budget),
        "values" => Value::list(dict.entries().map(|(_, value)| value.clone()).collect(), budget),
        _ => Ok(value.clone()),
    }
}

/// The entries of a mapping as a list of pairs.
pub(super) fn entries(dict: &Dict, budget: &Budget) -> Result<Value> {
    let pair = |(key, value): (&Value, &Value)| Value::tuple(vec![key.clone(), value.clone()], budget);
    Value::list(dict.entries().map(pair).collect::<Result<_>>()?, budget)
}

fn of_list(
    value: &Value,
    items: &Rc<Items>,
    name: &str,
    arguments: &mut CallArguments,
    budget: &Budget,
) -> Result<Value> {
    if name == "copy" {
        return Ok(value.clone());
    }
    let wanted = arguments.need("value")?;
    let mut count = 0;
    for (at, item) in items.iter().enumerate() {
        if equal(item, &wanted, budget)? {
            if name == "index" {
                return Ok(Value::Int(at as i128));
            }
            count += 1;
        }
    }
    if name == "index" { fail("the value is not in the list") } else { Ok(Value::Int(count)) }
}

fn of_text(value: &Value, text: &Text, name: &str, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let part = |part: &str| if part.len() == text.len() { Ok(value.clone()) } else { Value::copied(part, budget) };
    Ok(match name {
        "strip" => part(strip(text, arguments.text("chars")?.as_deref(), true, true))?,
        "lstrip" => part(strip(text, arguments.text("chars")?.as_deref(), true, false))?,
        "rstrip" => part(strip(text, arguments.text("chars")?.as_deref(), false, true))?,
        "split" | "rsplit" => split(text, name == "rsplit", arguments, budget)?,
        "splitlines" => {
            let keep_ends = arguments.flag("keepends")?;
            texts(lines(text, keep_ends), budget)?
        }
        "partition" | "rpartition" => partition(value, text, name == "rpartition", arguments, budget)?,
        "startswith" | "endswith" => {
            let wanted = arguments.need("prefix")?;
            let (start, end) = range(text, arguments)?;
            let place = text.get(start..end);
            let is = |wanted: &Value| match (wanted, place) {
                (Value::Str(wanted), Some(place)) if name == "startswith" => Ok(place.starts_with(&**wanted)),
                (Value::Str(wanted), Some(place)) => Ok(place.ends_with(&**wanted)),
                (Value::Str(_), None) => Ok(false),
                (wanted, _) => fail(format!("{name}: a text or a tuple of texts, not {}", wanted.kind())),
            };
            let found = match &wanted {
                Value::Tuple(all) => all.iter().map(is).collect::<Result<Vec<_>>>()?.contains(&true),
                wanted => is(wanted)?,
            };
            Value::Bool(found)
        }
        "removeprefix" => part(text.strip_prefix(&*need_text(arguments, "prefix")?).unwrap_or(text))?,
        "removesuffix" => part(text.strip_suffix(&*need_text(arguments, "suffix")?).unwrap_or(text))?,
        "replace" => {
            let (old, new) = (need_text(arguments, "old")?, need_text(arguments, "new")?);
            let count = arguments.int("count")?.and_then(|count| usize::try_from(count).ok());
            replace(text, &old, &new, count, budget)?
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let wanted = need_text(arguments, "sub")?;
            let (start, end) = range(text, arguments)?;
            let Some(place) = text.get(start..end) else { return Ok(Value::Int(if name == "count" { 0 } else { -1 })) };
            if name == "count" {
                let count = if wanted.is_empty() { place.chars().count() + 1 } else { place.matches(&*wanted).count() };
                return Ok(Value::Int(count as i128));
            }
            let at = if name.starts_with('r') { place.rfind(&*wanted) } else { place.find(&*wanted) };
            match at {
                Some(at) => Value::Int(text.get(..start + at).unwrap_or_default().chars().count() as i128),
                None if name.ends_with("find") => Value::Int(-1),
                None => return fail(format!("{name}: the text is not there")),
            }
        }
        "join" => {
            let mut out = Writer::new(budget);
            for (i, item) in arguments.need("iterable")?.defined()?.iterate(budget)?.iter().enumerate() {
                let Value::Str(item) = item else { return fail(format!("join: texts, not {}", item.kind())) };
                out.push(if i > 0 { text } else { "" })?;
                out.push(item)?;
            }
            Value::made(out.text)
        }
        "upper" => changed(text, budget, |text| text.to_uppercase())?,
        "lower" | "casefold" => changed(text, budget, |text| text.to_lowercase())?,
        "capitalize" => changed(text, budget, capitalize)?,
        "title" => changed(text, budget, title)?,
        "swapcase" => changed(text, budget, |text| {
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swap).collect()
        })?,
        "zfill" => {
            let width = width(arguments)?;
            let (sign, digits) = match text.strip_prefix(['+', '-']) {
                Some(digits) => (text.get(..1).unwrap_or_default(), digits),
                None => ("", &**text),
            };
            let mut out = Writer::new(budget);
            out.push(sign)?;
            out.repeat("0", width.saturating_sub(text.chars().count()))?;
            out.push(digits)?;
            Value::made(out.text)
        }
        "center" | "ljust" | "rjust" => {
            let width = width(arguments)?;
            let fill = arguments.text("fillchar")?.unwrap_or_else(|| " ".into());
            if fill.chars().count() != 1 {
                return fail(format!("{name}: the fill is one character"));
            }
            pad(text, width, &fill, name, budget)?
        }
        "expandtabs" => {
            let size = arguments.int("tabsize")?.unwrap_or(8);
            let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
            let mut out = Writer::new(budget);
            let mut column = 0;
            for c in text.chars() {
                match c {
                    '\t' if size > 0 => {
                        out.repeat(" ", size - column % size)?;
                        column = 0;
                    }
                    '\t' => {}
                    c => {
                        out.push_char(c)?;
                        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            Value::made(out.text)
        }
        _ => Value::Bool(has_property(text, name)),
    })
}

fn has_property(text: &str, name: &str) -> bool {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    match name {
        "isascii" => text.is_ascii(),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isspace" => all(is_space),
        "isdigit" | "isdecimal" => {
            all(|c| c.is_ascii_digit() || (c.is_numeric() && c.is_alphanumeric() && !c.is_ascii()))
        }
        "isnumeric" => all(char::is_numeric),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        _ => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
    }
}

fn need_text(arguments: &mut CallArguments, name: &str) -> Result<Text> {
    arguments.text(name)?.ok_or_else(|| problem(format!("the argument `{name}` is missing")))
}

fn width(arguments: &mut CallArguments) -> Result<usize> {
    let width = arguments.int("width")?.ok_or_else(|| problem("the argument `width` is missing"))?;
    Ok(usize::try_from(width.max(0)).unwrap_or(usize::MAX))
}

/// A text whose case was changed; it may take up to three times the bytes.
fn changed(text: &str, budget: &Budget, change: impl Fn(&str) -> String) -> Result<Value> {
    budget.text(0, text.len().saturating_mul(3))?;
    Ok(Value::made(change(text)))
}

pub(super) fn upper(text: &str, budget: &Budget) -> Result<Value> {
    changed(text, budget, |text| text.to_uppercase())
}

pub(super) fn lower(text: &str, budget: &Budget) -> Result<Value> {
    changed(text, budget, |text| text.to_lowercase())
}

pub(super) fn capitalized(text: &str, budget: &Budget) -> Result<Value> {
    changed(text, budget, capitalize)
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

/// A capital at the beginning of each word, small letters after it.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// A text without white space, or without the characters of `chars`, at its ends.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let is = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(is) } else { text };
    if end { text.trim_end_matches(is) } else { text }
}

/// A list of parts of a text.
fn texts<'a>(parts: impl IntoIterator<Item = &'a str>, budget: &Budget) -> Result<Value> {
    let mut all = Vec::new();
    for part in parts {
        // The text, its reference count and its slot, which may have grown to double.
        budget.bytes(2 * size_of::<Value>() + 32)?;
        all.push(Value::copied(part, budget)?);
    }
    Value::list(all, budget)
}

fn split(text: &str, from_end: bool, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let separator = arguments.text("sep")?;
    let most = arguments.int("maxsplit")?.and_then(|most| usize::try_from(most).ok());
    let Some(separator) = separator else {
        return split_at_spaces(text, from_end, most, budget);
    };
    if separator.is_empty() {
        return fail("split: the separator is empty");
    }
    match (most, from_end) {
        (None, _) => texts(text.split(&*separator), budget),
        (Some(most), false) => texts(text.splitn(most.saturating_add(1), &*separator), budget),
        (Some(most), true) => {
            let mut rest = text;
            let mut ends = Vec::new();
            while ends.len() < most
                && let Some((before, after)) = rest.rsplit_once(&*separator)
            {
                budget.bytes(32)?;
                ends.push(after);
                rest = before;
            }
            ends.push(rest);
            texts(ends.into_iter().rev(), budget)
        }
    }
}

fn split_at_spaces(text: &str, from_end: bool, most: Option<usize>, budget: &Budget) -> Result<Value> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest = if from_end { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    while !rest.is_empty() {
        budget.bytes(32)?;
        let cut = if parts.len() >= most {
            None
        } else if from_end {
            rest.rfind(is_space)
        } else {
            rest.find(is_space)
        };
        let Some(at) = cut else {
            parts.push(rest);
            break;
        };
        let (before, after) = rest.split_at(at);
        if from_end {
            parts.push(after.trim_start_matches(is_space));
            rest = before.trim_end_matches(is_space);
        } else {
            parts.push(before);
            rest = after.trim_start_matches(is_space);
        }
    }
    if from_end {
        parts.reverse();
    }
    texts(parts, budget)
}

fn partition(
    value: &Value,
    text: &str,
    from_end: bool,
    arguments: &mut CallArguments,
    budget: &Budget,
) -> Result<Value> {
    let separator = need_text(arguments, "sep")?;
    if separator.is_empty() {
        return fail("partition: the separator is empty");
    }
    let found = if from_end { text.rsplit_once(&*separator) } else { text.split_once(&*separator) };
    let empty = || Value::str("");
    let parts = match found {
        Some((before, after)) => {
            vec![Value::copied(before, budget)?, Value::Str(Text::clone(&separator)), Value::copied(after, budget)?]
        }
        None if from_end => vec![empty(), empty(), value.clone()],
        None => vec![value.clone(), empty(), empty()],
    };
    Value::tuple(parts, budget)
}

/// `text` with `new` in the place of `old`, at most `count` times.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<usize>, budget: &Budget) -> Result<Value> {
    let mut out = Writer::new(budget);
    let mut done = 0;
    for (at, found) in text.match_indices(old).take(count.unwrap_or(usize::MAX)) {
        out.push(text.get(done..at).unwrap_or_default())?;
        out.push(new)?;
        done = at + found.len();
    }
    out.push(text.get(done..).unwrap_or_default())?;
    Ok(Value::made(out.text))
}

/// `text` with spaces on its sides.
pub(super) fn pad(text: &str, width: usize, fill: &str, side: &str, budget: &Budget) -> Result<Value> {
    let missing = width.saturating_sub(text.chars().count());
    let left = match side {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one on the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let mut out = Writer::new(budget);
    out.repeat(fill, left)?;
    out.push(text)?;
    out.repeat(fill, missing - left)?;
    Ok(Value::made(out.text))
}

/// The bytes between the arguments `start` and `end`, which count characters.
fn range(text: &str, arguments: &mut CallArguments) -> Result<(usize, usize)> {
    let (start, end) = (arguments.int("start")?, arguments.int("end")?);
    if start.is_none() && end.is_none() {
        return Ok((0, text.len()));
    }
    let length = text.chars().count() as i128;
    let byte = |at: i128| {
        let at = if at < 0 { (at + length).max(0) } else { at };
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if at as i128 > length { text.len() + 1 } else { text.char_indices().nth(at).map_or(text.len(), |(at, _)| at) }
    };
    Ok((start.map_or(0, byte), end.map_or(text.len(), |end| byte(end).min(text.len()))))
}

/// Whether Python breaks a line at this character.
pub(super) fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The lines of a text, broken where Python breaks them.
pub(super) fn lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.find(ends_line).unwrap_or(rest.len());
        let (line, end) = rest.split_at(at);
        let length = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        let with_end = rest.get(..at + length).unwrap_or(line);
        rest = end.get(length..).unwrap_or_default();
        Some(if keep_ends { with_end } else { line })
    })
}
