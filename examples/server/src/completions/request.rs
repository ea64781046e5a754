//! What a request of a completion asks for.

use std::sync::Arc;

use qwen::{Engine, Fill, GenerateOptions, Logprobs};

use super::logprobs::LogprobsList;
use crate::answers::{Answers, Reading};
use crate::app::{self, App};
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::inputs::{self, Input};
use crate::sampling::{self, MAX_TOP_LOGPROBS, Streaming};

/// Tokens of an answer where the request does not say how many: as in OpenAI's API.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request that was read.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    model: String,
    prompts: Vec<Input>,
    suffix: Option<String>,
    echo: bool,
    options: GenerateOptions,
    n: usize,
    streaming: Streaming,
}

/// A request whose answers are being computed.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) answers: Answers,
    pub(super) streaming: Streaming,
    /// What each choice begins with.
    pub(super) beginnings: Vec<Beginning>,
}

/// What a choice has before its first token.
#[derive(Debug, Clone, Default)]
pub(super) struct Beginning {
    /// The prompt's text, if it is echoed.
    pub(super) text: String,
    /// The log-probabilities so far, if they are asked for.
    pub(super) logprobs: Option<LogprobsList>,
}

impl CompletionRequest {
    /// # Errors
    /// For fields that are wrong, or that this server does not know.
    pub(super) fn read(app: &App, mut fields: Fields) -> Result<Self> {
        let model = app.take_model(&mut fields)?;
        let prompt = fields
            .value("prompt")
            .ok_or_else(|| ApiError::invalid("prompt", "is missing").code("missing_required_parameter"))?;
        let prompts = inputs::read("prompt", prompt, app.settings.max_choices)?;
        let suffix = fields.take::<String>("suffix")?.filter(|suffix| !suffix.is_empty());
        let echo = fields.take("echo")?.unwrap_or(false);
        if suffix.is_some() && (echo || prompts.iter().any(|prompt| matches!(prompt, Input::Ids(_)))) {
            return Err(ApiError::invalid("suffix", "goes with a prompt that is text, and without `echo`"));
        }
        let mut options = sampling::options(&mut fields)?;
        options.max_new_tokens = Some(fields.take("max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS));
        options.logprobs = fields.take::<usize>("logprobs")?;
        if let Some(top) = options.logprobs.filter(|top| *top > MAX_TOP_LOGPROBS) {
            return Err(ApiError::invalid("logprobs", format!("must be at most {MAX_TOP_LOGPROBS}, is {top}")));
        }
        let n = sampling::choices(&mut fields, app.settings.max_choices)?;
        if n * prompts.len() > app.settings.max_choices {
            let reason = format!("times the prompts must be at most {}", app.settings.max_choices);
            return Err(ApiError::invalid("n", reason));
        }
        if fields.take::<usize>("best_of")?.is_some_and(|best_of| best_of != n) {
            return Err(ApiError::unsupported("best_of", "must be the same as `n`: answers are not ranked here"));
        }
        let streaming = sampling::streaming(&mut fields)?;
        sampling::ignore_harmless(&mut fields)?;
        fields.finish()?;
        Ok(CompletionRequest { model, prompts, suffix, echo, options, n, streaming })
    }

    /// Begin to answer.
    ///
    /// # Errors
    /// For prompts that are empty or too long, and options that the engine refuses.
    pub(super) fn ask(self, app: &Arc<App>) -> Result<Asked> {
        let engine = app.engine_of(&self.model)?;
        let mut answers = Answers::new(app, &engine)?;
        let mut beginnings = Vec::new();
        for prompt in &self.prompts {
            if app.settings.log_prompts {
                tracing::info!(?prompt, "prompt");
            }
            let beginning = match (prompt, &self.suffix) {
                (Input::Text(text), Some(suffix)) => {
                    let gap = Fill::new(text.as_str(), suffix.as_str());
                    // Rarely has a token fewer than three bytes; it is an estimate of the wait, no more.
                    let tokens = (text.len() + suffix.len()) / 3;
                    let begin = |options: &GenerateOptions| engine.fill(&gap, options);
                    answers.ask_by(tokens, self.n, &self.options, &Reading::default(), begin)?;
                    self.empty()
                }
                (prompt, _) => {
                    let (text, ids) = self.encode(&engine, prompt)?;
                    answers.ask(&ids, self.n, &self.options, &Reading::default())?;
                    self.beginning(&engine, text, &ids)?
                }
            };
            beginnings.extend(std::iter::repeat_n(beginning, self.n));
        }
        let (id, created) = (app.id("cmpl-"), app::now());
        Ok(Asked { id, created, model: self.model, answers, streaming: self.streaming, beginnings })
    }

    fn encode(&self, engine: &Engine, prompt: &Input) -> Result<(String, Vec<u32>)> {
        let tokenizer = engine.tokenizer()?;
        match prompt {
            Input::Text(text) => {
                // One position is left for the answer.
                let ids = tokenizer.encode_prompt(text, engine.context().saturating_sub(1))?;
                Ok((text.clone(), ids))
            }
            Input::Ids(ids) => {
                let text = if self.echo { tokenizer.decode(ids, false) } else { String::new() };
                Ok((text, ids.clone()))
            }
        }
    }

    fn empty(&self) -> Beginning {
        Beginning { text: String::new(), logprobs: self.options.logprobs.map(|_| LogprobsList::default()) }
    }

    fn beginning(&self, engine: &Engine, text: String, ids: &[u32]) -> Result<Beginning> {
        let mut beginning = self.empty();
        if self.echo {
            beginning.text = text;
            if let (Some(top), Some(list)) = (self.options.logprobs, &mut beginning.logprobs) {
                let tokens: Vec<Logprobs> = engine.prompt_logprobs_ids(ids, top)?;
                list.first(ids.first().copied(), engine.tokenizer()?);
                list.extend(&tokens, engine.tokenizer()?);
            }
        }
        Ok(beginning)
    }
}
