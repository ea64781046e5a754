//! The line editor of the terminal: keys, completion, several lines, history.

use std::fs;
use std::path::{Path, PathBuf};

use rustyline::completion::{Completer, Pair};
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, ColorMode, CompletionType, Config, Context, Helper, KeyCode, KeyEvent, Modifiers, Result};

use super::commands;
use super::input::is_open;
use super::screen::Screen;

/// What a user did at the prompt.
pub(crate) enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D.
    End,
}

pub(crate) struct Editor {
    editor: rustyline::Editor<Keys, DefaultHistory>,
    history: Option<PathBuf>,
    colour: bool,
}

impl Editor {
    /// # Errors
    /// When the terminal cannot be used, or the file of the history cannot be read.
    pub(crate) fn open(history: Option<&Path>, screen: Screen) -> std::result::Result<Self, String> {
        let color_mode = if screen.colour() { ColorMode::Forced } else { ColorMode::Disabled };
        let config = Config::builder()
            // The prompt is drawn on the terminal itself, so that stdout holds nothing but answers.
            .behavior(Behavior::PreferTerm)
            .bracketed_paste(true)
            .color_mode(color_mode)
            .completion_type(CompletionType::List)
            .history_ignore_space(false)
            .build();
        let mut editor = rustyline::Editor::with_config(config).map_err(|error| format!("the terminal: {error}"))?;
        editor.set_helper(Some(Keys));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        if let Some(path) = history.filter(|path| path.exists()) {
            editor.load_history(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        }
        Ok(Editor { editor, history: history.map(Into::into), colour: screen.colour() })
    }

    /// Let the user type. A backslash at the very end asks for another line; those within stay, as in code that was pasted.
    ///
    /// # Errors
    /// When the terminal fails.
    pub(crate) fn read(&mut self, prompt: &str) -> Result<Line> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { prompt } else { ". " };
            let styled = if self.colour { format!("\x1b[34m{prompt}\x1b[0m") } else { prompt.into() };
            match self.editor.readline(&(prompt, &styled)) {
                Ok(line) => text += &line,
                Err(ReadlineError::Interrupted) => return Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => return Ok(Line::End),
                Err(error) => return Err(error),
            }
            if !text.ends_with('\\') {
                return Ok(Line::Text(text));
            }
            text.pop();
            text.push('\n');
        }
    }

    /// Recall the text by the arrow keys, and keep it in the file of the history if there is one, which only its owner
    /// may read.
    ///
    /// # Errors
    /// When that file cannot be written; it is not tried again.
    pub(crate) fn remember(&mut self, text: &str) -> Result<()> {
        if !self.editor.add_history_entry(text)? {
            return Ok(());
        }
        match self.history.take() {
            Some(path) => {
                self.editor.append_history(&path)?;
                self.history = Some(path);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// What keys do that the editor itself does not know.
struct Keys;

impl Helper for Keys {}
impl Highlighter for Keys {}
impl Hinter for Keys {
    type Hint = String;
}

impl Validator for Keys {
    /// Enter does not send a text whose closing quotes are missing.
    fn validate(&self, context: &mut ValidationContext<'_>) -> Result<ValidationResult> {
        Ok(if is_open(context.input()) { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Keys {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let typed = &line[..at];
        for command in ["/save ", "/load "] {
            if let Some(path) = typed.strip_prefix(command) {
                return Ok((command.len(), files(path)));
            }
        }
        let names = if typed.starts_with('/') { commands::completions(typed) } else { Vec::new() };
        let pair = |name: String| Pair { display: name.clone(), replacement: name + " " };
        Ok((0, names.into_iter().map(pair).collect()))
    }
}

/// The files and folders whose names begin so. Hidden ones only for who asks for them by a dot.
fn files(typed: &str) -> Vec<Pair> {
    let (folder, beginning) = typed.split_at(typed.rfind(std::path::is_separator).map_or(0, |at| at + 1));
    let path = if folder.is_empty() { PathBuf::from(".") } else { commands::expand_home(folder) };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let mut name = entry.file_name().into_string().ok()?;
        if !name.starts_with(beginning) || (beginning.is_empty() && name.starts_with('.')) {
            return None;
        }
        if entry.path().is_dir() {
            name.push('/');
        }
        Some(Pair { replacement: format!("{folder}{name}"), display: name })
    });
    let mut found: Vec<Pair> = found.collect();
    found.sort_by(|a, b| a.display.cmp(&b.display));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(line: &str) -> (usize, Vec<String>) {
        let history = DefaultHistory::new();
        let (at, pairs) = Keys.complete(line, line.len(), &Context::new(&history)).unwrap();
        (at, pairs.into_iter().map(|pair| pair.replacement).collect())
    }

    #[test]
    fn commands_and_their_files_are_completed() {
        assert_eq!(completed("/sa"), (0, vec!["/save ".to_owned()]));
        assert_eq!(completed("Hello /sa").1, Vec::<String>::new());
        // Tests run in the folder of the package.
        assert_eq!(completed("/load examples/demo-model/READ"), (6, vec!["examples/demo-model/README.md".to_owned()]));
        assert_eq!(completed("/save examples/demo-m").1, ["examples/demo-model/"]);
        assert!(completed("/load ").1.iter().all(|name| !name.starts_with('.')));
        assert_eq!(completed("/load no-such-folder/").1, Vec::<String>::new());
    }
}
