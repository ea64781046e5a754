//! How likely texts are: scores of continuations, log-probabilities of prompts, and labels.

use qwen_core::engine::sampling::Logprobs;
use qwen_core::engine::{Event, LogprobsParams, Request};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Result;
use crate::requests;

/// How likely a continuation is after its prompt: what lm-evaluation-harness calls its log-likelihood.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Score {
    /// The natural logarithm of its probability: the sum over its tokens.
    pub logprob: f64,
    /// Its tokens, each after all that stand before it.
    pub tokens: Vec<Logprobs>,
    /// Whether greedy decoding would give exactly these tokens.
    pub is_greedy: bool,
}

impl Score {
    fn of(tokens: Vec<Logprobs>) -> Self {
        let logprob = tokens.iter().map(|token| token.logprob).sum();
        let is_greedy = tokens.iter().all(|token| token.rank == 1);
        Score { logprob, tokens, is_greedy }
    }

    /// The mean over its tokens, for comparing continuations of unlike lengths; 0 without tokens.
    #[must_use]
    pub fn mean_logprob(&self) -> f64 {
        self.logprob / self.tokens.len().max(1) as f64
    }
}

/// A label of [`Engine::classify`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LabelScore {
    /// Its place among the labels that were given.
    pub index: usize,
    /// Its probability among the labels: they add up to 1.
    pub probability: f64,
    /// The natural logarithm of its probability among all texts.
    pub logprob: f64,
}

/// The tokens that several continuations begin with, and the place and the last token of each.
type Group<'a> = (&'a [u32], Vec<(usize, u32)>);

impl Engine {
    /// How likely each of `continuations` is after `prompt`.
    ///
    /// The prompt and a continuation are encoded as one text. Its tokens behind those of the prompt are the
    /// continuation's; where a token crosses the border, so that the text does not begin with the prompt's tokens, both
    /// are encoded apart. Leave a space at the beginning of the continuation, not at the end of the prompt: that is how
    /// tokens are cut. Continuations that differ in their last token only, such as "yes" and "no", are computed once.
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let scores = engine.score("The capital of Norway is", &[" Oslo", " Anna"])?;
    /// println!("{} {}", scores[0].logprob, scores[1].logprob);
    /// # assert!(scores.iter().all(|score| score.logprob < 0.0 && !score.tokens.is_empty()));
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::generate`]; a prompt and a continuation together may have one token more than the context.
    pub fn score(&self, prompt: &str, continuations: &[impl AsRef<str>]) -> Result<Vec<Score>> {
        let (tokenizer, limit) = (self.tokenizer()?, self.context().saturating_add(1));
        let prompt_ids = tokenizer.encode_prompt(prompt, self.context())?;
        let mut pairs = Vec::new();
        for continuation in continuations {
            let continuation = continuation.as_ref();
            let whole = tokenizer.encode_prompt(&[prompt, continuation].concat(), limit)?;
            pairs.push(match whole.strip_prefix(prompt_ids.as_slice()) {
                Some(ids) => ids.to_vec(),
                None => tokenizer.encode_within(continuation, true, limit)?,
            });
        }
        self.score_ids(&prompt_ids, &pairs)
    }

    /// [`Engine::score`] for token ids.
    ///
    /// # Errors
    /// As [`Engine::generate_ids`].
    pub fn score_ids(&self, prompt: &[u32], continuations: &[impl AsRef<[u32]>]) -> Result<Vec<Score>> {
        let mut scores: Vec<Score> = continuations.iter().map(|_| Score::of(Vec::new())).collect();
        // Continuations whose tokens are the same but for the last, by their places.
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (index, ids) in continuations.iter().enumerate() {
            let Some((last, stem)) = ids.as_ref().split_last() else { continue };
            match groups.iter_mut().find(|(known, _)| *known == stem) {
                Some((_, members)) => members.push((index, *last)),
                None => groups.push((stem, vec![(index, *last)])),
            }
        }
        let adapter = self.hold(self.default_adapter())?;
        let requests = groups.iter().map(|(stem, members)| {
            let mut last = members.iter().map(|(_, id)| *id);
            let targets: Vec<u32> = stem.iter().copied().chain(last.next()).collect();
            let params = LogprobsParams::new(targets).alternatives(last.collect::<Vec<_>>());
            // Without a prompt the first token has nothing before it: the request is refused as empty.
            let input = if prompt.is_empty() { Vec::new() } else { [prompt, stem].concat() };
            Request::logprobs(input, params).adapter(adapter.clone())
        });
        let mut found: Vec<Vec<Logprobs>> = vec![Vec::new(); groups.len()];
        requests::run(self.worker(), requests, |index, event| {
            if let (Event::Scored(token), Some(tokens)) = (event, found.get_mut(index)) {
                tokens.push(token);
            }
        })?;
        for ((stem, members), tokens) in groups.iter().zip(found) {
            let (stem, last) = tokens.split_at(stem.len().min(tokens.len()));
            for ((index, _), last) in members.iter().zip(last) {
                scores[*index] = Score::of(stem.iter().chain([last]).cloned().collect());
            }
        }
        Ok(scores)
    }

    /// How likely each token of `prompt` but the first is after those before it, with the `top` most likely ones beside
    /// it.
    ///
    /// # Errors
    /// As [`Engine::score`].
    pub fn prompt_logprobs(&self, prompt: &str, top: usize) -> Result<Vec<Logprobs>> {
        let ids = self.tokenizer()?.encode_prompt(prompt, self.context().saturating_add(1))?;
        self.prompt_logprobs_ids(&ids, top)
    }

    /// [`Engine::prompt_logprobs`] for token ids.
    ///
    /// # Errors
    /// As [`Engine::generate_ids`].
    pub fn prompt_logprobs_ids(&self, ids: &[u32], top: usize) -> Result<Vec<Logprobs>> {
        let Some((first, rest)) = ids.split_first() else { return Err(qwen_core::Error::EmptyPrompt.into()) };
        let mut tokens = Vec::with_capacity(rest.len());
        if rest.is_empty() {
            // Nothing is predicted, but a wrong id is still an error.
            Request::embed([*first], qwen_core::engine::Pooling::Last).check(self.worker().limits())?;
            return Ok(tokens);
        }
        let request = Request::logprobs(&ids[..rest.len()], LogprobsParams::new(rest).top(top));
        let request = request.adapter(self.hold(self.default_adapter())?);
        requests::run(self.worker(), [request], |_, event| {
            if let Event::Scored(token) = event {
                tokens.push(token);
            }
        })?;
        Ok(tokens)
    }

    /// Which of `labels` fits best behind `prompt`: all of them, the likeliest first, with probabilities among them.
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let labels = [" yes", " no"];
    /// let ranked = engine.classify("Is Oslo a city? Answer:", &labels)?;
    /// println!("{}: {:.2}", labels[ranked[0].index], ranked[0].probability);
    /// # assert!((ranked.iter().map(|label| label.probability).sum::<f64>() - 1.0).abs() < 1e-12);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::score`].
    pub fn classify(&self, prompt: &str, labels: &[impl AsRef<str>]) -> Result<Vec<LabelScore>> {
        let scores = self.score(prompt, labels)?;
        let best = scores.iter().map(|score| score.logprob).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score.logprob - best).exp()).sum();
        let label = |(index, score): (usize, &Score)| {
            let probability = (score.logprob - best).exp() / total;
            LabelScore { index, probability, logprob: score.logprob }
        };
        let mut ranked: Vec<_> = scores.iter().enumerate().map(label).collect();
        // A stable sort: equal labels stay in their order.
        ranked.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
        Ok(ranked)
    }
}
