//! `/v1/responses`: the newer form of a chat, as far as it needs no memory. Nothing is stored; each request has the whole
//! conversation.

mod input;
mod output;
mod request;
mod stream;

use std::sync::Arc;

use axum::response::Response;

use crate::app::{self, App};
use crate::chat::answer::Answer;
use crate::error::Result;
use crate::fields::Fields;
use crate::sse;
use output::Frame;
use stream::ResponseStream;

/// Answer a request.
///
/// # Errors
/// For whatever is wrong with the request, and where too many wait.
pub(crate) async fn respond(app: Arc<App>, body: Vec<u8>) -> Result<Response> {
    let of_job = app.clone();
    let (asked, frame) = app::blocking(move || {
        let (request, echoed) = request::read(&of_job, Fields::parse(&body)?)?;
        let mut asked = request.ask(&of_job).map_err(|error| error.renamed(request::rename))?;
        asked.id = of_job.id("resp_");
        let frame = Frame { id: asked.id.clone(), created: asked.created, model: asked.model.clone(), echoed };
        Ok((asked, frame))
    })
    .await?;
    if asked.streaming.on {
        let ping = app.settings.ping_interval;
        return Ok(sse::stream(ResponseStream::new(asked, frame), ping));
    }
    let answer = Answer::read(asked).await?;
    Ok(sse::json(&frame.complete(&answer)))
}
