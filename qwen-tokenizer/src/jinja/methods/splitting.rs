//! Methods that cut a text: at separators, at white space, at the ends of lines.

use super::super::arguments::CallArguments;
use super::super::ast::Text;
use super::super::limits::{Budget, Result, fail};
use super::super::python::is_space;
use super::super::value::Value;

/// A list of parts of a text.
pub(super) fn texts<'a>(parts: impl IntoIterator<Item = &'a str>, budget: &Budget) -> Result<Value> {
    let mut all = Vec::new();
    for part in parts {
        // The text, its reference count and its slot, which may have grown to double.
        budget.bytes(2 * size_of::<Value>() + 32)?;
        all.push(Value::copied(part, budget)?);
    }
    Value::list(all, budget)
}

pub(super) fn split(text: &str, from_end: bool, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
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

pub(super) fn partition(
    value: &Value,
    text: &str,
    from_end: bool,
    arguments: &mut CallArguments,
    budget: &Budget,
) -> Result<Value> {
    let separator = arguments.need_text("sep")?;
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

/// Whether Python breaks a line at this character.
pub(in crate::jinja) fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The lines of a text, broken where Python breaks them.
pub(in crate::jinja) fn lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
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
