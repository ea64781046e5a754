//! How an example reports the error that ends it.

use std::fmt::{self, Debug, Display};

/// Any error, as text: Rust prints the error that `main` returns in its Debug form, which for this type is the message.
pub(crate) struct Failure(String);

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.to_string())
    }
}

impl Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
