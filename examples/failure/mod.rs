//! How an example ends with an error.

use std::fmt::{self, Debug, Display};

/// Any error, as text: what `main` returns is printed in its Debug form, which of this type is the message itself.
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
