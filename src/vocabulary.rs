//! The tokenizer of a model: from the files of its folder, or from the vocabulary in a GGUF file. The text layer
//! interprets them; this file decides which of them belongs to a model.

use std::path::Path;

use qwen_core::checkpoint::Checkpoint;
use qwen_core::checkpoint::gguf::{self, Metadata, Strings, Value};
use qwen_tokenizer::{GgufVocabulary, Tokenizer};

use crate::engine::MissingTokenizer;
use crate::error::Result;

/// The tokenizer of the model at `path`, a folder or a GGUF file as [`Engine::load`](crate::Engine::load) takes them,
/// without the model: a folder needs only the tokenizer's files.
///
/// ```
/// let tokenizer = qwen::load_tokenizer(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
/// assert_eq!(tokenizer.decode(&tokenizer.encode("Hello!", false)?, false), "Hello!");
/// # Ok::<(), qwen::Error>(())
/// ```
///
/// # Errors
/// What is wrong with the files, by key, or that there are none.
pub fn load_tokenizer(path: impl AsRef<Path>) -> Result<Tokenizer> {
    let path = path.as_ref();
    match gguf::metadata(path)? {
        None => Ok(Tokenizer::from_dir(path)?),
        Some(metadata) => match from_metadata(path, &metadata)? {
            Some(tokenizer) => Ok(tokenizer),
            None => Err(MissingTokenizer::in_gguf(path).into()),
        },
    }
}

/// The tokenizer of an open checkpoint. Having none is not an error yet: programs may work on token ids.
pub(crate) fn of_checkpoint(checkpoint: &Checkpoint) -> Result<std::result::Result<Tokenizer, MissingTokenizer>> {
    let path = checkpoint.path();
    if let Some(metadata) = checkpoint.gguf_metadata() {
        // A tokenizer.json beside the file may belong to another model.
        return Ok(from_metadata(path, metadata)?.ok_or_else(|| MissingTokenizer::in_gguf(path)));
    }
    match Tokenizer::is_in(path) {
        true => Ok(Ok(Tokenizer::from_dir(path)?)),
        false => Ok(Err(MissingTokenizer::in_folder(path))),
    }
}

/// Refuse a draft model whose ids mean something else than those of the model. Ids that only one of them has are no
/// difference: they pad, or the draft model never guesses them. Without tokenizers the program answers for its ids.
pub(crate) fn check_draft(
    model: &std::result::Result<Tokenizer, MissingTokenizer>,
    draft: &std::result::Result<Tokenizer, MissingTokenizer>,
    path: &Path,
) -> Result<()> {
    let (model, draft) = match (model, draft) {
        (Ok(model), Ok(draft)) => (model, draft),
        (Err(_), Err(_)) => return Ok(()),
        (Ok(_), Err(missing)) => return Err(missing.clone().into()),
        (Err(missing), Ok(_)) => return Err(missing.clone().into()),
    };
    let common = model.num_ids().min(draft.num_ids()) as u32;
    let Some(id) = (0..common).find(|id| model.token_bytes(*id) != draft.token_bytes(*id)) else { return Ok(()) };
    let [own, other] = [model, draft].map(|tokenizer| String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned());
    let reason = format!("{}: its tokenizer is another one: id {id} is {other:?}, the model's {own:?}", path.display());
    Err(qwen_core::Error::argument("draft", reason).into())
}

/// The tokenizer of the vocabulary in the metadata of `path`, if it has one.
fn from_metadata(path: &Path, metadata: &Metadata) -> Result<Option<Tokenizer>> {
    const TEMPLATE: &str = "tokenizer.chat_template";
    let Some(tokens) = metadata.strings("tokenizer.ggml.tokens") else { return Ok(None) };
    let tokens: Vec<&str> = tokens.iter().collect();
    let merges: Vec<&str> = metadata.strings("tokenizer.ggml.merges").into_iter().flat_map(Strings::iter).collect();
    let named_chat_templates: Vec<(&str, &str)> = metadata
        .iter()
        .filter_map(|(key, value)| match (key.strip_prefix(TEMPLATE)?.strip_prefix('.')?, value) {
            (name, Value::String(source)) => Some((name, source.as_str())),
            _ => None,
        })
        .collect();
    let file = path.display().to_string();
    let vocabulary = GgufVocabulary {
        file: &file,
        model: metadata.get_str("tokenizer.ggml.model").unwrap_or_default(),
        pre: metadata.get_str("tokenizer.ggml.pre"),
        tokens: &tokens,
        token_types: metadata.i32s("tokenizer.ggml.token_type").unwrap_or_default(),
        merges: &merges,
        bos_token_id: metadata.token_id("tokenizer.ggml.bos_token_id"),
        eos_token_id: metadata.token_id("tokenizer.ggml.eos_token_id"),
        padding_token_id: metadata.token_id("tokenizer.ggml.padding_token_id"),
        unknown_token_id: metadata.token_id("tokenizer.ggml.unknown_token_id"),
        add_bos_token: metadata.get_bool("tokenizer.ggml.add_bos_token").unwrap_or(false),
        chat_template: metadata.get_str(TEMPLATE),
        named_chat_templates: &named_chat_templates,
    };
    Ok(Some(Tokenizer::from_gguf_vocabulary(&vocabulary)?))
}
