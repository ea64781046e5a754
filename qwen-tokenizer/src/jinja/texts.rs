//! The texts within a value of the input, replaced by others.

use std::rc::Rc;
use std::sync::Arc;

use super::limits::Budget;
use super::value::Value;

impl Value {
    /// This value with every text for which `replace` has another one; `None` where it has none. Of the input's values:
    /// others have no texts to replace.
    pub(crate) fn with_texts(&self, replace: &mut dyn FnMut(&str) -> Option<Arc<str>>) -> Option<Value> {
        match self {
            Value::Str(text) => replace(text).map(Value::Str),
            Value::List(_) => self.with_items(&mut |item| item.with_texts(replace)),
            Value::Dict(dict) => {
                let mut has_replaced = false;
                let mut entries = Vec::with_capacity(dict.len());
                for (key, value) in dict.entries() {
                    let (new_key, new_value) = (key.with_texts(replace), value.with_texts(replace));
                    has_replaced |= new_key.is_some() || new_value.is_some();
                    entries.push((new_key.unwrap_or_else(|| key.clone()), new_value.unwrap_or_else(|| value.clone())));
                }
                has_replaced.then(|| Value::Dict(Rc::new(dict.with_entries(entries))))
            }
            _ => None,
        }
    }

    /// A list with every item for which `replace` has another one; `None` where it has none.
    pub(crate) fn with_items(&self, replace: &mut dyn FnMut(&Value) -> Option<Value>) -> Option<Value> {
        let Value::List(items) = self else { return None };
        let mut has_replaced = false;
        let items = items.iter().map(|item| {
            let replaced = replace(item);
            has_replaced |= replaced.is_some();
            replaced.unwrap_or_else(|| item.clone())
        });
        let items: Vec<Value> = items.collect();
        has_replaced.then(|| Value::list(items, &Budget::of_input()).unwrap_or(Value::None))
    }

    /// The text under a key of a mapping.
    pub(crate) fn text_at(&self, key: &str) -> Option<&str> {
        match self {
            Value::Dict(dict) => dict.get_str(key, &Budget::of_input())?.as_str(),
            _ => None,
        }
    }
}
