//! `translate` and `maketrans`: tables from characters to what stands in their place.

use std::rc::Rc;

use super::super::arguments::CallArguments;
use super::super::limits::{Budget, Result, Writer, fail, problem};
use super::super::value::{Dict, Value};

/// `text.translate(table)`: a table from the codes of characters to codes, texts or none.
pub(super) fn translate(text: &str, table: &Value, budget: &Budget) -> Result<Value> {
    let Value::Dict(table) = table else { return fail(format!("translate: a mapping, not {}", table.kind())) };
    let mut out = Writer::new(budget);
    for c in text.chars() {
        match table.get(&Value::Int(i128::from(u32::from(c))), budget)? {
            None => out.push_char(c)?,
            Some(Value::None) => {}
            Some(Value::Str(text)) => out.push(text)?,
            Some(value) => {
                let code = value.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?));
                out.push_char(code.ok_or_else(|| problem("translate: a value of the table is no character"))?)?;
            }
        }
    }
    Ok(Value::made(out.text))
}

pub(super) fn maketrans(arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let code = |c: char| Value::Int(i128::from(u32::from(c)));
    let mut table = Dict::default();
    match arguments.need("")? {
        Value::Dict(entries) => {
            for (key, value) in entries.entries() {
                let mut chars = key.as_str().unwrap_or_default().chars();
                let key = match (chars.next(), chars.next()) {
                    (Some(c), None) => code(c),
                    _ if key.as_int().is_some() => key.clone(),
                    _ => return fail("maketrans: the keys are single characters"),
                };
                table.insert(key, value.clone(), budget)?;
            }
        }
        Value::Str(from) => {
            let to = arguments.need_text("")?;
            if from.chars().count() != to.chars().count() {
                return fail("maketrans: two texts of the same length");
            }
            for (from, to) in from.chars().zip(to.chars()) {
                table.insert(code(from), code(to), budget)?;
            }
            for c in arguments.text("")?.unwrap_or_default().chars() {
                table.insert(code(c), Value::None, budget)?;
            }
        }
        value => return fail(format!("maketrans: a mapping or texts, not {}", value.kind())),
    }
    Ok(Value::Dict(Rc::new(table)))
}
