//! The filter `wordwrap`: Python's `textwrap.wrap`, line by line.

use super::arguments::CallArguments;
use super::limits::{Budget, Result, Writer, fail};
use super::methods::{is_alnum, lines};
use super::python::to_str;
use super::value::Value;

/// `value | wordwrap(width, break_long_words, wrapstring, break_on_hyphens)`
pub(super) fn apply(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let width = arguments.int("width")?.unwrap_or(79);
    let breaks_words = arguments.take("break_long_words").is_none_or(|value| value.is_true());
    let end = arguments.text("wrapstring")?.unwrap_or_else(|| "\n".into());
    let breaks_hyphens = arguments.take("break_on_hyphens").is_none_or(|value| value.is_true());
    let Ok(width @ 1..) = usize::try_from(width) else { return fail("wordwrap: a width of at least 1") };
    if !matches!(value, Value::Str(_)) {
        return fail(format!("wordwrap: a text, not {}", value.kind()));
    }
    let text = to_str(value, budget)?;
    let text = text.as_str().unwrap_or_default();
    budget.scan(text.len().saturating_mul(8))?;
    let mut out = Writer::new(budget);
    for (i, line) in lines(text, false).enumerate() {
        out.push(if i > 0 { &end } else { "" })?;
        let mut chunks = chunks(line, breaks_hyphens);
        chunks.reverse();
        wrap(chunks, width, (breaks_words, breaks_hyphens), &end, &mut out)?;
    }
    Ok(Value::made(out.text))
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}

/// Words, what is between them, and parts of words that end with a hyphen.
fn chunks(line: &str, breaks_hyphens: bool) -> Vec<&str> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut before: Option<char> = None;
    let is_letter = |c: char| c == '_' || (is_alnum(c) && !c.is_numeric());
    let is_word = |c: char| c == '_' || is_alnum(c);
    for (at, c) in line.char_indices() {
        let is_first = at == start;
        let ends = match before {
            Some(last) if !is_first => {
                is_blank(last) != is_blank(c)
                    || (breaks_hyphens && last == '-' && c != '-' && {
                        let mut back = line.get(start..at).unwrap_or_default().chars().rev().skip(1);
                        let (one, two, mut next) =
                            (back.next(), back.next(), line.get(at..).unwrap_or_default().chars());
                        let (first, second, third) = (next.next(), next.next(), next.next());
                        let goes_on = first.is_some_and(is_letter)
                            && (second.is_some_and(is_letter) || (second == Some('-') && third.is_some_and(is_letter)));
                        let is_two = one.is_some_and(is_letter) && two.is_some_and(is_letter);
                        let is_one =
                            one.is_some_and(is_letter) && two == Some('-') && back.next().is_some_and(is_letter);
                        goes_on && (is_two || is_one)
                    })
            }
            _ => false,
        };
        // A dash of several hyphens between words stands alone.
        let is_dash = |rest: &str| {
            let after = rest.trim_start_matches('-');
            rest.len() - after.len() >= 2 && after.chars().next().is_some_and(is_word)
        };
        let begins_dash = breaks_hyphens
            && c == '-'
            && before.is_some_and(|last| is_word(last) || "!\"'&.,?".contains(last))
            && is_dash(line.get(at..).unwrap_or_default());
        let ends_dash = breaks_hyphens
            && c != '-'
            && !is_first
            && line.get(start..at).is_some_and(|part| part.len() >= 2 && part.bytes().all(|byte| byte == b'-'))
            && is_word(c);
        if ends || (begins_dash && !is_first) || ends_dash {
            chunks.extend(line.get(start..at));
            start = at;
        }
        before = Some(c);
    }
    chunks.extend(line.get(start..).filter(|last| !last.is_empty()));
    chunks
}

/// The characters up to the last hyphen in the first `room` of them, or `room`.
fn after_hyphen(word: &str, room: usize) -> usize {
    let start: Vec<char> = word.chars().take(room).collect();
    match start.iter().rposition(|&c| c == '-') {
        Some(at) if start.iter().take(at).any(|&c| c != '-') => at + 1,
        _ => room,
    }
}

/// Writes lines of at most `width` characters. The chunks come in reverse, the first one last.
fn wrap(
    mut chunks: Vec<&str>,
    width: usize,
    (breaks_words, breaks_hyphens): (bool, bool),
    end: &str,
    out: &mut Writer<'_>,
) -> Result<()> {
    let is_space = |chunk: &str| chunk.chars().all(char::is_whitespace);
    let length = |chunk: &str| chunk.chars().count();
    let mut is_first = true;
    while !chunks.is_empty() {
        let mut line: Vec<&str> = Vec::new();
        let mut used = 0;
        if !is_first && chunks.last().is_some_and(|chunk| is_space(chunk)) {
            chunks.pop();
        }
        while let Some(chunk) = chunks.last() {
            if used + length(chunk) > width {
                break;
            }
            used += length(chunk);
            line.extend(chunks.pop());
        }
        if let Some(long) = chunks.last().copied().filter(|chunk| length(chunk) > width) {
            if breaks_words {
                let room = width.saturating_sub(used).max(usize::from(line.is_empty()));
                let room = if breaks_hyphens { after_hyphen(long, room) } else { room };
                let at = long.char_indices().nth(room).map_or(long.len(), |(at, _)| at);
                chunks.pop();
                line.extend(long.get(..at));
                chunks.extend(long.get(at..));
            } else if line.is_empty() {
                line.extend(chunks.pop());
            }
        }
        if line.last().is_some_and(|chunk| is_space(chunk)) {
            line.pop();
        }
        if line.is_empty() {
            continue;
        }
        out.budget.steps(line.len())?;
        out.push(if is_first { "" } else { end })?;
        is_first = false;
        for chunk in line {
            out.push(chunk)?;
        }
    }
    Ok(())
}
