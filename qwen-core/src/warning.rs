//! Problems that did not stop a load: contradictions within a checkpoint, and settings without effect.
//!
//! A [`Warning`] is data, with a sentence as its `Display` form. Loading returns a plain list of them. Not here: what
//! stops a load ([`crate::Error`]).

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// The most names that a sentence lists.
const SHOWN: usize = 4;

/// Something about a checkpoint that does not stop it from running, but that its user should know. Its `Display` form
/// is a sentence without a full stop, which is also how serde serialises it.
///
/// ```
/// use qwen_core::{GenerationConfig, Warning};
///
/// let config = GenerationConfig::from_json("generation_config.json", r#"{"num_beams": 3}"#)?;
/// let [warning] = &config.warnings()[..] else { panic!("one key has no effect") };
/// assert!(matches!(warning, Warning::IgnoredKey { key, .. } if key == "num_beams"));
/// assert!(warning.to_string().starts_with("generation_config.json: key `num_beams`"));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A key of a configuration file has no effect here; other programs may generate different tokens because of it.
    IgnoredKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The file's value, shortened.
        value: String,
    },
    /// A value of a configuration file is malformed or out of range. It is an error for a request that needs it.
    InvalidValue {
        /// The file.
        path: PathBuf,
        /// The key, dotted when nested.
        key: String,
        /// Expected against found.
        reason: String,
    },
    /// An optional configuration file exists but cannot be read. Requests have to set the options that it would
    /// provide.
    UnreadableFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Tensors that the model does not use.
    UnusedTensors {
        /// The checkpoint.
        path: PathBuf,
        /// Their names in the file.
        names: Vec<String>,
    },
    /// The configuration ties the output head to the embedding table, but the checkpoint has a head with different
    /// values. The head is used.
    UntiedHead {
        /// The file that holds the head.
        path: PathBuf,
        /// The head's tensor.
        name: String,
    },
    /// Tensors that are in several files. The ones that the index names are used, else those in the last file by name.
    DuplicateTensors {
        /// The checkpoint.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// An index names a file that does not exist, and the model needs nothing from it.
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The file.
        shard: String,
    },
    /// A chat template does with messages what their authors would not expect, such as to escape their texts.
    ChatTemplate {
        /// The checkpoint.
        path: PathBuf,
        /// What it does.
        reason: String,
    },
}

impl Warning {
    /// The file or the folder that the warning is about.
    pub fn path(&self) -> &Path {
        match self {
            Warning::IgnoredKey { path, .. }
            | Warning::InvalidValue { path, .. }
            | Warning::UnreadableFile { path, .. }
            | Warning::UnusedTensors { path, .. }
            | Warning::UntiedHead { path, .. }
            | Warning::DuplicateTensors { path, .. }
            | Warning::MissingShard { path, .. }
            | Warning::ChatTemplate { path, .. } => path,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path().display())?;
        match self {
            Warning::IgnoredKey { key, value, .. } => {
                write!(f, "key `{key}` ({value}) has no effect here, answers may differ from other programs'")
            }
            Warning::InvalidValue { key, reason, .. } => {
                write!(f, "key `{key}`: {reason}; requests that would use it are refused")
            }
            Warning::UnreadableFile { reason, .. } => {
                write!(f, "{reason}; requests that would follow this file are refused")
            }
            Warning::UnusedTensors { names, .. } => {
                write!(f, "the model does not use the {}", listed(names))
            }
            Warning::UntiedHead { name, .. } => write!(
                f,
                "`{name}` is used as the output head: it differs from the embedding table, though config.json says \
                 `tie_word_embeddings`"
            ),
            Warning::DuplicateTensors { names, .. } => {
                write!(f, "{} more than once: the index, else the last file by name, decides", {
                    let verb = if names.len() == 1 { "is" } else { "are" };
                    format!("{} {verb} there", listed(names))
                })
            }
            Warning::MissingShard { shard, .. } => {
                write!(f, "names the file `{shard}`, which does not exist, but nothing in it is needed")
            }
            Warning::ChatTemplate { reason, .. } => f.write_str(reason),
        }
    }
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A few names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{}`", shortened(name))).collect();
    let what = if names.len() == 1 { "tensor" } else { "tensors" };
    match names.len() - shown.len() {
        0 => format!("{what} {}", shown.join(", ")),
        more => format!("{what} {} and {more} more", shown.join(", ")),
    }
}

/// A name as shown in a sentence: files may have any text there.
fn shortened(name: &str) -> String {
    let text: String = name.chars().take(120).flat_map(char::escape_debug).collect();
    if name.chars().nth(120).is_some() { text + "..." } else { text }
}
