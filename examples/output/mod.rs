//! Printing for examples whose output goes into other programs.

use std::fmt::Display;
use std::io::{self, Write};

/// Print a line or several to stdout. A reader that has seen enough (`head`, say) is no error.
pub(crate) fn print(text: impl Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
