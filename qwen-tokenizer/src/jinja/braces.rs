//! Python's `'{}'.format(value)`: fields with names, attributes, items, conversions and formats.

use super::access;
use super::arguments::CallArguments;
use super::ast::Text;
use super::limits::{Budget, Result, Writer, fail, problem};
use super::numbers::{Spec, character, digits, truncated, write_converted, write_number, write_padded};
use super::python::write_str;
use super::value::Value;

/// The methods that are here and not in `methods`, since they look into values.
pub(super) fn has(name: &str) -> bool {
    matches!(name, "format" | "format_map")
}

/// `text.format(arguments)`, or `text.format_map(entries)`.
pub(super) fn call(text: &str, name: &str, mut arguments: CallArguments, budget: &Budget) -> Result<Value> {
    budget.scan(text.len())?;
    if name == "format_map" {
        let entries = arguments.need("")?.defined()?;
        arguments.finish(name)?;
        let Value::Dict(entries) = entries else {
            return fail(format!("format_map: a mapping, not {}", entries.kind()));
        };
        budget.bytes(entries.len().saturating_mul(2 * size_of::<Value>()))?;
        let named = entries.entries().filter_map(|(key, value)| match key {
            Value::Str(key) => Some((Text::clone(key), value.clone())),
            _ => None,
        });
        arguments = CallArguments::new(Vec::new(), named.collect());
    }
    let arguments = &arguments;
    let mut out = Writer::new(budget);
    Braces { arguments, budget, next: Some(0) }.write(text, 2, &mut out)?;
    Ok(Value::made(out.text))
}

struct Braces<'a> {
    arguments: &'a CallArguments,
    budget: &'a Budget,
    /// The number of the next `{}`; none once values are asked for by number.
    next: Option<usize>,
}

impl Braces<'_> {
    /// Writes a text with its fields; formats may have fields in them, but only once.
    fn write(&mut self, text: &str, levels: usize, out: &mut Writer<'_>) -> Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(at);
            out.push(before)?;
            let brace = after.get(..1).unwrap_or_default();
            rest = after.get(1..).unwrap_or_default();
            if let Some(after) = rest.strip_prefix(brace).filter(|_| levels == 2) {
                out.push(brace)?;
                rest = after;
                continue;
            }
            let end = if brace == "{" { end_of_field(rest) } else { None };
            let Some(end) = end else { return fail("a format with a single brace") };
            if levels == 0 {
                return fail("a format with fields in the fields of a field");
            }
            let (field, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            self.field(field, levels, out)?;
        }
        out.push(rest)
    }

    fn field(&mut self, field: &str, levels: usize, out: &mut Writer<'_>) -> Result<()> {
        let name_end = name_end(field);
        let (name, after) = field.split_at(name_end);
        let (conversion, spec) = match after.strip_prefix('!') {
            Some(after) => after.split_once(':').unwrap_or((after, "")),
            None => ("", after.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let mut inner = Writer::new(self.budget);
        self.write(spec, levels - 1, &mut inner)?;
        let spec = inner.text;
        let value = match conversion {
            "" => value,
            "s" | "r" | "a" => {
                let mut inner = Writer::new(self.budget);
                write_converted(&value, conversion.chars().next().unwrap_or('s'), &mut inner)?;
                Value::made(inner.text)
            }
            conversion => return fail(format!("a format does not have `!{conversion:.20}`")),
        };
        write_value(&value, &spec, out)
    }

    fn value(&mut self, name: &str) -> Result<Value> {
        let first_end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(first_end);
        let missing = || problem(format!("a format without a value for `{name:.40}`"));
        let by_place = |place: usize| self.arguments.positional.get(place).cloned().ok_or_else(missing);
        let mut value = if first.is_empty() {
            let Some(next) = self.next else { return fail("a format with both `{}` and `{0}`") };
            self.next = Some(next + 1);
            by_place(next)?
        } else if first.bytes().all(|byte| byte.is_ascii_digit()) {
            if self.next.is_some_and(|next| next > 0) {
                return fail("a format with both `{}` and `{0}`");
            }
            self.next = None;
            by_place(first.parse().unwrap_or(usize::MAX))?
        } else {
            let named = self.arguments.named.iter().find(|(found, _)| &**found == first);
            named.map(|(_, value)| value.clone()).ok_or_else(missing)?
        };
        while !rest.is_empty() {
            self.budget.steps(1)?;
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let (attribute, after) = after.split_at(end);
                value = access::attribute(&value, &attribute.into(), self.budget)?;
                rest = after;
            } else if let Some((key, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                let key = key.parse().map_or_else(|_| Value::str(key), Value::Int);
                value = access::item(&value, &key, self.budget)?;
                rest = after;
            } else {
                return fail(format!("a format does not look into `{name:.40}`"));
            }
        }
        Ok(value)
    }
}

/// Where the name of a field ends: at the first `!` or `:` outside of square brackets.
fn name_end(field: &str) -> usize {
    let mut is_inside = false;
    for (at, c) in field.char_indices() {
        match c {
            '[' => is_inside = true,
            ']' => is_inside = false,
            '!' | ':' if !is_inside => return at,
            _ => {}
        }
    }
    field.len()
}

/// Where the `}` of a field is.
fn end_of_field(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// `format(value, spec)`
fn write_value(value: &Value, spec: &str, out: &mut Writer<'_>) -> Result<()> {
    if spec.is_empty() {
        return write_str(value, out);
    }
    let parsed = parse_spec(spec)?;
    match (value, parsed.kind) {
        (Value::Str(text), None | Some('s')) => {
            if parsed.sign.is_some() || parsed.alternate || parsed.group.is_some() || parsed.align == Some('=') {
                return fail(format!("the format `:{spec:.20}` is for numbers, not for a text"));
            }
            write_padded(truncated(text, parsed.precision), &parsed, '<', out)
        }
        (Value::Bool(_) | Value::Int(_), Some('c')) => write_padded(&character(value)?, &parsed, '<', out),
        (Value::Bool(_) | Value::Int(_) | Value::LongInt(_), kind) => {
            let is_integer = !kind.is_some_and(|kind| "eEfFgG%".contains(kind));
            if is_integer && parsed.precision.is_some() {
                return fail(format!("the format `:{spec:.20}` has a precision, which an integer has not"));
            }
            if matches!(kind, Some('x' | 'X' | 'o' | 'b')) && parsed.group == Some(',') {
                return fail(format!("the format `:{spec:.20}` has `,`; here only `_` stands between digits"));
            }
            write_number(value, &parsed, out)
        }
        (Value::Float(_), kind) if !kind.is_some_and(|kind| "bcdoxX".contains(kind)) => {
            write_number(value, &parsed, out)
        }
        (value, _) => fail(format!("the format `:{spec:.20}` does not take {}", value.kind())),
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
    spec.zero = spec.fill.is_none() && skip('0');
    spec.width = digits(&mut rest)?.unwrap_or(0);
    if let Some(group) = rest.chars().next().filter(|c| matches!(c, ',' | '_')) {
        spec.group = Some(group);
        rest = rest.get(1..).unwrap_or_default();
    }
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        spec.precision = digits(&mut rest)?;
        if spec.precision.is_none() {
            return fail(format!("the format `:{text:.20}` has a dot without a precision"));
        }
    }
    let mut chars = rest.chars();
    spec.kind = chars.next();
    let is_known = spec.kind.is_none_or(|kind| "bcdeEfFgGnosxX%".contains(kind));
    if chars.next().is_some() || !is_known || (spec.group.is_some() && matches!(spec.kind, Some('c' | 'n' | 's'))) {
        return fail(format!("a format does not have `:{text:.20}`"));
    }
    Ok(spec)
}
