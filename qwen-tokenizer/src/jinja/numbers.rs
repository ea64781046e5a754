//! Values written by a format: what Python's `'%8.3f' % x` and `'{:08,.3f}'.format(x)` have in common.

use super::limits::{Result, Writer, fail, problem};
use super::python::{number_text, write_ascii, write_repr, write_str};
use super::value::Value;

/// Widths and precisions beyond this are mistakes.
const MAX_WIDTH: usize = 10_000;

/// How one value is written.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    /// Filled with zeros, after the sign.
    pub(super) zero: bool,
    pub(super) alternate: bool,
    /// What stands between groups of digits: `,` or `_`.
    pub(super) group: Option<char>,
    pub(super) width: usize,
    pub(super) precision: Option<usize>,
    pub(super) kind: Option<char>,
    /// The fewest digits of an integer, which `%` knows.
    pub(super) least_digits: usize,
}

/// A number by its parts: `-`, `0x`, `12.5`, `e+03`.
struct Parts {
    is_negative: bool,
    prefix: &'static str,
    digits: String,
    end: String,
}

/// Writes a number.
pub(super) fn write_number(value: &Value, spec: &Spec, out: &mut Writer<'_>) -> Result<()> {
    let Parts { is_negative, prefix, mut digits, end } = parts(value, spec)?;
    let sign = match (is_negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let size = if matches!(spec.kind, Some('x' | 'X' | 'o' | 'b')) { 4 } else { 3 };
    let has_zeros = spec.zero || (spec.fill == Some('0') && spec.align == Some('='));
    let fills_zeros = has_zeros && spec.align.is_none_or(|align| align == '=');
    if let Some(group) = spec.group {
        // Zeros that fill are grouped too.
        let rest = sign.len() + prefix.len() + end.len();
        let fraction = digits.find('.').unwrap_or(digits.len());
        let (whole, fraction) = digits.split_at(fraction);
        let mut whole = whole.to_owned();
        let length = |whole: &str| whole.len() + whole.len().saturating_sub(1) / size;
        while fills_zeros && length(&whole) + fraction.len() + rest < spec.width {
            whole.insert(0, '0');
        }
        digits = grouped(&whole, group, size) + fraction;
    }
    digits.push_str(&end);
    let length = sign.len() + prefix.len() + digits.chars().count();
    let missing = spec.width.saturating_sub(length);
    if fills_zeros || spec.align == Some('=') {
        out.push(sign)?;
        out.push(prefix)?;
        let mut bytes = [0; 4];
        let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
        out.repeat(fill.encode_utf8(&mut bytes), missing)?;
        return out.push(&digits);
    }
    write_padded(&format!("{sign}{prefix}{digits}"), spec, '>', out)
}

/// Writes a text at its side of the width; `align` where the format does not say which.
pub(super) fn write_padded(text: &str, spec: &Spec, align: char, out: &mut Writer<'_>) -> Result<()> {
    let missing = spec.width.saturating_sub(text.chars().count());
    let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
    let mut bytes = [0; 4];
    let fill = &*fill.encode_utf8(&mut bytes);
    let left = match spec.align.unwrap_or(align) {
        '>' | '=' => missing,
        '^' => missing / 2,
        _ => 0,
    };
    out.repeat(fill, left)?;
    out.push(text)?;
    out.repeat(fill, missing - left)
}

fn parts(value: &Value, spec: &Spec) -> Result<Parts> {
    let wrong = || problem(format!("a format for numbers does not take {}", value.kind()));
    let is_float = matches!(value, Value::Float(_));
    let kind = match spec.kind {
        None if is_float => 'r',
        None => 'd',
        Some('n') if is_float => 'g',
        Some('n') => 'd',
        Some(kind) => kind,
    };
    if matches!(kind, 'd' | 'x' | 'X' | 'o' | 'b') {
        return integer(value, kind, spec);
    }
    let number = value.as_float().ok_or_else(wrong)?;
    let number = if kind == '%' { number * 100.0 } else { number };
    let size = number.abs();
    let precision = spec.precision.unwrap_or(6);
    let (digits, mut end) = match kind {
        _ if !number.is_finite() => (if number.is_nan() { "nan".to_owned() } else { "inf".to_owned() }, String::new()),
        'f' | 'F' | '%' => (format!("{size:.precision$}"), String::new()),
        'e' | 'E' => exponent(size, precision),
        'g' | 'G' => general(size, precision, spec.alternate, false),
        'r' => match spec.precision {
            Some(precision) => general(size, precision, spec.alternate, true),
            None => {
                let text = number_text(&Value::Float(size));
                match text.split_once('e') {
                    Some((digits, exponent)) => (digits.to_owned(), format!("e{exponent}")),
                    None => (text, String::new()),
                }
            }
        },
        kind => return fail(format!("a format does not have `{kind}` for numbers")),
    };
    let mut digits = digits;
    if spec.alternate && !digits.contains('.') && number.is_finite() {
        digits.push('.');
    }
    if kind == '%' {
        end.push('%');
    }
    if kind.is_ascii_uppercase() {
        digits = digits.to_ascii_uppercase();
        end = end.to_ascii_uppercase();
    }
    Ok(Parts { is_negative: number.is_sign_negative() && !number.is_nan(), prefix: "", digits, end })
}

fn integer(value: &Value, kind: char, spec: &Spec) -> Result<Parts> {
    if let (Value::LongInt(digits), 'd') = (value, kind) {
        let is_negative = digits.starts_with('-');
        let digits = digits.trim_start_matches('-').to_owned();
        return Ok(Parts { is_negative, prefix: "", digits, end: String::new() });
    }
    let Some(number) = value.as_int() else {
        return fail(format!("a format for integers does not take {}", value.kind()));
    };
    let size = number.unsigned_abs();
    let (prefix, digits) = match kind {
        'x' => ("0x", format!("{size:x}")),
        'X' => ("0X", format!("{size:X}")),
        'o' => ("0o", format!("{size:o}")),
        'b' => ("0b", format!("{size:b}")),
        _ => ("", size.to_string()),
    };
    let zeros = spec.least_digits.saturating_sub(digits.len());
    let prefix = if spec.alternate { prefix } else { "" };
    Ok(Parts { is_negative: number < 0, prefix, digits: "0".repeat(zeros) + &digits, end: String::new() })
}

/// `1.5` and `e+03`.
fn exponent(size: f64, precision: usize) -> (String, String) {
    let text = format!("{size:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    (digits.to_owned(), format!("e{sign}{exponent:0>2}"))
}

/// So many digits, with an exponent where it is shorter; zeros at the end are left out.
fn general(size: f64, precision: usize, keeps_zeros: bool, is_float: bool) -> (String, String) {
    let precision = precision.max(1);
    let (digits, end) = exponent(size, precision - 1);
    let point = end.get(1..).and_then(|end| end.parse::<i64>().ok()).unwrap_or(0) + 1;
    let trimmed = |digits: String| {
        if keeps_zeros || !digits.contains('.') {
            return digits;
        }
        digits.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let most = i64::try_from(precision).unwrap_or(i64::MAX) - i64::from(is_float);
    if point <= -4 || point > most {
        return (trimmed(digits), end);
    }
    let places = usize::try_from(i64::try_from(precision).unwrap_or(0) - point).unwrap_or(0);
    let mut digits = trimmed(format!("{size:.places$}"));
    if is_float && !digits.contains('.') {
        digits.push_str(".0");
    }
    (digits, String::new())
}

fn grouped(digits: &str, group: char, size: usize) -> String {
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            out.push(group);
        }
        out.push(c);
    }
    out
}

/// The character with this code.
pub(super) fn character(value: &Value) -> Result<String> {
    let code = value.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?));
    code.map(String::from).ok_or_else(|| problem("a format with `c` takes a character"))
}

/// Writes a value as text: `s`, `r` or `a`.
pub(super) fn write_converted(value: &Value, conversion: char, out: &mut Writer<'_>) -> Result<()> {
    match conversion {
        's' => write_str(value, out),
        'r' => write_repr(value, out),
        _ => write_ascii(value, out),
    }
}

/// The digits at the beginning of `rest`, taken from it.
pub(super) fn digits(rest: &mut &str) -> Result<Option<usize>> {
    let length = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, after) = rest.split_at(length);
    *rest = after;
    if digits.is_empty() {
        return Ok(None);
    }
    checked_width(digits.parse().unwrap_or(u128::MAX)).map(Some)
}

pub(super) fn checked_width(width: u128) -> Result<usize> {
    match usize::try_from(width) {
        Ok(width) if width <= MAX_WIDTH => Ok(width),
        _ => fail(format!("a format has widths up to {MAX_WIDTH}, not {width}")),
    }
}

/// At most so many characters.
pub(super) fn truncated(text: &str, precision: Option<usize>) -> &str {
    let end = precision.and_then(|precision| text.char_indices().nth(precision));
    end.and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}
