//! What is written around the answers, all of it to stderr, and whether colours are used.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use super::args::Color;

/// Faint text.
pub(crate) const DIM: &str = "\x1b[2m";
/// Back to how the terminal writes by itself.
pub(crate) const RESET: &str = "\x1b[0m";

/// What stdout and stderr are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    /// Whether answers may be coloured.
    pub(crate) answers_in_colour: bool,
    /// Whether answers go to a terminal, which control characters must not reach.
    pub(crate) answers_on_terminal: bool,
    colour: bool,
    /// Whether somebody sits there to read figures and hints.
    pub(crate) attended: bool,
}

impl Screen {
    pub(crate) fn new(color: Color, quiet: bool) -> Self {
        let environment = |name: &str| std::env::var(name).ok();
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Screen {
            answers_in_colour: in_colour(color, stdout, environment),
            answers_on_terminal: stdout,
            colour: in_colour(color, stderr, environment),
            attended: stderr && !quiet,
        }
    }

    /// Whether to colour what is written beside the answers, the prompt for example.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// A line that only a person at a terminal wants.
    pub(crate) fn note(&self, text: impl Display) {
        if self.attended {
            self.line(DIM, text);
        }
    }

    /// A line that is always written: a warning, or what a command was asked for.
    pub(crate) fn say(&self, text: impl Display) {
        self.line("", text);
    }

    /// An error that does not end the program.
    pub(crate) fn error(&self, text: impl Display) {
        self.line("\x1b[31m", format_args!("Error: {text}"));
    }

    /// Undo what a style did to the terminal.
    pub(crate) fn reset(&self) {
        if self.colour {
            self.line("", RESET);
        }
    }

    fn line(&self, style: &str, text: impl Display) {
        let (style, reset) = if self.colour && !style.is_empty() { (style, RESET) } else { ("", "") };
        // Where nobody reads stderr, what is said there is not missed.
        let _ = writeln!(io::stderr(), "{style}{text}{reset}");
    }
}

/// The usual rules: <https://no-color.org> and <https://bixense.com/clicolors>, after what the command line says.
fn in_colour(color: Color, is_terminal: bool, environment: impl Fn(&str) -> Option<String>) -> bool {
    let is_set = |name| environment(name).is_some_and(|value| !value.is_empty());
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto if is_set("NO_COLOR") => false,
        Color::Auto if is_set("CLICOLOR_FORCE") && environment("CLICOLOR_FORCE").as_deref() != Some("0") => true,
        Color::Auto => {
            is_terminal
                && environment("CLICOLOR").as_deref() != Some("0")
                && environment("TERM").as_deref() != Some("dumb")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_the_option_the_environment_and_the_terminal() {
        let auto = |is_terminal, variables: &[(&str, &str)]| {
            in_colour(Color::Auto, is_terminal, |name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(auto(true, &[]) && !auto(false, &[]));
        assert!(!auto(true, &[("NO_COLOR", "1")]));
        assert!(auto(true, &[("NO_COLOR", "")]));
        assert!(!auto(true, &[("CLICOLOR", "0")]) && !auto(true, &[("TERM", "dumb")]));
        assert!(auto(false, &[("CLICOLOR_FORCE", "1")]) && !auto(false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!auto(false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(in_colour(Color::Always, false, |_| Some("1".into())));
        assert!(!in_colour(Color::Never, true, |_| None));
    }
}
