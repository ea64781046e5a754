//! The fields of a request's JSON object, each taken once by name. `null` counts as absent, and what nobody took is
//! refused by name, so that no field is ignored silently.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ApiError, Result};

/// What is left of a JSON object.
#[derive(Debug)]
pub(crate) struct Fields {
    left: Map<String, Value>,
    /// What the names in errors begin with: empty, or the path of an inner object with a dot.
    path: String,
}

impl Fields {
    /// The fields of a request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(left)) => Ok(Fields { left, path: String::new() }),
            Ok(_) => Err(ApiError::bad_request("the body is no JSON object")),
            Err(error) => Err(ApiError::bad_request(format!("the body is no JSON: {error}"))),
        }
    }

    /// The fields of an object.
    pub(crate) fn of_object(left: Map<String, Value>) -> Self {
        Fields { left, path: String::new() }
    }

    /// The fields of the object that stands at `path`.
    pub(crate) fn of(value: Value, path: &str) -> Result<Self> {
        match value {
            Value::Object(left) => Ok(Fields { left, path: format!("{path}.") }),
            _ => Err(ApiError::invalid(path, "must be an object")),
        }
    }

    /// The full name of a field, for errors.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The field, if it is there.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        // Shifting keeps the order, in which the first unknown field is named.
        self.left.shift_remove(name).filter(|value| !value.is_null())
    }

    /// The field as a `T`, if it is there.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| ApiError::invalid(self.name(name), error))
    }

    /// The field as a `T`, which has to be there.
    pub(crate) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        self.take(name)?
            .ok_or_else(|| ApiError::invalid(self.name(name), "is missing").code("missing_required_parameter"))
    }

    /// The object that the field holds, if it is there.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        let path = self.name(name);
        self.value(name).map(|value| Fields::of(value, &path)).transpose()
    }

    /// The field may only have the value that it has when it is absent.
    pub(crate) fn only(&mut self, name: &str, allowed: &[Value], reason: &str) -> Result<()> {
        match self.value(name) {
            Some(value) if !allowed.contains(&value) => Err(ApiError::unsupported(self.name(name), reason)),
            _ => Ok(()),
        }
    }

    /// Fields that change nothing here, whatever they are.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.left.shift_remove(*name);
        }
    }

    /// Refuse whatever was not taken.
    pub(crate) fn finish(self) -> Result<()> {
        match self.left.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                let error = ApiError::invalid(self.name(name), "this server does not know this field");
                Err(error.code("unknown_parameter"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_nobody_took_is_named() {
        let mut fields = Fields::parse(br#"{"a": 1, "b": null, "c": {"d": 2}, "e": 3}"#).unwrap();
        assert_eq!(fields.take::<u32>("a").unwrap(), Some(1));
        let inner = fields.object("c").unwrap().unwrap();
        assert_eq!(inner.finish().unwrap_err().json()["error"]["param"], "c.d");
        assert_eq!(fields.finish().unwrap_err().json()["error"]["param"], "e");
    }

    #[test]
    fn null_is_absent_and_types_are_checked() {
        let mut fields = Fields::parse(br#"{"a": null, "b": "x", "store": true}"#).unwrap();
        assert_eq!(fields.take::<u32>("a").unwrap(), None);
        assert_eq!(fields.take::<u32>("b").unwrap_err().json()["error"]["param"], "b");
        assert!(fields.only("store", &[json!(false)], "nothing is stored").is_err());
        assert!(Fields::parse(b"[]").is_err() && Fields::parse(b"\xff").is_err());
    }
}
