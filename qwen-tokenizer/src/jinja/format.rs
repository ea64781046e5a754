//! Python's two ways to put values into a text: `'%s' % value` and `'{}'.format(value)`.

use super::arguments::CallArguments;
use super::limits::{Budget, Result, Writer, fail, problem};
use super::python::{write_repr, write_str};
use super::value::Value;

/// Widths and precisions beyond this are mistakes.
const MAX_WIDTH: usize = 10_000;

/// How one value is written.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    zero: bool,
    alternate: bool,
    comma: bool,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

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
            by_name =
                Some(dict.get_str(name).ok_or_else(|| problem(format!("a format without a value for `{name}`")))?);
            rest = after;
        }
        let mut spec = Spec { sign: Some('-'), ..Spec::default() };
        while let Some(flag) = rest.chars().next().filter(|c| matches!(c, '-' | '+' | ' ' | '0' | '#')) {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => spec.zero = true,
                '#' => spec.alternate = true,
                sign => spec.sign = Some(sign),
            }
            rest = rest.get(1..).unwrap_or_default();
        }
        spec.width = digits(&mut rest)?.unwrap_or(0);
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            spec.precision = Some(digits(&mut rest)?.unwrap_or(0));
        }
        let Some(kind) = rest.chars().next() else { return fail("an incomplete format") };
        rest = rest.get(kind.len_utf8()..).unwrap_or_default();
        if kind == '%' {
            out.push("%")?;
            continue;
        }
        let value = match by_name {
            Some(value) => value,
            None => values_left.next().ok_or_else(|| problem("a format with too few values"))?,
        };
        // Numbers stand on the right, and so do texts here.
        spec.align.get_or_insert('>');
        if spec.align == Some('<') {
            spec.zero = false;
        }
        match kind {
            's' | 'r' => {
                let mut inner = Writer::new(budget);
                if kind == 's' {
                    write_str(value, &mut inner)?
                } else {
                    write_repr(value, &mut inner)?
                }
                let text = truncated(&inner.text, spec.precision);
                padded(text, &Spec { zero: false, ..spec }, &mut out)?;
            }
            'd' | 'i' | 'u' => {
                let whole = match value {
                    Value::Float(number) if number.is_finite() && number.abs() < 1e38 => {
                        Some(Value::Int(*number as i128))
                    }
                    Value::Float(_) => None,
                    value => Some(value.clone()),
                };
                let whole = whole.ok_or_else(|| problem("a format with `d` takes a number"))?;
                number(&whole, &Spec { kind: Some('d'), precision: None, ..spec }, &mut out)?;
            }
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'x' | 'X' | 'o' => {
                number(value, &Spec { kind: Some(kind), ..spec }, &mut out)?;
            }
            'c' => {
                let text = match value {
                    Value::Str(text) if text.chars().count() == 1 => text.to_string(),
                    value => value
                        .as_int()
                        .and_then(|code| char::from_u32(u32::try_from(code).ok()?))
                        .map(String::from)
                        .ok_or_else(|| problem("a format with `c` takes a character"))?,
                };
                padded(&text, &Spec { zero: false, ..spec }, &mut out)?;
            }
            kind => return fail(format!("a format does not have `%{kind}`")),
        }
    }
    let may_be_unused = matches!(whole, Some(Value::Dict(_) | Value::List(_)));
    if values_left.next().is_some() && !may_be_unused {
        return fail("a format with too many values");
    }
    out.push(rest)?;
    Ok(Value::made(out.text))
}

/// `text.format(arguments)`
pub(super) fn braces(text: &str, arguments: &CallArguments, budget: &Budget) -> Result<Value> {
    let mut out = Writer::new(budget);
    let mut next = 0;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, after) = rest.split_at(at);
        out.push(before)?;
        let brace = after.get(..1).unwrap_or_default();
        rest = after.get(1..).unwrap_or_default();
        if let Some(after) = rest.strip_prefix(brace) {
            out.push(brace)?;
            rest = after;
            continue;
        }
        let field = if brace == "{" { rest.split_once('}') } else { None };
        let Some((field, after)) = field else { return fail("a format with a single brace") };
        rest = after;
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = field.split_once('!').unwrap_or((field, ""));
        let value = if name.is_empty() {
            next += 1;
            arguments.positional.get(next - 1)
        } else if let Ok(index) = name.parse::<usize>() {
            arguments.positional.get(index)
        } else if name.contains(['.', '[']) {
            return fail(format!("a format does not look into `{name}`"));
        } else {
            arguments.named.iter().find(|(found, _)| &**found == name).map(|(_, value)| value)
        };
        let value = value.ok_or_else(|| problem(format!("a format without a value for `{name}`")))?;
        let spec = parse_spec(spec)?;
        match (value, conversion) {
            (Value::Bool(_) | Value::Int(_) | Value::Float(_), "") if spec.kind.is_some() || spec.is_numeric() => {
                number(value, &spec, &mut out)?;
            }
            (Value::Int(_) | Value::Float(_), "") => {
                let mut inner = Writer::new(budget);
                write_str(value, &mut inner)?;
                padded(&inner.text, &Spec { align: spec.align.or(Some('>')), ..spec }, &mut out)?;
            }
            (value, "" | "s" | "r") => {
                if spec.kind.is_some_and(|kind| kind != 's') {
                    return fail(format!("a format for numbers does not take {}", value.kind()));
                }
                let mut inner = Writer::new(budget);
                if conversion == "r" {
                    write_repr(value, &mut inner)?
                } else {
                    write_str(value, &mut inner)?
                }
                let text = truncated(&inner.text, spec.precision);
                padded(text, &Spec { align: spec.align.or(Some('<')), ..spec }, &mut out)?;
            }
            (_, conversion) => return fail(format!("a format does not have `!{conversion}`")),
        }
    }
    out.push(rest)?;
    Ok(Value::made(out.text))
}

impl Spec {
    fn is_numeric(&self) -> bool {
        self.sign.is_some() || self.zero || self.comma || self.precision.is_some()
    }
}

/// `[[fill]align][sign][#][0][width][,][.precision][kind]`
fn parse_spec(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let mut rest = text;
    let is_align = |c: &char| matches!(c, '<' | '>' | '^' | '=');
    let mut chars = rest.chars();
    match (chars.next(), chars.next()) {
        (Some(fill), Some(align)) if is_align(&align) => {
            (spec.fill, spec.align) = (Some(fill), Some(align));
            rest = chars.as_str();
        }
        (Some(align), _) if is_align(&align) => {
            spec.align = Some(align);
            rest = rest.get(1..).unwrap_or_default();
        }
        _ => {}
    }
    let mut skip = |c: char| {
        let after = rest.strip_prefix(c);
        rest = after.unwrap_or(rest);
        after.is_some()
    };
    spec.sign = ['+', '-', ' '].into_iter().find(|sign| skip(*sign));
    spec.alternate = skip('#');
    spec.zero = skip('0');
    spec.width = digits(&mut rest)?.unwrap_or(0);
    if let Some(after) = rest.strip_prefix(',') {
        spec.comma = true;
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        spec.precision = digits(&mut rest)?;
    }
    let mut chars = rest.chars();
    spec.kind = chars.next();
    if chars.next().is_some() {
        return fail(format!("a format does not have `:{text}`"));
    }
    Ok(spec)
}

fn digits(rest: &mut &str) -> Result<Option<usize>> {
    let length = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, after) = rest.split_at(length);
    *rest = after;
    if digits.is_empty() {
        return Ok(None);
    }
    match digits.parse() {
        Ok(number) if number <= MAX_WIDTH => Ok(Some(number)),
        _ => fail(format!("a format has widths up to {MAX_WIDTH}, not {digits:.20}")),
    }
}

fn truncated(text: &str, precision: Option<usize>) -> &str {
    let end = precision.and_then(|precision| text.char_indices().nth(precision));
    end.and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

fn number(value: &Value, spec: &Spec, out: &mut Writer<'_>) -> Result<()> {
    let wrong = || problem(format!("a format for numbers does not take {}", value.kind()));
    let precision = spec.precision.unwrap_or(6);
    let kind = spec.kind.unwrap_or(if matches!(value, Value::Float(_)) { 'r' } else { 'd' });
    let (is_negative, digits) = match kind {
        'd' | 'x' | 'X' | 'o' | 'b' => {
            let number = value.as_int().ok_or_else(wrong)?;
            let (size, prefix) = (number.unsigned_abs(), spec.alternate);
            let digits = match kind {
                'x' => format!("{}{size:x}", if prefix { "0x" } else { "" }),
                'X' => format!("{}{size:X}", if prefix { "0X" } else { "" }),
                'o' => format!("{}{size:o}", if prefix { "0o" } else { "" }),
                'b' => format!("{}{size:b}", if prefix { "0b" } else { "" }),
                _ => size.to_string(),
            };
            (number < 0, digits)
        }
        'f' | 'F' | '%' => {
            let number = value.as_float().ok_or_else(wrong)? * if kind == '%' { 100.0 } else { 1.0 };
            let percent = if kind == '%' { "%" } else { "" };
            (number.is_sign_negative(), format!("{:.precision$}{percent}", number.abs()))
        }
        'e' | 'E' => {
            let number = value.as_float().ok_or_else(wrong)?;
            let text = format!("{:.precision$e}", number.abs());
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            let text = format!("{digits}{}{sign}{exponent:0>2}", kind);
            (number.is_sign_negative(), text)
        }
        'r' if spec.precision.is_none() => {
            let mut inner = Writer::new(out.budget);
            write_str(value, &mut inner)?;
            (inner.text.starts_with('-'), inner.text.trim_start_matches('-').to_owned())
        }
        kind => return fail(format!("a format does not have `{kind}` for numbers")),
    };
    let digits = if spec.comma { with_commas(&digits) } else { digits };
    let sign = match (is_negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    if spec.zero && spec.fill.is_none() {
        let zeros = spec.width.saturating_sub(sign.len() + digits.len());
        out.push(sign)?;
        out.repeat("0", zeros)?;
        return out.push(&digits);
    }
    padded(
        &format!("{sign}{digits}"),
        &Spec { align: spec.align.or(Some('>')), ..Spec { fill: spec.fill, width: spec.width, ..Spec::default() } },
        out,
    )
}

fn with_commas(digits: &str) -> String {
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out + fraction
}

fn padded(text: &str, spec: &Spec, out: &mut Writer<'_>) -> Result<()> {
    let missing = spec.width.saturating_sub(text.chars().count());
    let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
    let mut bytes = [0; 4];
    let fill = &*fill.encode_utf8(&mut bytes);
    let left = match spec.align {
        Some('>' | '=') => missing,
        Some('^') => missing / 2,
        _ => 0,
    };
    out.repeat(fill, left)?;
    out.push(text)?;
    out.repeat(fill, missing - left)
}
