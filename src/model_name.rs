//! The names of checkpoints on the hub: `owner/name`, with a quantisation and a revision where they matter.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use qwen_core::{Error, Result};

/// The longest owner, name, quantisation or revision.
const MAX_PART: usize = 96;

/// The name of a checkpoint on the hub: `owner/name[:quantization][@revision]`.
///
/// ```
/// # #[cfg(feature = "hub")] {
/// use qwen::hub::ModelName;
/// let name: ModelName = "Qwen/Qwen2.5-0.5B-Instruct-GGUF:q4_k_m@main".parse()?;
/// assert_eq!((name.owner(), name.name()), ("Qwen", "Qwen2.5-0.5B-Instruct-GGUF"));
/// assert_eq!((name.quantization(), name.revision()), (Some("q4_k_m"), "main"));
/// assert!("../Qwen2.5".parse::<ModelName>().is_err());
/// # }
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelName {
    owner: String,
    name: String,
    quantization: Option<String>,
    revision: Option<String>,
}

impl ModelName {
    /// The user or the organisation.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The name of the repository, without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of the GGUF files of the repository, e.g. `q4_k_m`.
    pub fn quantization(&self) -> Option<&str> {
        self.quantization.as_deref()
    }

    /// The branch, the tag or the commit; `main` if the name has none.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// `owner/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The name that `path` may be if nothing is there: a relative path of two parts that is not a file of weights.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let is_file = [".gguf", ".safetensors", ".json"].iter().any(|end| text.to_ascii_lowercase().ends_with(end));
        if is_file { None } else { text.parse().ok() }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        self.quantization.iter().try_for_each(|quantization| write!(f, ":{quantization}"))?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |what: &str| {
            let reason = format!("{text:?} is not owner/name[:quantization][@revision]: {what}");
            Error::argument("model", reason)
        };
        let (rest, revision) = split_at_first(text, '@');
        let (repository, quantization) = split_at_first(rest, ':');
        let (owner, name) = repository.split_once('/').ok_or_else(|| refused("it has no /"))?;
        if !is_part(owner) || !is_part(name) {
            return Err(refused("owners and names are letters, digits, and single . - _ within"));
        }
        if quantization.is_some_and(|quantization| !is_part(quantization)) {
            return Err(refused("a quantization is letters, digits, and single . - _ within"));
        }
        // Branches may have several parts, as in refs/pr/1. Each becomes a folder of the cache.
        if revision.is_some_and(|revision| revision.len() > MAX_PART || !revision.split('/').all(is_part)) {
            return Err(refused("a revision is the name of a branch or a tag, or a commit"));
        }
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(ModelName {
            owner: owner.into(),
            name: name.into(),
            quantization: owned(quantization),
            revision: owned(revision),
        })
    }
}

fn split_at_first(text: &str, separator: char) -> (&str, Option<&str>) {
    text.split_once(separator).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Whether this may be an owner, a name, or a part of a revision: by the hub's rules, which also exclude all that would
/// lead out of a folder.
fn is_part(part: &str) -> bool {
    let at_the_ends = |c: char| !matches!(c, '.' | '-');
    part.len() <= MAX_PART
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        && part.starts_with(at_the_ends)
        && part.ends_with(at_the_ends)
        && !part.contains("..")
        && !part.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for text in ["Qwen/Qwen2.5-0.5B", "a/b:q4_k_m", "a/b@refs/pr/1", "a/b:Q8_0@v1.0", "_a/b_"] {
            assert_eq!(text.parse::<ModelName>().expect(text).to_string(), text);
        }
        for text in [
            "",
            "a",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "../a",
            "a/..",
            "./a",
            "a/b:",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b:../x",
            "a/b c",
            "a\\b/c",
            "~/models",
            "C:/models",
            "a--b/c",
            "a/b@x//y",
            "a/b\n",
            "-a/b",
            "a/b.",
        ] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?}");
        }
        assert!(format!("a/{}", "b".repeat(97)).parse::<ModelName>().is_err());
        assert_eq!(ModelName::of_path(Path::new("models/qwen.GGUF")), None);
        assert_eq!(ModelName::of_path(Path::new("/models/qwen")), None);
        assert!(ModelName::of_path(Path::new("Qwen/Qwen2.5-0.5B")).is_some());
    }
}
