//! Where questions come from: a terminal with an editor, or the lines of a pipe.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use super::editor::{Editor, Line};
use super::failure::Failure;
use super::screen::Screen;

/// What begins and ends a text of several lines.
pub(crate) const QUOTES: &str = "\"\"\"";

pub(crate) enum Input {
    Terminal {
        editor: Box<Editor>,
        screen: Screen,
        /// Whether Ctrl-C was the last thing that happened: another one ends the program.
        interrupted: bool,
    },
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Input {
    /// # Errors
    /// When the terminal or the file of the history cannot be used.
    pub(crate) fn open(history: Option<&Path>, screen: Screen) -> Result<Self, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(Input::Pipe(io::stdin().lines()));
        }
        let editor = Box::new(Editor::open(history, screen)?);
        Ok(Input::Terminal { editor, screen, interrupted: false })
    }

    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal { .. })
    }

    /// The next question or command; `None` at the end of the input and after a second Ctrl-C.
    ///
    /// # Errors
    /// When the input cannot be read, is not UTF-8, or ends within a text of several lines.
    pub(crate) fn next(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Input::Pipe(lines) => from_lines(lines),
            Input::Terminal { editor, screen, interrupted } => loop {
                match editor.read("> ")? {
                    Line::Text(text) => {
                        *interrupted = false;
                        if let Err(error) = editor.remember(&text) {
                            screen.error(format_args!("what was typed is not kept: {error}"));
                        }
                        return Ok(Some(unquoted(&text)));
                    }
                    Line::Interrupted if !*interrupted => {
                        *interrupted = true;
                        screen.note("Ctrl-C again ends, as does /exit.");
                    }
                    Line::Interrupted | Line::End => return Ok(None),
                }
            },
        }
    }

    /// Ask whether to do something. Nobody can say yes in a pipe.
    ///
    /// # Errors
    /// When the terminal fails.
    pub(crate) fn confirm(&mut self, question: &str) -> Result<bool, Failure> {
        let Input::Terminal { editor, .. } = self else { return Ok(false) };
        loop {
            match editor.read(&format!("{question} [Y/n] "))? {
                Line::Interrupted | Line::End => return Ok(false),
                Line::Text(text) => match text.trim().to_lowercase().as_str() {
                    "" | "y" | "yes" => return Ok(true),
                    "n" | "no" => return Ok(false),
                    _ => {}
                },
            }
        }
    }

    /// Whether Ctrl-C stopped the last answer: then another one ends the program.
    pub(crate) fn after_interrupt(&mut self, was_interrupted: bool) {
        if let Input::Terminal { interrupted, .. } = self {
            *interrupted = was_interrupted;
        }
    }
}

/// `prompt`, and behind it all of stdin, where that is a pipe or a file with something in it.
///
/// # Errors
/// When stdin cannot be read or is not UTF-8.
pub(crate) fn with_stdin(prompt: &str) -> Result<String, Failure> {
    let mut text = String::new();
    if !io::stdin().is_terminal() {
        io::stdin().read_to_string(&mut text).map_err(unreadable)?;
    }
    Ok(joined(prompt, &text))
}

fn joined(prompt: &str, text: &str) -> String {
    match (prompt.trim_end(), text.trim_end()) {
        (_, "") => prompt.into(),
        ("", text) => text.into(),
        (prompt, text) => format!("{prompt}\n\n{text}"),
    }
}

fn unreadable(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            Failure::from("stdin is not UTF-8 text: convert it first, with iconv for example")
        }
        _ => Failure::from(format!("cannot read stdin: {error}")),
    }
}

/// The next question of these lines: one of them, or several that belong together.
fn from_lines(lines: &mut impl Iterator<Item = io::Result<String>>) -> Result<Option<String>, Failure> {
    let mut text = String::new();
    while let Some(line) = lines.next().transpose().map_err(unreadable)? {
        text += &line;
        // Nobody pastes into a pipe, so a backslash at the end of a line is what it seems.
        if !text.starts_with(QUOTES) && text.ends_with('\\') {
            text.pop();
            text.push('\n');
        } else if is_open(&text) {
            text.push('\n');
        } else {
            return Ok(Some(unquoted(&text)));
        }
    }
    match text.is_empty() {
        true => Ok(None),
        false if is_open(&text) => Err(Failure::from(format!("stdin ends within a text that began with {QUOTES}"))),
        false => Ok(Some(text)),
    }
}

/// Whether the text began with three quotes, and their counterparts are missing.
pub(crate) fn is_open(text: &str) -> bool {
    text.trim_start().strip_prefix(QUOTES).is_some_and(|rest| !rest.trim_end().ends_with(QUOTES))
}

/// The text within three quotes, without the line breaks beside them; any other text as it is.
fn unquoted(text: &str) -> String {
    let inner = text.trim().strip_prefix(QUOTES).and_then(|rest| rest.strip_suffix(QUOTES));
    let Some(inner) = inner else { return text.into() };
    let inner = inner.strip_prefix('\n').unwrap_or(inner);
    inner.strip_suffix('\n').unwrap_or(inner).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions(text: &str) -> Result<Vec<String>, Failure> {
        let mut lines = text.lines().map(|line| Ok(line.to_owned()));
        std::iter::from_fn(|| from_lines(&mut lines).transpose()).collect()
    }

    #[test]
    fn lines_that_belong_together_are_one_question() {
        let read = |text| questions(text).unwrap_or_else(|failure| panic!("{failure:?}"));
        assert_eq!(read("one\ntwo\n"), ["one", "two"]);
        assert_eq!(read("one\\\ntwo\\\nthree\nfour"), ["one\ntwo\nthree", "four"]);
        assert_eq!(read("\"\"\"\none\\\n\n two\n\"\"\"\nthree"), ["one\\\n\n two", "three"]);
        assert_eq!(read("\"\"\"one\ntwo\"\"\"\n\"\"\"three\"\"\""), ["one\ntwo", "three"]);
        assert_eq!(read("end\\"), ["end\n"]);
        assert_eq!(read("say \"\"\"\nso"), ["say \"\"\"", "so"]);
        assert_eq!(read("\"\"\"\"\"\""), [""]);
        assert!(read("").is_empty());
        assert!(questions("\"\"\"\none").is_err_and(|failure| format!("{failure:?}").contains("ends within")));
    }

    #[test]
    fn a_prompt_is_followed_by_what_was_piped() {
        assert_eq!(joined("Summarise: ", " a\n b\n"), "Summarise:\n\n a\n b");
        assert_eq!(joined("Hello ", "\n"), "Hello ");
        assert_eq!(joined("", "Hello"), "Hello");
    }

    #[test]
    fn three_quotes_are_open_until_there_are_three_more() {
        for (text, open) in [("\"\"\"", true), ("\"\"\"a", true), ("\"\"\"a\n\"\"\" ", false), ("a \"\"\"", false)] {
            assert_eq!(is_open(text), open, "{text}");
        }
    }
}
