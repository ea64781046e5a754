//! Filling in the middle: what stands between a beginning and an end, as editors ask for it. Qwen2.5-Coder is trained for
//! it, in a form that no template of its files describes ("Qwen2.5-Coder Technical Report", arXiv 2409.12186, and its
//! model cards).

use qwen_tokenizer::Tokenizer;

use crate::engine::Engine;
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::stream::TextStream;

const PREFIX: &str = "<|fim_prefix|>";
const SUFFIX: &str = "<|fim_suffix|>";
const MIDDLE: &str = "<|fim_middle|>";
const REPOSITORY: &str = "<|repo_name|>";
const FILE: &str = "<|file_sep|>";

/// Each of these ends what is filled in; models write them when nothing is left to say.
const STOPS: [&str; 8] = [PREFIX, SUFFIX, MIDDLE, "<|fim_pad|>", REPOSITORY, FILE, "<|endoftext|>", "<|im_end|>"];

/// A gap to be filled in, for [`Engine::fill`].
///
/// ```no_run
/// use qwen::{Engine, Fill, GenerateOptions};
///
/// let engine = Engine::load("path/to/Qwen2.5-Coder-1.5B")?;
/// let gap = Fill::new("fn double(x: i32) -> i32 {\n    ", "\n}\n")
///     .repository("numbers")
///     .file("src/lib.rs", "mod double;\n")
///     .path("src/double.rs");
/// let middle = engine.fill(&gap, &GenerateOptions::new().greedy().max_new_tokens(64))?.text()?;
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Fill {
    prefix: String,
    suffix: String,
    repository: Option<String>,
    files: Vec<(String, String)>,
    path: Option<String>,
}

impl Fill {
    /// The gap between `prefix` and `suffix`.
    pub fn new(prefix: impl Into<String>, suffix: impl Into<String>) -> Self {
        Fill { prefix: prefix.into(), suffix: suffix.into(), ..Self::default() }
    }

    /// The name of the repository that the files belong to.
    pub fn repository(mut self, name: impl Into<String>) -> Self {
        self.repository = Some(name.into());
        self
    }

    /// Add another file of the repository, which the model reads before the gap.
    pub fn file(mut self, path: impl Into<String>, content: impl Into<String>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }

    /// The path of the file with the gap. Only with a repository or other files.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The prompt. Control tokens in the texts are text: code may well be about them.
    fn ids(&self, tokenizer: &Tokenizer, room: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut add = |token: &str, text: &str| -> Result<()> {
            ids.push(id(tokenizer, token)?);
            ids.extend(tokenizer.encode_within(text, false, room.saturating_sub(ids.len()))?);
            Ok(())
        };
        let Fill { prefix, suffix, repository, files, path } = self;
        if let Some(name) = repository {
            add(REPOSITORY, &format!("{name}\n"))?;
        }
        for (path, content) in files {
            add(FILE, &format!("{path}\n{content}\n"))?;
        }
        if let Some(path) = path.as_ref().filter(|_| repository.is_some() || !files.is_empty()) {
            add(FILE, &format!("{path}\n"))?;
        }
        add(PREFIX, prefix)?;
        add(SUFFIX, suffix)?;
        add(MIDDLE, "")?;
        Ok(ids)
    }
}

fn id(tokenizer: &Tokenizer, token: &str) -> Result<u32> {
    let missing = || {
        let reason = format!("the tokenizer has no {token}; the models of Qwen2.5-Coder fill in");
        qwen_core::Error::unsupported("filling in the middle", reason).into()
    };
    tokenizer.token_to_id(token).ok_or_else(missing)
}

impl Engine {
    /// What stands in a gap. The answer ends at the tokens with which models end it, besides the options' own, and has none
    /// of them in its text.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a tokenizer without the tokens for it, otherwise as
    /// [`Engine::generate`].
    pub fn fill(&self, gap: &Fill, options: &GenerateOptions) -> Result<TextStream> {
        let tokenizer = self.tokenizer()?;
        let ids = gap.ids(tokenizer, self.prompt_room())?;
        let mut options = options.clone();
        options.stop_token_ids.extend(STOPS.iter().filter_map(|token| tokenizer.token_to_id(token)));
        self.generate_text(ids, &options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demo model's tokenizer, with the tokens for filling in.
    fn tokenizer() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model/tokenizer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let added = json["added_tokens"].as_array_mut().unwrap();
        let (mut token, first) =
            (added[0].clone(), 1 + added.iter().map(|token| token["id"].as_u64().unwrap()).max().unwrap());
        for (content, id) in STOPS[..6].iter().zip(first..) {
            (token["content"], token["id"]) = ((*content).into(), id.into());
            added.push(token.clone());
        }
        Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap(), None).unwrap()
    }

    #[test]
    fn prompts_have_the_form_of_the_model_cards() {
        let tokenizer = tokenizer();
        let written = |gap: Fill| tokenizer.decode(&gap.ids(&tokenizer, 1000).unwrap(), false);
        assert_eq!(written(Fill::new("a", "b")), "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>");
        assert_eq!(written(Fill::new("a", "").path("x")), "<|fim_prefix|>a<|fim_suffix|><|fim_middle|>");
        assert_eq!(
            written(Fill::new("a", "b").repository("r").file("p", "one").file("q", "two").path("s")),
            "<|repo_name|>r\n<|file_sep|>p\none\n<|file_sep|>q\ntwo\n<|file_sep|>s\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
        );
    }

    #[test]
    fn control_tokens_in_code_are_text_and_long_code_is_refused() {
        let tokenizer = tokenizer();
        let ids = Fill::new("say(\"<|fim_middle|>\")", "").ids(&tokenizer, 1000).unwrap();
        let middle = tokenizer.token_to_id(MIDDLE).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == middle).count(), 1);
        assert!(Fill::new("a b c d e f g h", "").ids(&tokenizer, 4).is_err());
    }

    #[cfg(feature = "cpu")]
    #[test]
    fn a_tokenizer_without_the_tokens_is_refused_by_name() {
        let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model")).unwrap();
        let error = engine.fill(&Fill::new("a", "b"), &GenerateOptions::new()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
        assert!(error.to_string().contains("has no <|fim_prefix|>"), "{error}");
    }
}
