//! `/v1/completions`: texts that go on, without a template.

mod answer;
mod logprobs;
mod request;
mod stream;

use std::sync::Arc;

use axum::response::Response;

use crate::app::{self, App};
use crate::error::Result;
use crate::fields::Fields;
use crate::sse;
use request::CompletionRequest;
use stream::CompletionStream;

/// Answer a request.
///
/// # Errors
/// For whatever is wrong with the request, and where too many wait.
pub(crate) async fn complete(app: Arc<App>, body: Vec<u8>) -> Result<Response> {
    let of_job = app.clone();
    let asked = app::blocking(move || CompletionRequest::read(&of_job, Fields::parse(&body)?)?.ask(&of_job)).await?;
    if asked.streaming.on {
        let ping = app.settings.ping_interval;
        return Ok(sse::stream(CompletionStream::new(asked), ping));
    }
    Ok(sse::json(&answer::read(asked).await?))
}
