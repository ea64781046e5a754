//! The tests of Jinja: what stands after `is`.

use super::arguments::CallArguments;
use super::ast::Comparison;
use super::limits::{Budget, Result, fail, problem};
use super::names;
use super::ops::compare;
use super::value::{Value, ViewKind};

/// Names that are compared instead of tested.
fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "eq" | "equalto" | "==" => Comparison::Equal,
        "ne" | "!=" => Comparison::NotEqual,
        "lt" | "lessthan" | "<" => Comparison::Less,
        "le" | "<=" => Comparison::LessOrEqual,
        "gt" | "greaterthan" | ">" => Comparison::Greater,
        "ge" | ">=" => Comparison::GreaterOrEqual,
        "in" => Comparison::In,
        _ => return None,
    })
}

/// `value is name(arguments)`
pub(super) fn test(name: &str, value: &Value, mut arguments: CallArguments, budget: &Budget) -> Result<bool> {
    budget.steps(1)?;
    if let Some(comparison) = comparison(name) {
        let other = arguments.need("other")?;
        arguments.finish(name)?;
        return compare(comparison, value, &other, budget);
    }
    let int = || value.as_int().ok_or_else(|| problem(format!("{name}: an integer, not {}", value.kind())));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let result = match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_) | Value::LongInt(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::LongInt(_) | Value::Float(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "iterable" | "sequence" => {
            matches!(value, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_))
                || matches!(value, Value::View(view) if name == "iterable" || matches!(view.kind, ViewKind::Range { .. }))
                || (name == "iterable" && matches!(value, Value::Loop(_)))
        }
        "callable" => {
            matches!(value, Value::Macro(_) | Value::Function(_) | Value::Method(_) | Value::Undefined(_))
        }
        "odd" | "even" => {
            let rest = match value {
                Value::Float(number) => number.rem_euclid(2.0),
                _ => int()?.rem_euclid(2) as f64,
            };
            rest == if name == "odd" { 1.0 } else { 0.0 }
        }
        "divisibleby" => {
            let by = arguments.int("num")?.unwrap_or(0);
            match int()?.checked_rem(by) {
                Some(rest) => rest == 0,
                None => return fail("divisibleby: division by zero"),
            }
        }
        "sameas" => is_same(value, &arguments.need("other")?),
        "lower" => text(value).is_some_and(|text| text == text.to_lowercase() && text != text.to_uppercase()),
        "upper" => text(value).is_some_and(|text| text == text.to_uppercase() && text != text.to_lowercase()),
        "escaped" => false,
        "filter" | "test" if matches!(value, Value::List(_) | Value::Dict(_) | Value::Namespace(_)) => {
            return fail(format!("{name}: the name of a {name}, not {}", value.kind()));
        }
        "filter" => value.as_str().is_some_and(names::is_filter),
        "test" => value.as_str().is_some_and(names::is_test),
        _ => return fail(format!("there is no test `{name}`")),
    };
    arguments.finish(name)?;
    Ok(result)
}

/// Python's `is`.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => std::rc::Rc::ptr_eq(a, b),
        _ => false,
    }
}
