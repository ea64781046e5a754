//! Texts or token ids: what completions and embeddings are asked for.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{ApiError, Result};

/// One text, or the ids of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    Text(String),
    Ids(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a text, a list of texts, a list of token ids, or a list of such lists")]
enum Wire {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    ManyIds(Vec<Vec<u32>>),
}

/// The inputs that the field `name` holds, of which there may be `max`.
///
/// # Errors
/// For other types, and for none.
pub(crate) fn read(name: &str, value: Value, max: usize) -> Result<Vec<Input>> {
    let wire: Wire = serde_json::from_value(value).map_err(|error| ApiError::invalid(name, error))?;
    let inputs = match wire {
        Wire::Text(text) => vec![Input::Text(text)],
        Wire::Texts(texts) => texts.into_iter().map(Input::Text).collect(),
        Wire::Ids(ids) if !ids.is_empty() => vec![Input::Ids(ids)],
        Wire::Ids(_) => Vec::new(),
        Wire::ManyIds(lists) => lists.into_iter().map(Input::Ids).collect(),
    };
    match inputs.len() {
        0 => Err(ApiError::invalid(name, "must not be empty")),
        len if len > max => Err(ApiError::invalid(name, format!("may have {max} entries, and has {len}"))),
        _ => Ok(inputs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_and_ids_come_alone_and_in_lists() {
        let read = |value| read("prompt", value, 2);
        assert_eq!(read(json!("a")).unwrap(), [Input::Text("a".into())]);
        assert_eq!(read(json!(["a", "b"])).unwrap().len(), 2);
        assert_eq!(read(json!([1, 2])).unwrap(), [Input::Ids(vec![1, 2])]);
        assert_eq!(read(json!([[1], [2, 3]])).unwrap(), [Input::Ids(vec![1]), Input::Ids(vec![2, 3])]);
        for wrong in [json!([]), json!(["a", "b", "c"]), json!(["a", 1]), json!([-1]), json!({}), json!(1.5)] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
