//! Operators: arithmetic, comparison, membership, items and slices, as Python defines them.

use std::cmp::Ordering;
use std::rc::Rc;

use super::ast::{Comparison, Operator};
use super::format;
use super::limits::{Budget, Result, Writer, fail, problem};
use super::value::{Value, ViewKind, undefined};

/// `a operator b`; the sum of texts is made by [`add_text`] where it can.
pub(super) fn arithmetic(operator: Operator, a: &Value, b: &Value, budget: &Budget) -> Result<Value> {
    let is_format = operator == Operator::Remainder && matches!(a, Value::Str(_));
    for value in [a, b] {
        if let (Value::Undefined(name), false) = (value, is_format) {
            return Err(undefined(name));
        }
    }
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        return integers(operator, x, y);
    }
    if let (Some(x), Some(y)) = (a.as_float(), b.as_float()) {
        return floats(operator, x, y);
    }
    match (operator, a, b) {
        (Operator::Add, Value::Str(x), Value::Str(y)) => {
            let mut out = Writer::new(budget);
            out.push(x)?;
            out.push(y)?;
            Ok(Value::made(out.text))
        }
        (Operator::Add, Value::List(x), Value::List(y)) => {
            budget.bytes((x.len() + y.len()) * size_of::<Value>())?;
            Value::list(x.iter().chain(y.iter()).cloned().collect(), budget)
        }
        (Operator::Add, Value::Tuple(x), Value::Tuple(y)) => {
            budget.bytes((x.len() + y.len()) * size_of::<Value>())?;
            Value::tuple(x.iter().chain(y.iter()).cloned().collect(), budget)
        }
        (Operator::Multiply, Value::Str(text), n) | (Operator::Multiply, n, Value::Str(text))
            if n.as_int().is_some() =>
        {
            let mut out = Writer::new(budget);
            out.repeat(text, if text.is_empty() { 0 } else { count(n) })?;
            Ok(Value::made(out.text))
        }
        (Operator::Multiply, Value::List(items), n) | (Operator::Multiply, n, Value::List(items))
            if n.as_int().is_some() =>
        {
            Value::list(repeated(items, n, budget)?, budget)
        }
        (Operator::Multiply, Value::Tuple(items), n) | (Operator::Multiply, n, Value::Tuple(items))
            if n.as_int().is_some() =>
        {
            Value::tuple(repeated(items, n, budget)?, budget)
        }
        (Operator::Remainder, Value::Str(text), Value::Tuple(items)) => format::percent(text, items, None, budget),
        (Operator::Remainder, Value::Str(text), value) => {
            format::percent(text, std::slice::from_ref(value), Some(value), budget)
        }
        _ => {
            let sign = match operator {
                Operator::Add => "+",
                Operator::Subtract => "-",
                Operator::Multiply => "*",
                Operator::Divide => "/",
                Operator::FloorDivide => "//",
                Operator::Remainder => "%",
                Operator::Power => "**",
            };
            let has_text = matches!(a, Value::Str(_)) || matches!(b, Value::Str(_));
            let hint = match operator {
                Operator::Add if has_text => "; turn both into texts with `~`",
                Operator::Add => "; make lists of both with `| list`, or numbers",
                _ => "",
            };
            fail(format!("`{sign}` does not take {} and {}{hint}", a.kind(), b.kind()))
        }
    }
}

fn count(n: &Value) -> usize {
    usize::try_from(n.as_int().unwrap_or(0).max(0)).unwrap_or(usize::MAX)
}

fn repeated(items: &[Value], n: &Value, budget: &Budget) -> Result<Vec<Value>> {
    let times = if items.is_empty() { 0 } else { count(n) };
    budget.bytes(items.len().saturating_mul(times).saturating_mul(size_of::<Value>()))?;
    Ok((0..times).flat_map(|_| items.iter().cloned()).collect())
}

fn integers(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let floor = |a: i128, b: i128| {
        let quotient = a.checked_div(b)?;
        let remainder = a.checked_rem(b)?;
        let is_below = remainder != 0 && (remainder < 0) != (b < 0);
        Some(if is_below { (quotient - 1, remainder + b) } else { (quotient, remainder) })
    };
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide | Operator::FloorDivide | Operator::Remainder if b == 0 => return fail("division by zero"),
        Operator::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        Operator::FloorDivide => floor(a, b).map(|(quotient, _)| quotient),
        Operator::Remainder => floor(a, b).map(|(_, remainder)| remainder),
        Operator::Power if b < 0 => return floats(operator, a as f64, b as f64),
        Operator::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    result.map(Value::Int).ok_or_else(|| problem("an integer of more than 127 bits"))
}

fn floats(operator: Operator, a: f64, b: f64) -> Result<Value> {
    let remainder = |a: f64, b: f64| {
        let remainder = a % b;
        match remainder == 0.0 {
            true => 0.0_f64.copysign(b),
            false if (remainder < 0.0) != (b < 0.0) => remainder + b,
            false => remainder,
        }
    };
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide | Operator::FloorDivide | Operator::Remainder if b == 0.0 => return fail("division by zero"),
        Operator::Power if a == 0.0 && b < 0.0 => return fail("division by zero"),
        Operator::Divide => a / b,
        Operator::FloorDivide => ((a - remainder(a, b)) / b).round(),
        Operator::Remainder => remainder(a, b),
        Operator::Power if a < 0.0 && b.fract() != 0.0 && b.is_finite() => {
            return fail("a root of a negative number");
        }
        Operator::Power => a.powf(b),
    }))
}

/// `-value`
pub(super) fn negative(value: &Value) -> Result<Value> {
    match (value, value.as_int()) {
        (_, Some(number)) => integers(Operator::Subtract, 0, number),
        (Value::Float(number), _) => Ok(Value::Float(-number)),
        (Value::Undefined(name), _) => Err(undefined(name)),
        _ => fail(format!("`-` does not take {}", value.kind())),
    }
}

/// `+value`
pub(super) fn positive(value: Value) -> Result<Value> {
    match (value.as_int(), value) {
        (Some(number), _) => Ok(Value::Int(number)),
        (_, value @ Value::Float(_)) => Ok(value),
        (_, value) => fail(format!("`+` does not take {}", value.kind())),
    }
}

pub(super) fn compare(comparison: Comparison, a: &Value, b: &Value, budget: &Budget) -> Result<bool> {
    Ok(match comparison {
        Comparison::Equal => equal(a, b, budget)?,
        Comparison::NotEqual => !equal(a, b, budget)?,
        Comparison::Less => order(a, b, budget)? == Some(Ordering::Less),
        Comparison::LessOrEqual => order(a, b, budget)?.is_some_and(Ordering::is_le),
        Comparison::Greater => order(a, b, budget)? == Some(Ordering::Greater),
        Comparison::GreaterOrEqual => order(a, b, budget)?.is_some_and(Ordering::is_ge),
        Comparison::In => contains(b, a, budget)?,
        Comparison::NotIn => !contains(b, a, budget)?,
    })
}

/// `a == b`
pub(super) fn equal(a: &Value, b: &Value, budget: &Budget) -> Result<bool> {
    budget.steps(1)?;
    Ok(match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            budget.scan(a.len().min(b.len()))?;
            budget.plain(a) == budget.plain(b)
        }
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::LongInt(a), Value::LongInt(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(a, b, budget)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a.entries() {
                match b.get(key, budget)? {
                    Some(other) if equal(value, other, budget)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::View(a), Value::View(b)) => match (a.kind, b.kind) {
            (ViewKind::Range { .. }, ViewKind::Range { .. }) => {
                a.items.len() == b.items.len()
                    && match (a.items.first(), b.items.first()) {
                        (Some(x), Some(y)) => equal(x, y, budget)? && equal_last(&a.items, &b.items, budget)?,
                        _ => true,
                    }
            }
            // Keys and entries are sets.
            (ViewKind::Keys | ViewKind::Entries, ViewKind::Keys | ViewKind::Entries) => {
                let mut is_same = a.items.len() == b.items.len();
                for item in a.items.iter() {
                    let mut is_there = false;
                    for other in b.items.iter() {
                        is_there = is_there || equal(item, other, budget)?;
                    }
                    is_same = is_same && is_there;
                }
                is_same
            }
            _ => Rc::ptr_eq(a, b),
        },
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => a == b,
            _ => matches!((a.as_float(), b.as_float()), (Some(a), Some(b)) if a == b),
        },
    })
}

fn equal_last(a: &[Value], b: &[Value], budget: &Budget) -> Result<bool> {
    match (a.last(), b.last()) {
        (Some(a), Some(b)) => equal(a, b, budget),
        _ => Ok(true),
    }
}

/// The order of two values; `None` where a number is none, an error where Python has no order.
pub(super) fn order(a: &Value, b: &Value, budget: &Budget) -> Result<Option<Ordering>> {
    budget.steps(1)?;
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            budget.scan(a.len().min(b.len()))?;
            return Ok(Some(budget.plain(a).cmp(&budget.plain(b))));
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(a, b, budget)? {
                    return order(a, b, budget);
                }
            }
            return Ok(Some(a.len().cmp(&b.len())));
        }
        (Value::Undefined(name), _) | (_, Value::Undefined(name)) => return Err(undefined(name)),
        _ => {}
    }
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return Ok(Some(a.cmp(&b)));
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
        _ => fail(format!("{} and {} have no order", a.kind(), b.kind())),
    }
}

/// `item in container`
pub(super) fn contains(container: &Value, item: &Value, budget: &Budget) -> Result<bool> {
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => {
                budget.scan(text.len())?;
                Ok(budget.plain(text).contains(&*budget.plain(part)))
            }
            Value::Undefined(name) => Err(undefined(name)),
            item => fail(format!("`in` a text takes a text, not {}", item.kind())),
        },
        Value::Dict(dict) => Ok(dict.get(item, budget)?.is_some()),
        Value::List(items) | Value::Tuple(items) => {
            for found in items.iter() {
                if equal(found, item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::View(view) => {
            let from = if view.kind == ViewKind::Generator { view.taken.get() } else { 0 };
            for (at, found) in view.items.iter().enumerate().skip(from) {
                view.taken.set(at + 1);
                if equal(found, item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Undefined(_) => Ok(false),
        container => fail(format!("`in` does not take {}", container.kind())),
    }
}

/// The character or item at an index, which counts from the end when it is negative.
pub(super) fn at_index(value: &Value, index: i128, budget: &Budget) -> Result<Option<Value>> {
    let place = |length: usize| {
        let index = if index < 0 { index + length as i128 } else { index };
        usize::try_from(index).ok()
    };
    Ok(match value {
        Value::List(items) | Value::Tuple(items) => place(items.len()).and_then(|at| items.get(at)).cloned(),
        Value::View(view) if matches!(view.kind, ViewKind::Range { .. }) => {
            place(view.items.len()).and_then(|at| view.items.get(at)).cloned()
        }
        Value::Str(text) => {
            budget.scan(text.len())?;
            let c = match index < 0 {
                true => usize::try_from(-(index + 1)).ok().and_then(|at| text.chars().rev().nth(at)),
                false => usize::try_from(index).ok().and_then(|at| text.chars().nth(at)),
            };
            c.map(|c| Value::copied(c.encode_utf8(&mut [0; 4]), budget)).transpose()?
        }
        _ => None,
    })
}

/// `value[start:stop:step]`
pub(super) fn slice(value: &Value, bounds: [Value; 3], budget: &Budget) -> Result<Value> {
    let [start, stop, step] = bounds;
    let bound = |value: &Value| match value {
        Value::None => Ok(None),
        Value::Undefined(name) => Err(undefined(name)),
        value => value.as_int().map(Some).ok_or_else(|| problem(format!("a slice does not take {}", value.kind()))),
    };
    let step = bound(&step)?.unwrap_or(1);
    if step == 0 {
        return fail("the step of a slice is 0");
    }
    let length = match value {
        Value::Undefined(name) => return Err(undefined(name)),
        Value::Str(text) => {
            budget.scan(text.len())?;
            text.chars().count()
        }
        Value::List(items) | Value::Tuple(items) => items.len(),
        Value::View(view) if matches!(view.kind, ViewKind::Range { .. }) => view.items.len(),
        value => {
            let kind = value.kind();
            return fail(format!("a value of type {kind} has no slices; make a list of it first, with `| list`"));
        }
    } as i128;
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |bound: Option<i128>, otherwise: i128| match bound {
        None => otherwise,
        Some(at) if at < 0 => (at + length).max(low),
        Some(at) => at.min(high),
    };
    let (first, end) = if step > 0 { (0, length) } else { (length - 1, -1) };
    let start = place(bound(&start)?, first);
    let stop = place(bound(&stop)?, end);
    if let Value::Str(text) = value
        && step == 1
    {
        let at = |index: i128| {
            let index = usize::try_from(index).unwrap_or(0);
            text.char_indices().nth(index).map_or(text.len(), |(at, _)| at)
        };
        let part = if start < stop { text.get(at(start)..at(stop)) } else { None };
        return Value::copied(part.unwrap_or_default(), budget);
    }
    let mut places = Vec::new();
    let distance = if step > 0 { stop - start } else { start - stop };
    let count = usize::try_from(distance.max(0).unsigned_abs().div_ceil(step.unsigned_abs())).unwrap_or(0);
    budget.steps(count)?;
    budget.bytes(count.saturating_mul(size_of::<Value>() + size_of::<usize>()))?;
    let mut at = start;
    for _ in 0..count {
        places.extend(usize::try_from(at));
        at = at.saturating_add(step);
    }
    match value {
        Value::List(items) => Value::list(places.iter().filter_map(|&at| items.get(at).cloned()).collect(), budget),
        Value::Tuple(items) => Value::tuple(places.iter().filter_map(|&at| items.get(at).cloned()).collect(), budget),
        Value::Str(text) => {
            budget.bytes(text.len().saturating_mul(4))?;
            let chars: Vec<char> = text.chars().collect();
            let mut out = Writer::new(budget);
            for c in places.iter().filter_map(|&at| chars.get(at)) {
                out.push_char(*c)?;
            }
            Ok(Value::made(out.text))
        }
        Value::View(view) => {
            let ViewKind::Range { start: first, step: by, .. } = view.kind else { return Ok(Value::None) };
            let at = |index: i128| first.saturating_add(index.saturating_mul(by));
            let kind = ViewKind::Range { start: at(start), stop: at(stop), step: by.saturating_mul(step) };
            Value::view(kind, places.iter().filter_map(|&at| view.items.get(at).cloned()).collect(), budget)
        }
        _ => Ok(Value::None),
    }
}
