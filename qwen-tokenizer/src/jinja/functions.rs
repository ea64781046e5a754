//! The functions that a template can call by name: Jinja's, and those of transformers.

use std::cell::RefCell;
use std::rc::Rc;

use super::arguments::CallArguments;
use super::clock;
use super::limits::{Budget, Fault, MAX_RANGE, Result, fail, problem};
use super::python::to_str;
use super::value::{Dict, Value, ViewKind};

pub(super) const NAMES: [&str; 5] = ["dict", "namespace", "raise_exception", "range", "strftime_now"];

/// The function of this name.
pub(super) fn find(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|found| *found == name)
}

pub(super) fn call(name: &str, mut arguments: CallArguments, now: Option<i64>, budget: &Budget) -> Result<Value> {
    let result = match name {
        "range" => range(&mut arguments, budget)?,
        "dict" => Value::Dict(Rc::new(entries(&mut arguments, budget)?)),
        "namespace" => Value::Namespace(Rc::new(RefCell::new(entries(&mut arguments, budget)?))),
        "raise_exception" => {
            let message = to_str(&arguments.take("message").unwrap_or_else(|| Value::str("")), budget)?;
            return Err(Fault::raised(message.as_str().unwrap_or_default().to_owned()));
        }
        _ => {
            let now = now.ok_or_else(|| problem("strftime_now: there is no clock here; set ChatInput::now"))?;
            let Some(format) = arguments.text("format")? else { return fail("strftime_now: a format is missing") };
            // A directive of two characters writes at most nineteen.
            budget.text(0, format.len().saturating_mul(10))?;
            let text = clock::format(&format, now);
            Value::made(text.map_err(|c| {
                problem(format!(
                    "strftime_now: the directive %{c} is not supported; use those of the C standard, such as %Y-%m-%d"
                ))
            })?)
        }
    };
    arguments.finish(name)?;
    Ok(result)
}

/// The entries that a mapping is made of: another mapping or pairs, then names.
fn entries(arguments: &mut CallArguments, budget: &Budget) -> Result<Dict> {
    let mut dict = match arguments.take("") {
        None => Dict::default(),
        Some(Value::Dict(dict)) => {
            budget.bytes(dict.len().saturating_mul(4 * size_of::<Value>()))?;
            (*dict).clone()
        }
        Some(pairs) => {
            let pairs = pairs.defined()?;
            let mut dict = Dict::default();
            for pair in pairs.iterate(budget)?.iter() {
                match &**pair.iterate(budget)? {
                    [key, value] => dict.insert(key.clone(), value.clone(), budget)?,
                    items => return fail(format!("dict: {} values for a key and a value", items.len())),
                }
            }
            dict
        }
    };
    for (name, value) in std::mem::take(&mut arguments.named) {
        dict.insert(Value::Str(name), value, budget)?;
    }
    Ok(dict)
}

fn range(arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let int = |value: Value| value.as_int().ok_or_else(|| problem(format!("range: an integer, not {}", value.kind())));
    let first = int(arguments.need("stop")?)?;
    let (start, stop) = match arguments.take("stop") {
        Some(stop) => (first, int(stop)?),
        None => (0, first),
    };
    let step = arguments.take("step").map_or(Ok(1), int)?;
    let distance = match step {
        0 => return fail("range: the step is 0"),
        1.. => stop.saturating_sub(start),
        _ => start.saturating_sub(stop),
    };
    let count = distance.max(0).unsigned_abs().div_ceil(step.unsigned_abs());
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    if count > MAX_RANGE {
        return Err(Fault::limit("numbers of one range", count, MAX_RANGE));
    }
    let mut items = Vec::new();
    let mut number = start;
    for _ in 0..count {
        items.push(Value::Int(number));
        number = number.saturating_add(step);
    }
    Value::view(ViewKind::Range { start, stop, step }, items, budget)
}
