//! What is inside a value: attributes, items, methods.

use std::rc::Rc;

use super::ast::Text;
use super::limits::{Budget, Result};
use super::methods;
use super::ops::at_index;
use super::value::{Loop, Value, undefined};

/// `value.name`: a method or an attribute, else an item.
pub(super) fn attribute(value: &Value, name: &Text, budget: &Budget) -> Result<Value> {
    match value {
        Value::Undefined(name) => Err(undefined(name)),
        // Most of the time a mapping is asked for a key.
        Value::Dict(dict) => match method(value, name) {
            Value::Undefined(_) if methods::has(value, name).is_some() => {
                Ok(dict.get_str(name, budget).cloned().unwrap_or_else(|| missing(value, name)))
            }
            found => Ok(found),
        },
        // The sandbox hides what begins with an underscore.
        Value::Namespace(_) if name.starts_with('_') => Ok(missing(value, name)),
        Value::Namespace(entries) => {
            Ok(entries.borrow().get_str(name, budget).cloned().unwrap_or_else(|| missing(value, name)))
        }
        Value::Loop(state) => of_loop(state, name, budget),
        // The two names of what `groupby` gives.
        Value::Tuple(pair) if pair.len() == 2 && matches!(&**name, "grouper" | "list") => {
            Ok(pair.get(usize::from(&**name == "list")).cloned().unwrap_or(Value::None))
        }
        Value::Macro(callable) if &**name == "name" => Ok(Value::Str(Text::clone(&callable.definition.name))),
        value => Ok(method(value, name)),
    }
}

/// A method of this name, or what is undefined.
pub(super) fn method(value: &Value, name: &str) -> Value {
    match methods::has(value, name) {
        Some(true) => Value::Method(Rc::new((value.clone(), name.into()))),
        _ => missing(value, name),
    }
}

/// `value[key]`: an item, else an attribute.
pub(super) fn item(value: &Value, key: &Value, budget: &Budget) -> Result<Value> {
    match (value, key) {
        (Value::Undefined(name), _) => return Err(undefined(name)),
        (Value::Dict(dict), Value::Str(name)) => {
            if let Some(found) = dict.get(key, budget)? {
                return Ok(found.clone());
            }
            return Ok(method(value, name));
        }
        (Value::Dict(dict), Value::Tuple(_)) => {
            if let Some(found) = dict.get(key, budget)? {
                return Ok(found.clone());
            }
        }
        // A list cannot be a key.
        (Value::Dict(_), Value::List(_) | Value::Dict(_) | Value::Undefined(_)) => {}
        (Value::Dict(dict), _) => {
            if let Ok(Some(found)) = dict.get(key, budget) {
                return Ok(found.clone());
            }
        }
        (_, Value::Str(name)) => return attribute(value, name, budget),
        (_, key) => {
            if let Some(index) = key.as_int()
                && let Some(found) = at_index(value, index, budget)?
            {
                return Ok(found);
            }
        }
    }
    Ok(missing(value, "an item"))
}

fn missing(value: &Value, name: &str) -> Value {
    let shown: String = name.chars().take(60).collect();
    Value::Undefined(format!("`{shown}` of a value of type {}", value.kind()).into())
}

fn of_loop(state: &Loop, name: &str, budget: &Budget) -> Result<Value> {
    budget.steps(1)?;
    let index = state.index.get();
    let length = state.items.len();
    let int = |number: usize| Value::Int(number as i128);
    let neighbour = |at: Option<usize>, name: &str| {
        let found = at.and_then(|at| state.items.get(at)).cloned();
        found.unwrap_or_else(|| Value::Undefined(format!("`{name}` of this loop").into()))
    };
    Ok(match name {
        "index" => int(index + 1),
        "index0" => int(index),
        "revindex" => int(length.saturating_sub(index)),
        "revindex0" => int(length.saturating_sub(index + 1)),
        "first" => Value::Bool(index == 0),
        "last" => Value::Bool(index + 1 == length),
        "length" => int(length),
        "depth" => int(state.depth + 1),
        "depth0" => int(state.depth),
        "previtem" => neighbour(index.checked_sub(1), name),
        "nextitem" => neighbour(Some(index + 1), name),
        name => Value::Undefined(format!("`{name}` of a loop").into()),
    })
}
