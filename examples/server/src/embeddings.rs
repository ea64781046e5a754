//! `/v1/embeddings`: a vector for each text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::Response;
use qwen::{EmbedOptions, Embedding, Engine};
use serde_json::{Value, json};

use crate::app::{self, App};
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::inputs::{self, Input};
use crate::{base64, sampling, sse};

/// Texts that are computed before it is asked again whether anybody waits for them.
const AT_A_TIME: usize = 8;

/// Answer a request.
///
/// # Errors
/// For texts that are empty or too long, and ids that are no tokens.
pub(crate) async fn embed(app: Arc<App>, body: Vec<u8>) -> Result<Response> {
    /// Ends the work of a request that nobody waits for.
    struct Waits(Arc<AtomicBool>);
    impl Drop for Waits {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }
    let waits = Waits(Arc::new(AtomicBool::new(true)));
    let is_wanted = waits.0.clone();
    app::blocking(move || answer(&app, Fields::parse(&body)?, &is_wanted)).await
}

fn answer(app: &Arc<App>, mut fields: Fields, is_wanted: &AtomicBool) -> Result<Response> {
    let model = app.take_model(&mut fields)?;
    let engine = app.engine_of(&model)?;
    let input = fields
        .value("input")
        .ok_or_else(|| ApiError::invalid("input", "is missing").code("missing_required_parameter"))?;
    let inputs = inputs::read("input", input, app.settings.max_inputs)?;
    let as_base64 = match fields.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(ApiError::invalid("encoding_format", format!("must be float or base64, is {other:?}")));
        }
    };
    let size = engine.config().hidden_size;
    if let Some(dimensions) = fields.take::<usize>("dimensions")?.filter(|dimensions| *dimensions != size) {
        let reason = format!("this model's vectors have {size} dimensions, and cannot be cut to {dimensions}");
        return Err(ApiError::unsupported("dimensions", reason));
    }
    fields.ignore(&["user"]);
    sampling::ignore_harmless(&mut fields)?;
    fields.finish()?;
    let ids = inputs.iter().enumerate().map(|(index, input)| encode(&engine, index, input));
    let ids = ids.collect::<Result<Vec<_>>>()?;
    let tokens = ids.iter().map(Vec::len).sum();
    let place = app.admission.enter(tokens)?;
    let mut vectors: Vec<Embedding> = Vec::with_capacity(ids.len());
    for ids in ids.chunks(AT_A_TIME) {
        if !is_wanted.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("nobody waits for it"));
        }
        vectors.extend(engine.embed_ids(ids, &EmbedOptions::new())?);
    }
    place.first_token();
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let values = match as_base64 {
                true => json!(base64::encode(
                    &vector.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()
                )),
                false => json!(vector.values),
            };
            json!({"object": "embedding", "index": index, "embedding": values})
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(sse::json(&json!({"object": "list", "data": data, "model": model, "usage": usage})))
}

fn encode(engine: &Engine, index: usize, input: &Input) -> Result<Vec<u32>> {
    let ids = match input {
        Input::Text(text) => engine.tokenizer()?.encode_prompt(text, engine.context())?,
        Input::Ids(ids) => ids.clone(),
    };
    let (vocab_size, context) = (engine.config().vocab_size, engine.context());
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        let reason = format!(
            "token id {id} of entry {index} is not below {vocab_size}: the ids are those of another tokenizer (LangChain's \
             OpenAIEmbeddings sends such unless check_embedding_ctx_length is False)"
        );
        return Err(ApiError::invalid("input", reason));
    }
    match ids.len() {
        0 => Err(ApiError::invalid("input", format!("entry {index} is empty"))),
        len if len > context => {
            let message = format!("`input`: entry {index} has {len} tokens, and may have {context}");
            Err(ApiError::bad_request(message).code("context_length_exceeded"))
        }
        _ => Ok(ids),
    }
}
