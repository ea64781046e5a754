//! Text without control tokens to ids: normaliser, splitting, byte-level BPE.
//!
//! Normal forms and merging are the `tokenizers` library's. Words are found one at a time (see `split`) and merged at
//! once, so a text takes little memory beyond itself, and encoding stops where there is no more room. Control tokens
//! are found before (see `added`), and ids become text in `decode`.

use std::borrow::Cow;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::tokenizer::NormalizedString;
use tokenizers::tokenizer::normalizer::Range;
use tokenizers::{Model as _, Normalizer};

use crate::alphabet::char_of;
use crate::components::{Around, Components};
use crate::error::{Error, Result};
use crate::split::LinearSplit;
use crate::vocabulary::Model;

/// Texts are normalised in stretches of about this many bytes, since the library keeps where each byte came from.
const STRETCH: usize = 1 << 16;
/// Bytes that a normal form may make one of: three jamo of three bytes each become one syllable of three, a letter for
/// mathematics of four bytes becomes one of one byte.
pub(crate) const MOST_SHRINKING: usize = 4;

/// The steps of tokenizer.json between its control tokens.
pub(crate) struct Pipeline {
    normalizers: Vec<NormalizerWrapper>,
    splits: Vec<LinearSplit>,
    /// What stands around a text that is no chat.
    pub(crate) around: Around,
    model: BPE,
    highest_id: Option<u32>,
    /// The characters that stand for bytes.
    alphabet: Vec<char>,
    /// The most bytes of text that a token stands for; `None` where bytes may be dropped.
    most_bytes: Option<usize>,
}

impl Pipeline {
    pub(crate) fn new(components: Components, model: Model) -> Self {
        let Components { normalizers, splits, around } = components;
        let Model { bpe: model, longest, highest_id } = model;
        let alphabet: Vec<char> = (0..=255).map(char_of).collect();
        let has_all = alphabet.iter().all(|c| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_some());
        let keeps_all = has_all && splits.iter().all(LinearSplit::keeps_all);
        let shrinking = if normalizers.is_empty() { 1 } else { MOST_SHRINKING };
        let most_bytes = keeps_all.then_some(longest.saturating_mul(shrinking));
        Self { normalizers, splits, around, model, highest_id, alphabet, most_bytes }
    }

    pub(crate) fn model(&self) -> &BPE {
        &self.model
    }

    pub(crate) fn highest_id(&self) -> Option<u32> {
        self.highest_id
    }

    /// The most bytes of text that a token of the vocabulary stands for; `None` where there is no such bound.
    pub(crate) fn most_bytes(&self) -> Option<usize> {
        self.most_bytes
    }

    /// Appends the ids of a normalised text, in which control tokens are text like any other, to at most `limit` in all.
    pub(crate) fn encode_into(&self, text: &str, limit: usize, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut word_text = String::new();
        let mut encode = |word: &str| {
            word_text.clear();
            word_text.extend(word.bytes().filter_map(|byte| self.alphabet.get(usize::from(byte))));
            let tokens = self.model.tokenize(&word_text).map_err(|e| Error::Encode { reason: e.to_string() })?;
            ids.extend(tokens.iter().map(|token| token.id));
            if ids.len() > limit { Err(Error::TooManyTokens { limit, bytes: None }) } else { Ok(()) }
        };
        split(&self.splits, text, &mut encode)
    }

    /// The normal form of a text.
    pub(crate) fn normalized<'a>(&self, text: &'a str) -> Result<Cow<'a, str>> {
        normalized(&self.normalizers, text)
    }

    /// Where in the normal form of `text` those characters stand that come of the ones at `places`, which are in order.
    pub(crate) fn places_in_normal(&self, text: &str, places: &[usize]) -> Result<Vec<usize>> {
        let origins = self.origins(text)?;
        let ends = origins.iter().skip(1).map(|(_, origin)| *origin).chain([text.len()]);
        let made_of = |origin: usize, end: usize| {
            places.get(places.partition_point(|at| *at < origin)).is_some_and(|at| *at < end.max(origin + 1))
        };
        Ok(origins
            .iter()
            .zip(ends)
            .filter(|((_, origin), end)| made_of(*origin, *end))
            .map(|((at, _), _)| *at)
            .collect())
    }

    /// Where in `text` those characters stand that the ones at `places` of its normal form come of.
    pub(crate) fn places_in_text(&self, text: &str, places: &[usize]) -> Result<Vec<usize>> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let origins = self.origins(text)?;
        Ok(origins.iter().filter(|(at, _)| places.binary_search(at).is_ok()).map(|(_, origin)| *origin).collect())
    }

    /// The place of each character of a text's normal form, and the place in the text of what it comes of.
    fn origins(&self, text: &str) -> Result<Vec<(usize, usize)>> {
        let (mut origins, mut before, mut out) = (Vec::new(), 0, 0);
        for_each_stretch(&self.normalizers, text, |stretch| {
            let normal = stretch.get();
            for (at, c) in normal.char_indices() {
                let origin = stretch.convert_offsets(Range::Normalized(at..at + c.len_utf8()));
                origins.push((out + at, before + origin.map_or(0, |origin| origin.start)));
            }
            out += normal.len();
            before += stretch.len_original();
        })?;
        Ok(origins)
    }
}

/// The normal form of a text.
pub(crate) fn normalized<'a>(normalizers: &[NormalizerWrapper], text: &'a str) -> Result<Cow<'a, str>> {
    let is_case = |normalizer: &NormalizerWrapper| matches!(normalizer, NormalizerWrapper::Lowercase(_));
    if normalizers.is_empty() || (text.is_ascii() && !normalizers.iter().any(is_case)) {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    for_each_stretch(normalizers, text, |stretch| out.push_str(stretch.get()))?;
    Ok(Cow::Owned(out))
}

/// Normalises a text in stretches and gives each to `take`.
fn for_each_stretch(
    normalizers: &[NormalizerWrapper],
    text: &str,
    mut take: impl FnMut(&NormalizedString),
) -> Result<()> {
    let mut rest = text;
    while !rest.is_empty() {
        let (stretch, after) = rest.split_at(stretch_end(rest));
        rest = after;
        let mut stretch = NormalizedString::from(stretch);
        for normalizer in normalizers {
            normalizer.normalize(&mut stretch).map_err(|e| Error::Encode { reason: e.to_string() })?;
        }
        take(&stretch);
    }
    Ok(())
}

/// Gives each word of `text` to `encode`.
fn split(splits: &[LinearSplit], text: &str, encode: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    match splits.split_first() {
        None => encode(text),
        Some((first, rest)) => first.words(text, &mut |word| split(rest, word, encode)),
    }
}

/// Where a text may be cut so that its parts are normalised as the whole: before a character that never joins with
/// one before it.
fn stretch_end(text: &str) -> usize {
    if text.len() <= STRETCH {
        return text.len();
    }
    let joins_nothing = |c: char| {
        matches!(c, '\0'..='\u{2ff}' | '\u{400}'..='\u{482}' | '\u{5d0}'..='\u{5ea}' | '\u{620}'..='\u{63f}'
            | '\u{904}'..='\u{939}' | '\u{e01}'..='\u{e30}' | '\u{2010}'..='\u{2027}' | '\u{3041}'..='\u{3096}'
            | '\u{30a1}'..='\u{30fa}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}'
            | '\u{1f300}'..='\u{1faff}' | '\u{20000}'..='\u{3ffff}')
    };
    let mut places = text.char_indices().skip_while(|(at, _)| *at < STRETCH);
    places.find(|(_, c)| joins_nothing(*c)).map_or(text.len(), |(at, _)| at)
}
