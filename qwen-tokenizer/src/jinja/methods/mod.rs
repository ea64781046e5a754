//! Methods of texts, lists and mappings, as Python has them. Those of texts are in `text`.

mod text;

pub(super) use self::text::{capitalized, ends_line, lines, lower, pad, replace, strip, upper};
use std::rc::Rc;

use super::arguments::CallArguments;
use super::ast::Text;
use super::format;
use super::guards;
use super::limits::{Budget, Result, fail};
use super::ops::equal;
use super::value::{Dict, Items, Value};

const OF_LISTS: [&str; 3] = ["copy", "count", "index"];
const OF_MAPPINGS: [&str; 5] = ["copy", "get", "items", "keys", "values"];
/// Methods that change a mapping. The sandbox of transformers has them undefined.
const CHANGING: [&str; 6] = ["clear", "fromkeys", "pop", "popitem", "setdefault", "update"];

/// Whether `value` has a method of this name; `None` if the name is one that the sandbox takes away.
pub(super) fn has(value: &Value, name: &str) -> Option<bool> {
    match value {
        Value::Str(_) => Some(text::NAMES.contains(&name)),
        Value::List(_) | Value::Tuple(_) => Some(OF_LISTS.contains(&name)),
        Value::Dict(_) if CHANGING.contains(&name) => None,
        Value::Dict(_) => Some(OF_MAPPINGS.contains(&name)),
        _ => Some(false),
    }
}

/// Calls a method that [`has`] has found.
pub(super) fn call(value: &Value, name: &str, mut arguments: CallArguments, budget: &Budget) -> Result<Value> {
    let result = match value {
        Value::Str(text) => {
            budget.scan(text.len())?;
            if name == "format" {
                return format::braces(text, &arguments, budget);
            }
            let text = guards::prepare(text, name, &mut arguments, budget);
            text::call(&Value::Str(Text::clone(&text)), &text, name, &mut arguments, budget)?
        }
        Value::List(items) | Value::Tuple(items) => of_list(value, items, name, &mut arguments, budget)?,
        Value::Dict(dict) => of_mapping(value, dict, name, &mut arguments, budget)?,
        value => return fail(format!("{} has no method `{name}`", value.kind())),
    };
    arguments.finish(name)?;
    Ok(result)
}

fn of_mapping(
    value: &Value,
    dict: &Rc<Dict>,
    name: &str,
    arguments: &mut CallArguments,
    budget: &Budget,
) -> Result<Value> {
    match name {
        "get" => {
            let key = arguments.need("key")?;
            let otherwise = arguments.take("default").unwrap_or(Value::None);
            Ok(dict.get(&key, budget)?.cloned().unwrap_or(otherwise))
        }
        "items" => entries(dict, budget),
        "keys" => Value::list(dict.entries().map(|(key, _)| key.clone()).collect(), budget),
        "values" => Value::list(dict.entries().map(|(_, value)| value.clone()).collect(), budget),
        _ => Ok(value.clone()),
    }
}

/// The entries of a mapping as a list of pairs.
pub(super) fn entries(dict: &Dict, budget: &Budget) -> Result<Value> {
    let pair = |(key, value): (&Value, &Value)| Value::tuple(vec![key.clone(), value.clone()], budget);
    Value::list(dict.entries().map(pair).collect::<Result<_>>()?, budget)
}

fn of_list(
    value: &Value,
    items: &Rc<Items>,
    name: &str,
    arguments: &mut CallArguments,
    budget: &Budget,
) -> Result<Value> {
    if name == "copy" {
        return Ok(value.clone());
    }
    let wanted = arguments.need("value")?;
    let mut count = 0;
    for (at, item) in items.iter().enumerate() {
        if equal(item, &wanted, budget)? {
            if name == "index" {
                return Ok(Value::Int(at as i128));
            }
            count += 1;
        }
    }
    if name == "index" { fail("the value is not in the list") } else { Ok(Value::Int(count)) }
}
