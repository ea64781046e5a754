//! How well a model predicts a text, of any length.
//!
//! Each token is predicted from those before it. A text that is longer than the context is cut into windows that overlap:
//! a window's beginning, which the window before it has predicted, only tells the model what came before. The smaller the
//! stride from window to window, the more context each token has, and the longer it takes.

use qwen_core::engine::{Event, LogprobsParams, Pooling, Request};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Result;
use crate::requests;

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Perplexity {
    /// The negative log-likelihood of the predicted tokens: a sum, in nats.
    pub nll: f64,
    /// The sum of the squares of its terms.
    pub squares: f64,
    /// The tokens that were predicted: all but the first, before which there is nothing, and those that the options leave
    /// out.
    pub tokens: usize,
}

impl Perplexity {
    /// The exponential of the mean negative log-likelihood; 1 is a perfect prediction.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.mean_nll().exp()
    }

    /// The mean negative log-likelihood of a token, in nats.
    #[must_use]
    pub fn mean_nll(&self) -> f64 {
        self.nll / self.tokens.max(1) as f64
    }

    /// The standard error of [`Perplexity::perplexity`], as if tokens were independent.
    #[must_use]
    pub fn standard_error(&self) -> f64 {
        let (count, mean) = (self.tokens.max(1) as f64, self.mean_nll());
        let variance = (self.squares / count - mean * mean).max(0.0);
        self.perplexity() * (variance / count).sqrt()
    }

    fn add(&mut self, logprob: f64) {
        self.nll -= logprob;
        self.squares += logprob * logprob;
        self.tokens += 1;
    }
}

/// How a text is cut into windows. The default is that of transformers' documentation: windows as long as the context
/// allows, each of which predicts what the one before it has not.
///
/// ```
/// use qwen::PerplexityOptions;
/// // As llama-perplexity does it: windows without overlap, of which the second half counts.
/// let options = PerplexityOptions::new().window(512).stride(512).min_context(257);
/// assert_eq!(serde_json::to_string(&options)?, r#"{"window":512,"stride":512,"min_context":257}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct PerplexityOptions {
    /// Tokens of a window, at least 2. At most one more than the context, since the last one is only predicted; that is
    /// the default.
    pub window: Option<usize>,
    /// Tokens from the beginning of a window to that of the next, at least 1 and at most `window`. Default half of it.
    pub stride: Option<usize>,
    /// How many tokens of its window a token has to have before it to count, at least 1 and below `window`. Default 1.
    pub min_context: usize,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        PerplexityOptions { window: None, stride: None, min_context: 1 }
    }
}

impl PerplexityOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`PerplexityOptions::window`].
    pub fn window(mut self, tokens: usize) -> Self {
        self.window = Some(tokens);
        self
    }

    /// See [`PerplexityOptions::stride`].
    pub fn stride(mut self, tokens: usize) -> Self {
        self.stride = Some(tokens);
        self
    }

    /// See [`PerplexityOptions::min_context`].
    pub fn min_context(mut self, tokens: usize) -> Self {
        self.min_context = tokens;
        self
    }

    /// The windows of a text of `len` tokens, each with the first token that it predicts. Some may predict none.
    fn windows(&self, len: usize, context: usize) -> qwen_core::Result<impl Iterator<Item = Window> + use<>> {
        let most = context.saturating_add(1);
        let window = self.window.unwrap_or(most);
        let (stride, min_context) = (self.stride.unwrap_or(window / 2), self.min_context);
        let check = |name: &'static str, value: usize, low: usize, high: usize, of: &str| match value {
            value if (low..=high).contains(&value) => Ok(()),
            value => Err(qwen_core::Error::argument(name, format!("must be {low} to {high} ({of}), is {value}"))),
        };
        check("window", window, 2, most, "the context and one token")?;
        check("stride", stride, 1, window, "the window")?;
        check("min_context", min_context, 1, window - 1, "less than the window")?;
        let mut known = 0;
        let windows = (0..len).step_by(stride).map(move |begin| {
            let end = begin.saturating_add(window).min(len);
            let first = known.max(begin.saturating_add(min_context)).min(end);
            known = end;
            Window { begin, first, end }
        });
        // Further ones would only hold what is predicted already.
        let mut is_complete = false;
        Ok(windows.take_while(move |window| !std::mem::replace(&mut is_complete, window.end == len)))
    }
}

/// The tokens `begin..end` of a text, of which those from `first` on are predicted.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    begin: usize,
    first: usize,
    end: usize,
}

impl Engine {
    /// How well the model predicts `text`, which may be longer than the context. See [`Engine::perplexity_with`] for how
    /// it is cut then.
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let found = engine.perplexity("Anna is 31 years old and lives in Oslo.")?;
    /// println!("{:.2} over {} tokens", found.perplexity(), found.tokens);
    /// # assert!(found.perplexity() > 1.0);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::score`], but no text is too long.
    pub fn perplexity(&self, text: &str) -> Result<Perplexity> {
        self.perplexity_with(text, &PerplexityOptions::new())
    }

    /// [`Engine::perplexity`] with windows as `options` say.
    ///
    /// ```
    /// use qwen::PerplexityOptions;
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let text = "Anna is 31 years old and lives in Oslo. ".repeat(20);
    /// let found = engine.perplexity_with(&text, &PerplexityOptions::new().window(64).stride(16))?;
    /// println!("{:.2} +/- {:.2}", found.perplexity(), found.standard_error());
    /// # assert!(found.tokens > 200);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::perplexity`], and for options out of their bounds.
    pub fn perplexity_with(&self, text: &str, options: &PerplexityOptions) -> Result<Perplexity> {
        self.perplexity_ids(&self.tokenizer()?.encode_prompt(text, usize::MAX)?, options)
    }

    /// [`Engine::perplexity_with`] for token ids.
    ///
    /// # Errors
    /// As [`Engine::perplexity_with`], and for ids outside of the vocabulary.
    pub fn perplexity_ids(&self, ids: &[u32], options: &PerplexityOptions) -> Result<Perplexity> {
        let windows = options.windows(ids.len(), self.context())?;
        let Some(last) = ids.last() else { return Err(qwen_core::Error::EmptyPrompt.into()) };
        // Where nothing is predicted, a wrong id is still an error.
        Request::embed([*last], Pooling::Last).check(self.worker().limits())?;
        let adapter = self.hold(self.default_adapter())?;
        let requests = windows.filter(|window| window.first < window.end).map(|Window { begin, first, end }| {
            let params = LogprobsParams::new(ids.get(first..end).unwrap_or_default());
            Request::logprobs(ids.get(begin..end - 1).unwrap_or_default(), params).adapter(adapter.clone())
        });
        // By windows: added in this order, sums have the same bits in each run.
        let mut found: Vec<Perplexity> = Vec::new();
        requests::run(self.worker(), requests, |index, event| {
            if let Event::Scored(token) = event {
                found.resize(found.len().max(index + 1), Perplexity::default());
                found[index].add(token.logprob);
            }
        })?;
        Ok(found.into_iter().fold(Perplexity::default(), |sum, one| Perplexity {
            nll: sum.nll + one.nll,
            squares: sum.squares + one.squares,
            tokens: sum.tokens + one.tokens,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_token_is_predicted_once_from_as_much_as_fits(
            len in 0usize..200,
            (window, stride) in (2usize..40).prop_flat_map(|window| (Just(window), 1..=window)),
        ) {
            let options = PerplexityOptions::new().window(window).stride(stride);
            let windows: Vec<_> = options.windows(len, 39).unwrap().collect();
            let predicted: Vec<usize> = windows.iter().flat_map(|window| window.first..window.end).collect();
            // Without overlap, the first token of each window has nothing before it.
            let expected = (1..len).filter(|index| stride < window || index % window != 0);
            prop_assert_eq!(predicted, expected.collect::<Vec<_>>());
            prop_assert!(windows.iter().all(|found| found.begin < found.end && found.end - found.begin <= window));
            let overlap = |pair: &[Window]| pair[1].first - pair[1].begin >= (window - stride).max(1);
            prop_assert!(windows.windows(2).all(overlap));
        }
    }

    #[test]
    fn windows_of_llama_cpp_have_a_second_half() {
        let options = PerplexityOptions::new().window(8).stride(8).min_context(5);
        let windows: Vec<_> = options.windows(16, 8).unwrap().collect();
        assert_eq!(windows, [Window { begin: 0, first: 5, end: 8 }, Window { begin: 8, first: 13, end: 16 }]);
    }
}
