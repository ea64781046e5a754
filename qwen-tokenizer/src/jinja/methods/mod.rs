//! Methods of texts, lists, mappings and numbers, as Python has them. Those of texts are in `text`,
//! `splitting` and `tables`, what they know of single characters in `characters`.

mod characters;
mod splitting;
mod tables;
mod text;

pub(super) use self::characters::is_alnum;
pub(super) use self::splitting::{ends_line, lines};
pub(super) use self::text::{capitalized, lower, pad, replace, strip, upper};
use std::rc::Rc;

use super::arguments::CallArguments;
use super::ast::Text;
use super::guards;
use super::limits::{Budget, Result, fail};
use super::ops::equal;
use super::value::{Dict, Items, Value, ViewKind};

const OF_LISTS: [&str; 3] = ["copy", "count", "index"];
const OF_MAPPINGS: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const OF_INTEGERS: [&str; 2] = ["bit_length", "conjugate"];
const OF_FLOATS: [&str; 2] = ["conjugate", "is_integer"];
/// Methods that change a mapping. The sandbox of transformers has them undefined.
const CHANGING: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
/// Methods that change a list, undefined likewise.
const CHANGING_LISTS: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

/// Whether some value has a method of this name.
pub(super) fn exists(name: &str) -> bool {
    text::NAMES.contains(&name)
        || [&OF_LISTS[..], &OF_MAPPINGS, &OF_INTEGERS, &OF_FLOATS].into_iter().any(|names| names.contains(&name))
        || matches!(name, "cycle" | "changed" | "next" | "reset")
}

/// Whether the sandbox takes away methods of this name.
pub(super) fn is_changing(name: &str) -> bool {
    CHANGING.contains(&name) || CHANGING_LISTS.contains(&name)
}

/// All methods, to find the one that was meant.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    text::NAMES.into_iter().chain(OF_LISTS).chain(OF_MAPPINGS)
}

/// Whether `value` has a method of this name; `None` if the name is one that the sandbox takes away.
pub(super) fn has(value: &Value, name: &str) -> Option<bool> {
    match value {
        Value::Str(_) => Some(text::NAMES.contains(&name)),
        Value::List(_) => Some(OF_LISTS.contains(&name)),
        Value::Tuple(_) => Some(matches!(name, "count" | "index")),
        Value::View(view) if matches!(view.kind, ViewKind::Range { .. }) => Some(matches!(name, "count" | "index")),
        Value::Bool(_) | Value::Int(_) => Some(OF_INTEGERS.contains(&name)),
        Value::Float(_) => Some(OF_FLOATS.contains(&name)),
        Value::Dict(_) if CHANGING.contains(&name) => None,
        Value::Dict(_) => Some(OF_MAPPINGS.contains(&name)),
        _ => Some(false),
    }
}

/// Calls a method that [`has`] has found, but for those of `braces`.
pub(super) fn call(value: &Value, name: &str, mut arguments: CallArguments, budget: &Budget) -> Result<Value> {
    let result = match value {
        Value::Str(text) => {
            budget.scan(text.len())?;
            match name {
                "split" | "rsplit" | "splitlines" | "expandtabs" | "replace" => {}
                name if !arguments.named.is_empty() => {
                    return fail(format!("{name}: its arguments have no names; write the values alone"));
                }
                _ => {}
            }
            let text = guards::prepare(text, name, &mut arguments, budget);
            text::call(&Value::Str(Text::clone(&text)), &text, name, &mut arguments, budget)?
        }
        Value::List(items) | Value::Tuple(items) => of_list(value, items, name, &mut arguments, budget)?,
        Value::View(view) => of_list(value, &view.items, name, &mut arguments, budget)?,
        Value::Float(number) if name == "is_integer" => Value::Bool(number.is_finite() && number.fract() == 0.0),
        Value::Float(_) => value.clone(),
        Value::Bool(_) | Value::Int(_) => match (name, value.as_int().unwrap_or(0)) {
            ("bit_length", number) => Value::Int(i128::from(u128::BITS - number.unsigned_abs().leading_zeros())),
            (_, number) => Value::Int(number),
        },
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
            let key = arguments.need("")?;
            let otherwise = arguments.take("").unwrap_or(Value::None);
            Ok(dict.get(&key, budget)?.cloned().unwrap_or(otherwise))
        }
        "items" => Value::view(ViewKind::Entries, entries(dict, budget)?, budget),
        "keys" => Value::view(ViewKind::Keys, dict.entries().map(|(key, _)| key.clone()).collect(), budget),
        "values" => Value::view(ViewKind::Values, dict.entries().map(|(_, value)| value.clone()).collect(), budget),
        "fromkeys" => {
            let keys = arguments.need("")?.defined()?.iterate(budget)?;
            let value = arguments.take("").unwrap_or(Value::None);
            let mut dict = Dict::default();
            for key in keys.iter() {
                dict.insert(key.clone(), value.clone(), budget)?;
            }
            Ok(Value::Dict(Rc::new(dict)))
        }
        _ => Ok(value.clone()),
    }
}

/// The entries of a mapping as pairs.
pub(super) fn entries(dict: &Dict, budget: &Budget) -> Result<Vec<Value>> {
    let pair = |(key, value): (&Value, &Value)| Value::tuple(vec![key.clone(), value.clone()], budget);
    dict.entries().map(pair).collect()
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
    let wanted = arguments.need("")?;
    let mut places = 0..items.len();
    if name == "index" {
        let place = |at: i128| {
            let at = if at < 0 { (at + items.len() as i128).max(0) } else { at };
            usize::try_from(at).unwrap_or(usize::MAX).min(items.len())
        };
        places.start = arguments.int("")?.map_or(places.start, place);
        places.end = arguments.int("")?.map_or(places.end, place);
    }
    let mut count = 0;
    for (at, item) in items.iter().enumerate().take(places.end).skip(places.start) {
        if equal(item, &wanted, budget)? {
            if name == "index" {
                return Ok(Value::Int(at as i128));
            }
            count += 1;
        }
    }
    if name == "index" { fail("the value is not in the list") } else { Ok(Value::Int(count)) }
}
