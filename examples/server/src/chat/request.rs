//! What a request of a chat asks for.

use std::sync::Arc;

use qwen::{GenerateOptions, ToolChoice};
use serde_json::json;

use super::choice::{self, Constraint};
use super::prompt::Prompt;
use crate::answers::{Answers, Reading};
use crate::app::{self, App};
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::sampling::{self, MAX_TOP_LOGPROBS, Streaming};

/// A request that was read.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) model: String,
    pub(crate) prompt: Prompt,
    /// Whether the model may call one tool only.
    pub(crate) single_call: bool,
    pub(crate) options: GenerateOptions,
    /// What the answer has to be.
    constraint: Constraint,
    pub(crate) n: usize,
    pub(crate) streaming: Streaming,
}

/// A request whose answers are being computed.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) answers: Answers,
    pub(crate) streaming: Streaming,
    /// Whether log-probabilities were asked for.
    pub(crate) logprobs: bool,
}

impl ChatRequest {
    /// # Errors
    /// For fields that are wrong, or that this server does not know.
    pub(crate) fn read(app: &App, mut fields: Fields) -> Result<Self> {
        let model = app.take_model(&mut fields)?;
        let mut prompt = Prompt::read(&mut fields)?;
        let mut options = sampling::options(&mut fields)?;
        options.max_new_tokens = max_tokens(&mut fields)?;
        options.logprobs = logprobs(&mut fields)?;
        let n = sampling::choices(&mut fields, app.settings.max_choices)?;
        let streaming = sampling::streaming(&mut fields)?;
        let single_call = !fields.take("parallel_tool_calls")?.unwrap_or(true);
        let choice = choice::tool_choice(fields.value("tool_choice"), &mut prompt.tools)?;
        let format = choice::response_format(&mut fields)?;
        if choice == ToolChoice::None {
            prompt.tools.clear();
        }
        let constraint = choice::constraint(&choice, !single_call, format, &prompt.tools)?;
        if let (Some((_, field)), Some(_)) = (&constraint, &options.grammar) {
            return Err(ApiError::invalid("grammar", format!("an answer cannot be this and what `{field}` says")));
        }
        fields.only("modalities", &[json!(["text"])], "answers are text here")?;
        sampling::ignore_harmless(&mut fields)?;
        fields.finish()?;
        Ok(ChatRequest { model, prompt, single_call, options, constraint, n, streaming })
    }

    /// Begin to answer.
    ///
    /// # Errors
    /// For messages that the template refuses, prompts that are too long, and options that the engine refuses.
    pub(crate) fn ask(self, app: &Arc<App>) -> Result<Asked> {
        let engine = app.engine_of(&self.model)?;
        let tokenizer = engine.tokenizer()?;
        // One position is left for the answer.
        let prompt = self.prompt.encode(&engine, engine.context().saturating_sub(1))?;
        if app.settings.log_prompts {
            tracing::info!(prompt = prompt.text.as_str(), "prompt");
        }
        let parser = tokenizer.answer_parser(&prompt.ids);
        let is_in_thought = parser.is_in_thought();
        let parser = if self.prompt.tools.is_empty() { parser.without_calls() } else { parser };
        let mut answers = Answers::new(app, &engine)?;
        let reading = Reading { parser: Some(parser), single_call: self.single_call };
        let (mut options, mut field) = (self.options, "grammar");
        if let Some((grammar, of)) = self.constraint {
            options = options.grammar(grammar.after_thought(is_in_thought));
            field = of;
        }
        let rename = |param: &str| if param == "grammar" { field.to_owned() } else { param.to_owned() };
        answers.ask(&prompt.ids, self.n, &options, &reading).map_err(|error| error.renamed(rename))?;
        Ok(Asked {
            id: app.id("chatcmpl-"),
            created: app::now(),
            model: self.model,
            answers,
            streaming: self.streaming,
            logprobs: options.logprobs.is_some(),
        })
    }
}

/// `max_completion_tokens`, or its older name.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>> {
    let (new, old) = (fields.take::<usize>("max_completion_tokens")?, fields.take::<usize>("max_tokens")?);
    let name = if new.is_some() { "max_completion_tokens" } else { "max_tokens" };
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            Err(ApiError::invalid("max_tokens", "is an older name of `max_completion_tokens`, and they differ"))
        }
        (Some(0), _) | (None, Some(0)) => Err(ApiError::invalid(name, "must be at least 1")),
        (new, old) => Ok(new.or(old)),
    }
}

/// `logprobs` and `top_logprobs`: how many alternatives, if any.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let on = fields.take("logprobs")?.unwrap_or(false);
    match fields.take::<usize>("top_logprobs")? {
        Some(_) if !on => Err(ApiError::invalid("top_logprobs", "only allowed when `logprobs` is true")),
        Some(top) if top > MAX_TOP_LOGPROBS => {
            Err(ApiError::invalid("top_logprobs", format!("must be at most {MAX_TOP_LOGPROBS}, is {top}")))
        }
        top => Ok(on.then_some(top.unwrap_or(0))),
    }
}
