//! The commands of a conversation: their names and words, and what a line asks for. `session` does it.

use std::fmt::Write;
use std::path::PathBuf;

/// What a line that begins with a slash asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    Help,
    Clear,
    /// Without a text: show the one there is.
    System(Option<String>),
    Undo,
    Retry,
    Save(PathBuf),
    Load(PathBuf),
    Stats,
    Exit,
}

/// Name, argument, and what it does.
const COMMANDS: [(&str, &str, &str); 9] = [
    ("help", "", "list the commands"),
    ("clear", "", "begin a new conversation; the system message stays"),
    ("system", "[TEXT]", "set the system message, or show it"),
    ("undo", "", "take back the last question and its answer"),
    ("retry", "", "answer the last question again, with another seed"),
    ("save", "FILE", "write the conversation to a file: a JSON list of messages"),
    ("load", "FILE", "go on with a conversation that was saved"),
    ("stats", "", "model, device, context, tokens and speed"),
    ("exit", "", "end the program; so does Ctrl-D"),
];

/// The command that `line` is; `None` for a question. Only a slash and a single word is a command, so that paths and
/// sentences that begin with a slash are questions.
///
/// # Errors
/// What is wrong with the command, and what would be right.
pub(crate) fn parse(line: &str) -> Result<Option<Command>, String> {
    let Some(rest) = line.strip_prefix('/') else { return Ok(None) };
    let (name, argument) = match rest.split_once(char::is_whitespace) {
        Some((name, argument)) => (name, argument.trim()),
        None => (rest, ""),
    };
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic() || c == '?') {
        return Ok(None);
    }
    let file = || match argument {
        "" => Err(format!("/{name} needs the name of a file: /{name} FILE")),
        path => Ok(expand_home(path)),
    };
    let command = match name {
        "help" | "?" => Command::Help,
        "clear" => Command::Clear,
        "system" => Command::System((!argument.is_empty()).then(|| argument.into())),
        "undo" => Command::Undo,
        "retry" => Command::Retry,
        "save" => Command::Save(file()?),
        "load" => Command::Load(file()?),
        "stats" => Command::Stats,
        "exit" | "quit" => Command::Exit,
        _ => {
            let names = COMMANDS.map(|(name, ..)| format!("/{name}")).join(", ");
            return Err(format!("there is no command /{name}; there are {names}. To ask about it, begin with a space"));
        }
    };
    match command {
        Command::System(_) | Command::Save(_) | Command::Load(_) => Ok(Some(command)),
        _ if argument.is_empty() => Ok(Some(command)),
        _ => Err(format!("/{name} takes nothing behind it. To ask about it, begin with a space")),
    }
}

/// The names that begin with `prefix`, each with its slash.
pub(crate) fn completions(prefix: &str) -> Vec<String> {
    COMMANDS.iter().map(|(name, ..)| format!("/{name}")).filter(|name| name.starts_with(prefix)).collect()
}

/// All commands, one a line.
pub(crate) fn list() -> String {
    let mut list = String::new();
    for (name, argument, what) in COMMANDS {
        let usage = format!("/{name} {argument}");
        // Writing to a String does not fail.
        let _ = writeln!(list, "  {usage:<19} {what}");
    }
    list.truncate(list.trim_end().len());
    list
}

/// The path that a user typed: `~/` is their home folder, as in shells.
pub(crate) fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_questions() {
        assert_eq!(parse("/help"), Ok(Some(Command::Help)));
        assert_eq!(parse("/?"), Ok(Some(Command::Help)));
        assert_eq!(parse("/quit "), Ok(Some(Command::Exit)));
        assert_eq!(parse("/system"), Ok(Some(Command::System(None))));
        assert_eq!(parse("/system Be\nbrief. "), Ok(Some(Command::System(Some("Be\nbrief.".into())))));
        assert_eq!(parse("/save  my chat.json "), Ok(Some(Command::Save("my chat.json".into()))));
        for question in ["Hello", " /help", "/usr/bin/env: what is it?", "/", "/ 2", "//", "/etc/passwd", "1/2"] {
            assert_eq!(parse(question), Ok(None), "{question}");
        }
    }

    #[test]
    fn wrong_commands_say_what_is_right() {
        let unknown = parse("/hlep").unwrap_err();
        assert!(unknown.contains("/hlep") && unknown.contains("/help, /clear, /system"), "{unknown}");
        assert_eq!(parse("/load").unwrap_err(), "/load needs the name of a file: /load FILE");
        assert!(parse("/clear all").unwrap_err().contains("takes nothing"));
    }

    #[test]
    fn every_command_of_the_list_is_one() {
        for (name, argument, _) in COMMANDS {
            assert!(parse(&format!("/{name} {argument}")).unwrap().is_some(), "{name}");
            assert!(list().contains(&format!("/{name}")));
        }
        assert_eq!(completions("/s"), ["/system", "/save", "/stats"]);
        assert!(completions("/x").is_empty());
    }
}
