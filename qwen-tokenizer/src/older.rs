//! A tokenizer as its folders had it before tokenizer.json: vocab.json and merges.txt, and the control tokens in
//! tokenizer_config.json or added_tokens.json.
//!
//! These files do not say how texts are split, so it is as Qwen2.5 does it.

use std::borrow::Cow;
use std::path::Path;

use tokenizers::Model as _;
use tokenizers::normalizers::{NFC, NormalizerWrapper};

use crate::added::AddedTokens;
use crate::bounded::{BoundedList, BoundedMap};
use crate::components::{Around, Components};
use crate::declared::DeclaredToken;
use crate::error::{Error, Result};
use crate::file;
use crate::pipeline::Pipeline;
use crate::split::{LinearSplit, QWEN2_PATTERN};
use crate::vocabulary::{MAX_MERGES, Vocabulary};

pub(crate) const VOCAB_JSON: &str = "vocab.json";
pub(crate) const MERGES_TXT: &str = "merges.txt";

/// Reads the tokenizer of `folder`; `None` where one of the two files is missing.
pub(crate) fn read(folder: &Path, mut declared: Vec<DeclaredToken>) -> Result<Option<(AddedTokens, Pipeline)>> {
    let (vocab_path, merges_path) = (folder.join(VOCAB_JSON), folder.join(MERGES_TXT));
    let Some(vocab) = file::read(&vocab_path, file::MAX_BYTES)? else { return Ok(None) };
    let Some(merges) = file::read(&merges_path, file::MAX_BYTES)? else { return Ok(None) };
    let vocab: BoundedMap<u32, _> =
        serde_json::from_slice(&vocab).map_err(|e| Error::invalid(VOCAB_JSON, "its entries", e))?;
    let merges = std::str::from_utf8(&merges)
        .map_err(|e| Error::invalid(MERGES_TXT, "its text", format!("is not UTF-8: {e}")))?;
    let model = Vocabulary::of_lists(vocab, parse_merges(merges)?).build()?;
    let splits = LinearSplit::new(QWEN2_PATTERN).into_iter().collect();
    let components = Components { normalizers: vec![NormalizerWrapper::NFC(NFC)], splits, around: Around::default() };
    let pipeline = Pipeline::new(components, model);
    if declared.is_empty() {
        // What the class of Qwen2 has by itself.
        declared.push(DeclaredToken::named("<|endoftext|>", true));
    }
    let model = pipeline.model();
    let vocab_id = |token: &str| model.token_to_id(token);
    let normal = |text: &str| pipeline.normalized(text).map(Cow::into_owned);
    let added = file::added_tokens(Vec::new(), declared, vocab_id, model.get_vocab_size(), normal)?;
    Ok(Some((added, pipeline)))
}

/// One merge a line: two tokens with a space between them. The first line may be a comment.
fn parse_merges(text: &str) -> Result<BoundedList<(&str, &str), MAX_MERGES>> {
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || (i == 0 && line.starts_with("#version")) {
            continue;
        }
        let invalid = |problem: &str| Error::invalid(MERGES_TXT, &format!("line {}", i + 1), problem);
        let merge = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.contains(' '));
        merges.push(merge.ok_or_else(|| invalid("is not two tokens with a space between them"))?);
        if merges.len() > MAX_MERGES {
            return Err(invalid(&format!("is the merge after {MAX_MERGES} others")));
        }
    }
    Ok(BoundedList(merges))
}
