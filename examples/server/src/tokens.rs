//! `/tokenize`, `/detokenize` and `/apply-template`: what prompts become, without computing anything.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use crate::app::{self, App};
use crate::chat::prompt::Prompt;
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::sse;

/// A text (`prompt` or `content`) or a chat (`messages`) as token ids.
///
/// # Errors
/// For fields that are wrong, and messages that the template refuses.
pub(crate) async fn tokenize(app: Arc<App>, body: Vec<u8>) -> Result<Response> {
    app::blocking(move || {
        let mut fields = Fields::parse(&body)?;
        app.take_model(&mut fields)?;
        let engine = app.engine()?;
        let tokenizer = engine.tokenizer()?;
        let with_texts = fields.take("return_token_strs")?.unwrap_or(false);
        let text = match (fields.take::<String>("prompt")?, fields.take::<String>("content")?) {
            (Some(_), Some(_)) => return Err(ApiError::invalid("content", "is another name of `prompt`")),
            (prompt, content) => prompt.or(content),
        };
        let ids = match text {
            Some(text) => match fields.take("add_special_tokens")?.unwrap_or(true) {
                true => tokenizer.encode_prompt(&text, usize::MAX)?,
                false => tokenizer.encode(&text, true)?,
            },
            None => Prompt::read_whole(&mut fields)?.encode(engine, usize::MAX)?.ids,
        };
        fields.finish()?;
        let texts = with_texts.then(|| ids.iter().map(|id| tokenizer.id_to_token(*id)).collect::<Vec<_>>());
        let count = ids.len();
        Ok(sse::json(&json!({"count": count, "max_model_len": engine.context(), "tokens": ids, "token_strs": texts})))
    })
    .await
}

/// Token ids as a text.
///
/// # Errors
/// For ids that are no tokens.
pub(crate) async fn detokenize(app: Arc<App>, body: Vec<u8>) -> Result<Response> {
    app::blocking(move || {
        let mut fields = Fields::parse(&body)?;
        app.take_model(&mut fields)?;
        let ids: Vec<u32> = fields.require("tokens")?;
        fields.finish()?;
        let tokenizer = app.engine()?.tokenizer()?;
        let limit = tokenizer.num_ids();
        if let Some(id) = ids.iter().find(|id| **id as usize >= limit) {
            return Err(ApiError::invalid("tokens", format!("{id} is no token: ids are below {limit}")));
        }
        Ok(sse::json(&json!({"prompt": tokenizer.decode(&ids, false)})))
    })
    .await
}

/// A chat as the text that the model reads.
///
/// # Errors
/// For messages that the template refuses.
pub(crate) async fn apply_template(app: Arc<App>, body: Vec<u8>) -> Result<Response> {
    app::blocking(move || {
        let mut fields = Fields::parse(&body)?;
        app.take_model(&mut fields)?;
        let prompt = Prompt::read_whole(&mut fields)?;
        fields.finish()?;
        let text: Value = prompt.render(app.engine()?)?.into();
        Ok(sse::json(&json!({"prompt": text})))
    })
    .await
}
