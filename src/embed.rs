//! Embeddings: the hidden states of texts after the final norm, as one vector each.

use qwen_core::engine::{Event, Pooling, Request};
use qwen_core::numerics::float_env::FloatEnv;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Result;
use crate::requests;

/// How texts are embedded. Options that are not set follow the checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct EmbedOptions {
    /// Which hidden states make the vector: if not set, what the checkpoint's `modules.json` and `1_Pooling/config.json`
    /// say (sentence-transformers), else [`Pooling::Last`].
    pub pooling: Option<Pooling>,
    /// Whether vectors are divided by their lengths, so that their dot product is their cosine: if not set, whether the
    /// checkpoint's `modules.json` has a `Normalize`, and true without that file.
    pub normalise: Option<bool>,
    /// Whether the checkpoint's end-of-sequence token is appended to each text, as models that pool the last token may
    /// be trained with (gte-Qwen2).
    pub append_eos: bool,
    /// Whether texts that are longer than the context lose their ends; they are refused otherwise.
    pub truncate: bool,
}

impl EmbedOptions {
    /// All options follow the checkpoint.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`EmbedOptions::pooling`].
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = Some(pooling);
        self
    }

    /// See [`EmbedOptions::normalise`].
    pub fn normalise(mut self, normalise: bool) -> Self {
        self.normalise = Some(normalise);
        self
    }

    /// See [`EmbedOptions::append_eos`].
    pub fn append_eos(mut self, append: bool) -> Self {
        self.append_eos = append;
        self
    }

    /// See [`EmbedOptions::truncate`].
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.truncate = truncate;
        self
    }
}

/// The embedding of a text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Embedding {
    /// `[hidden_size]` the vector.
    pub values: Vec<f32>,
    /// Tokens of the text, as they were computed.
    pub num_tokens: usize,
}

impl Engine {
    /// Embed each of `texts`, in order. They run beside other requests, several in one step.
    ///
    /// A text is encoded as [`Engine::generate`] does. The vectors have the same bits alone and in company wherever the
    /// device's logits have.
    ///
    /// ```
    /// use qwen::EmbedOptions;
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let found = engine.embed(&["A cat sleeps.", "A dog sleeps."], &EmbedOptions::new())?;
    /// let cosine: f32 = found[0].values.iter().zip(&found[1].values).map(|(a, b)| a * b).sum();
    /// println!("{cosine:.3}");
    /// # assert!(cosine.abs() <= 1.0001 && found[0].values.len() == engine.config().hidden_size);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// For a model that was trained with attention in both directions (`is_causal: false` in config.json); for one whose
    /// files ask for another pooling or further modules, unless the options name a pooling; for empty texts, and for texts longer than the context unless they are truncated.
    pub fn embed(&self, texts: &[impl AsRef<str>], options: &EmbedOptions) -> Result<Vec<Embedding>> {
        let tokenizer = self.tokenizer()?;
        let limit = if options.truncate { usize::MAX } else { self.context() };
        let mut ids: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
        for text in texts {
            ids.push(tokenizer.encode_prompt(text.as_ref(), limit)?);
        }
        let eos =
            match options.append_eos {
                false => None,
                true => Some(self.config().eos_token_id.first().copied().ok_or_else(|| {
                    qwen_core::Error::unsupported("append_eos", "config.json names no `eos_token_id`")
                })?),
            };
        for ids in &mut ids {
            if options.truncate {
                ids.truncate(self.context().saturating_sub(usize::from(eos.is_some())));
            }
            ids.extend(eos);
        }
        self.embed_ids(&ids, options)
    }

    /// [`Engine::embed`] for token ids, to which nothing is appended.
    ///
    /// # Errors
    /// As [`Engine::embed`], and for ids outside of the vocabulary.
    pub fn embed_ids(&self, texts: &[impl AsRef<[u32]>], options: &EmbedOptions) -> Result<Vec<Embedding>> {
        let _float_env = FloatEnv::enter();
        if !self.config().is_causal {
            let reason = "config.json has `is_causal: false`, and this library computes causal attention only";
            return Err(qwen_core::Error::unsupported("embeddings of this model", reason).into());
        }
        let pooling = match options.pooling {
            Some(pooling) => pooling,
            None => self.default_pooling()?,
        };
        let normalise = options.normalise.unwrap_or(self.normalises());
        let context = if options.truncate { self.context() } else { usize::MAX };
        let ids = |text: &_| -> Vec<u32> {
            let ids: &[u32] = AsRef::as_ref(text);
            ids[..ids.len().min(context)].to_vec()
        };
        let mut found = vec![Vec::new(); texts.len()];
        let adapter = self.hold(self.default_adapter())?;
        let requests = texts.iter().map(|text| Request::embed(ids(text), pooling).adapter(adapter.clone()));
        requests::run(self.worker(), requests, |index, event| {
            if let (Event::Embedding(values), Some(found)) = (event, found.get_mut(index)) {
                *found = if normalise { normalised(values) } else { values };
            }
        })?;
        let embedding = |(values, text): (Vec<f32>, &_)| Embedding { values, num_tokens: ids(text).len() };
        Ok(found.into_iter().zip(texts).map(embedding).collect())
    }
}

/// The vector with length 1; one of zeros stays as it is.
fn normalised(mut values: Vec<f32>) -> Vec<f32> {
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    values
}
