//! Python's `'%s' % value`. The other way, `'{}'.format(value)`, is in `braces`, what both write in `numbers`.

use super::limits::{Budget, Result, Writer, fail, problem};
use super::numbers::{Spec, character, checked_width, digits, truncated, write_converted, write_number, write_padded};
use super::value::{Value, ViewKind};

/// `text % values`. `whole` is what stands after the operator where it is no tuple: values are looked up in it by
/// name, and a list or a mapping need not be used.
pub(super) fn percent(text: &str, values: &[Value], whole: Option<&Value>, budget: &Budget) -> Result<Value> {
    let mut out = Writer::new(budget);
    let mut values_left = values.iter();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out.push(before)?;
        rest = after;
        let mut by_name = None;
        if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            let Some(Value::Dict(dict)) = whole else { return fail("a format with names takes a mapping") };
            by_name = Some(
                dict.get_str(name, budget).ok_or_else(|| problem(format!("a format without a value for `{name}`")))?,
            );
            rest = after;
        }
        let mut next = || values_left.next().ok_or_else(|| problem("a format with too few values"));
        let mut spec = Spec::default();
        let mut is_left = false;
        while let Some(flag) = rest.chars().next().filter(|c| matches!(c, '-' | '+' | ' ' | '0' | '#')) {
            match flag {
                '-' => is_left = true,
                '0' => spec.zero = true,
                '#' => spec.alternate = true,
                ' ' => drop(spec.sign.get_or_insert(' ')),
                sign => spec.sign = Some(sign),
            }
            rest = rest.get(1..).unwrap_or_default();
        }
        if let Some(after) = rest.strip_prefix('*') {
            rest = after;
            let width = size(next()?)?;
            is_left |= width < 0;
            spec.width = checked_width(width.unsigned_abs())?;
        } else {
            spec.width = digits(&mut rest)?.unwrap_or(0);
        }
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            spec.precision = Some(match rest.strip_prefix('*') {
                Some(after) => {
                    rest = after;
                    checked_width(size(next()?)?.max(0).unsigned_abs())?
                }
                None => digits(&mut rest)?.unwrap_or(0),
            });
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = rest.chars().next() else { return fail("an incomplete format") };
        rest = rest.get(kind.len_utf8()..).unwrap_or_default();
        if kind == '%' {
            if !after.starts_with('%') {
                return fail("a format has `%%` for a percent sign, with nothing between");
            }
            out.push("%")?;
            continue;
        }
        let value = match by_name {
            Some(value) => value,
            None => next()?,
        };
        if is_left {
            (spec.align, spec.zero) = (Some('<'), false);
        }
        spec.kind = Some(kind);
        match kind {
            's' | 'r' | 'a' => {
                let mut inner = Writer::new(budget);
                write_converted(value, kind, &mut inner)?;
                let text = truncated(&inner.text, spec.precision);
                write_padded(text, &Spec { zero: false, ..spec }, '>', &mut out)?;
            }
            'd' | 'i' | 'u' => {
                let whole = match value {
                    Value::Float(number) if number.is_finite() && number.abs() < 1e38 => Value::Int(*number as i128),
                    Value::Float(_) => return fail("a format with `d` takes a number that is finite"),
                    value => value.clone(),
                };
                let least_digits = spec.precision.unwrap_or(0);
                write_number(&whole, &Spec { kind: Some('d'), precision: None, least_digits, ..spec }, &mut out)?;
            }
            'x' | 'X' | 'o' => {
                let least_digits = spec.precision.unwrap_or(0);
                write_number(value, &Spec { precision: None, least_digits, ..spec }, &mut out)?;
            }
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' => write_number(value, &spec, &mut out)?,
            'c' => {
                let text = match value {
                    Value::Str(text) if text.chars().count() == 1 => text.to_string(),
                    value => character(value)?,
                };
                write_padded(&text, &Spec { zero: false, ..spec }, '>', &mut out)?;
            }
            kind => return fail(format!("a format does not have `%{kind}`")),
        }
    }
    let may_be_unused = match whole {
        Some(Value::Dict(_) | Value::List(_) | Value::Undefined(_)) => true,
        Some(Value::View(view)) => matches!(view.kind, ViewKind::Range { .. }),
        _ => false,
    };
    if values_left.next().is_some() && !may_be_unused {
        return fail("a format with too many values");
    }
    out.push(rest)?;
    Ok(Value::made(out.text))
}

fn size(value: &Value) -> Result<i128> {
    value.as_int().ok_or_else(|| problem("a width of `*` takes an integer"))
}
