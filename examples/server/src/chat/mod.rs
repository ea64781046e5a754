//! `/v1/chat/completions`: an answer to the messages of a conversation, with calls of tools.

pub(crate) mod answer;
mod choice;
pub(crate) mod messages;
pub(crate) mod prompt;
pub(crate) mod request;
mod stream;

use std::sync::Arc;

use axum::response::Response;

use crate::app::{self, App};
use crate::error::Result;
use crate::fields::Fields;
use crate::sse;
use answer::Answer;
use request::ChatRequest;
use stream::ChatStream;

/// Answer a request.
///
/// # Errors
/// For whatever is wrong with the request, and where too many wait.
pub(crate) async fn complete(app: Arc<App>, body: Vec<u8>) -> Result<Response> {
    let of_job = app.clone();
    let asked = app::blocking(move || ChatRequest::read(&of_job, Fields::parse(&body)?)?.ask(&of_job)).await?;
    if asked.streaming.on {
        let ping = app.settings.ping_interval;
        return Ok(sse::stream(ChatStream::new(asked), ping));
    }
    let answer = Answer::read(asked).await?;
    Ok(sse::json(&answer.json()))
}
