//! Conversations in files: a JSON list of messages, as OpenAI's API and most other programs have it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use qwen::{Content, Message, Role, Tool};

/// The largest file that is read. No context holds as much.
const LIMIT: u64 = 64 << 20;

const FORM: &str = r#"a conversation is a JSON list, [{"role": "user", "content": "Hello!"}, ...]"#;

/// Write the messages, whole or not at all. What stands there is only replaced if it is a conversation, too.
///
/// # Errors
/// What failed, with the file.
pub(crate) fn save(path: &Path, messages: &[Message]) -> Result<(), String> {
    if path.exists() && load(path).is_err() {
        return Err(format!("{} is there and is no conversation: choose another name", path.display()));
    }
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    // A link keeps pointing to what is written.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let mut text = serde_json::to_string_pretty(messages).map_err(|error| failed(error.into()))?;
    text.push('\n');
    let beside = beside(&path);
    let written = write_new(&beside, &text).and_then(|()| fs::rename(&beside, &path));
    written.map_err(|error| {
        // Nothing half-written stays; it may not even be there.
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}

/// A name in the same folder that is nobody else's.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Read messages, and check that they are a conversation.
///
/// # Errors
/// What is wrong, with the file and the message.
pub(crate) fn load(path: &Path) -> Result<Vec<Message>, String> {
    let text = read(path)?;
    let wrong = |what: String| format!("{}: {what}; {FORM}", path.display());
    let messages: Vec<Message> = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if messages.is_empty() {
        return Err(wrong("there is no message".into()));
    }
    for (index, message) in messages.iter().enumerate() {
        let problem = match (&message.role, &message.content) {
            (Role::Other(role), _) => Some(format!("the role `{role}` is not system, user, assistant or tool")),
            (_, None) if message.tool_calls.is_empty() => Some("there is neither content nor a tool call".into()),
            (_, Some(Content::Other(_))) => Some("the content is no text".into()),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(wrong(format!("message {}: {problem}", index + 1)));
        }
    }
    Ok(messages)
}

/// Read a list of tools.
///
/// # Errors
/// What is wrong, with the file.
pub(crate) fn load_tools(path: &Path) -> Result<Vec<Tool>, String> {
    serde_json::from_str(&read(path)?).map_err(|error| {
        let form = r#"[{"type": "function", "function": {"name": ..., "parameters": ...}}, ...]"#;
        format!("{}: {error}; tools are a JSON list, {form}", path.display())
    })
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |reason: String| format!("cannot read {}: {reason}", path.display());
    let mut text = String::new();
    // Devices and pipes have no size, and may have no end.
    let read = File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 > LIMIT => Err(failed(format!("it has more than {} MiB", LIMIT >> 20))),
        Ok(_) => Ok(text),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes when the test ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("qwen-rs-test-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_saved_is_what_is_loaded() {
        let folder = Folder::new("chat-saved");
        let file = folder.0.join("talk.json");
        let messages =
            [Message::system("Be brief."), Message::user("Hi \"you\"\n"), Message::assistant("<think>\u{1b}")];
        save(&file, &messages).unwrap();
        assert_eq!(load(&file).unwrap(), messages);
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(json[1], serde_json::json!({"role": "user", "content": "Hi \"you\"\n"}));
        // A conversation is replaced by another one, and nothing else is in the folder.
        save(&file, &messages[..2]).unwrap();
        assert_eq!(load(&file).unwrap(), messages[..2]);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_not_replaced() {
        let folder = Folder::new("chat-replaced");
        let file = folder.0.join("notes.txt");
        fs::write(&file, "precious").unwrap();
        let error = save(&file, &[Message::user("Hi")]).unwrap_err();
        assert!(error.contains("notes.txt") && error.contains("another name"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        let error = save(&folder.0.join("missing/talk.json"), &[Message::user("Hi")]).unwrap_err();
        assert!(error.starts_with("cannot write") && error.contains("missing"), "{error}");
    }

    #[test]
    fn what_is_no_conversation_is_refused_by_name() {
        let folder = Folder::new("chat-refused");
        let file = folder.0.join("talk.json");
        for (text, problem) in [
            ("", "line 1"),
            ("{}", "expected a sequence"),
            ("[]", "no message"),
            (r#"[{"content": "Hi"}]"#, "role"),
            (r#"[{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hi"}]"#, "message 2: the role `bot`"),
            (r#"[{"role": "user"}]"#, "message 1: there is neither"),
            (r#"[{"role": "user", "content": 5}]"#, "message 1: the content is no text"),
        ] {
            fs::write(&file, text).unwrap();
            let error = load(&file).unwrap_err();
            assert!(error.contains("talk.json: ") && error.contains(problem), "{text}: {error}");
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(load(&file).unwrap_err().contains("UTF-8"));
        assert!(load(&folder.0).unwrap_err().starts_with("cannot read"));
        assert!(load_tools(&folder.0.join("no.json")).unwrap_err().contains("no.json"));
    }
}
