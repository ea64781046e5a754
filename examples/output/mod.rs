//! Printing for examples whose output other programs read.

use std::fmt::Display;
use std::io::{self, Write};

/// Print to stdout, and end the line. It is not an error if the reader closes the pipe early, as `head` does.
pub(crate) fn print(text: impl Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
