//! Methods of texts, one dispatcher for all. Those that cut a text are in `splitting`, tables of characters in `tables`.

use super::super::arguments::CallArguments;
use super::super::ast::Text;
use super::super::limits::{Budget, Result, Writer, fail, problem};
use super::super::python::{is_printable, is_space};
use super::super::value::Value;
use super::characters::{
    casefold, is_alnum, is_alpha, is_cased, is_decimal, is_digit, is_numeric, is_title, push_title,
};
use super::splitting::{lines, partition, split, texts};
use super::tables::{maketrans, translate};

pub(super) const NAMES: [&str; 46] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
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
    "translate",
    "upper",
    "zfill",
];

/// Calls a method of a text; `value` is the text as a value.
pub(in crate::jinja) fn call(
    value: &Value,
    text: &Text,
    name: &str,
    arguments: &mut CallArguments,
    budget: &Budget,
) -> Result<Value> {
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
        "removeprefix" => part(text.strip_prefix(&*arguments.need_text("prefix")?).unwrap_or(text))?,
        "removesuffix" => part(text.strip_suffix(&*arguments.need_text("suffix")?).unwrap_or(text))?,
        "replace" => {
            let (old, new) = (arguments.need_text("")?, arguments.need_text("")?);
            let count = arguments.int("count")?.and_then(|count| usize::try_from(count).ok());
            replace(text, &old, &new, count, budget)?
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let wanted = arguments.need_text("sub")?;
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
        "casefold" => changed(text, budget, casefold)?,
        "translate" => translate(text, &arguments.need("")?, budget)?,
        "maketrans" => maketrans(arguments, budget)?,
        "lower" => changed(text, budget, |text| text.to_lowercase())?,
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
        "isprintable" => text.chars().all(is_printable),
        "isalpha" => all(is_alpha),
        "isalnum" => all(is_alnum),
        "isspace" => all(is_space),
        "isdigit" => all(is_digit),
        "isdecimal" => all(is_decimal),
        "isnumeric" => all(is_numeric),
        "isidentifier" => all(|c| c == '_' || is_alnum(c)) && !text.starts_with(is_numeric),
        "istitle" => {
            let (mut in_word, mut has_cased) = (false, false);
            for c in text.chars() {
                let is_capital = c.is_uppercase() || is_title(c);
                if is_cased(c) && is_capital == in_word {
                    return false;
                }
                in_word = is_cased(c);
                has_cased |= in_word;
            }
            has_cased
        }
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c)),
        _ => text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c)),
    }
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

pub(in crate::jinja) fn upper(text: &str, budget: &Budget) -> Result<Value> {
    changed(text, budget, |text| text.to_uppercase())
}

pub(in crate::jinja) fn lower(text: &str, budget: &Budget) -> Result<Value> {
    changed(text, budget, |text| text.to_lowercase())
}

pub(in crate::jinja) fn capitalized(text: &str, budget: &Budget) -> Result<Value> {
    changed(text, budget, capitalize)
}

fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    if let Some(first) = text.chars().next() {
        push_title(&mut out, first);
        // The whole in small letters, for the sigma at the end of a word.
        let small = text.to_lowercase();
        let skipped: usize = first.to_lowercase().map(char::len_utf8).sum();
        out.push_str(small.get(skipped..).unwrap_or_default());
    }
    out
}

/// A capital at the beginning of each word, small letters after it.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            push_title(&mut out, c);
        }
        in_word = is_cased(c);
    }
    out
}

/// A text without white space, or without the characters of `chars`, at its ends.
pub(in crate::jinja) fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let is = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(is) } else { text };
    if end { text.trim_end_matches(is) } else { text }
}

/// `text` with `new` in the place of `old`, at most `count` times.
pub(in crate::jinja) fn replace(
    text: &str,
    old: &str,
    new: &str,
    count: Option<usize>,
    budget: &Budget,
) -> Result<Value> {
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
pub(in crate::jinja) fn pad(text: &str, width: usize, fill: &str, side: &str, budget: &Budget) -> Result<Value> {
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
