//! Bodies of requests: whole, and neither too large nor too slow.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{StatusCode, header};

use crate::app::App;
use crate::error::{ApiError, Result};

/// How long what is too large is read, to be forgotten.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The whole body of a request.
///
/// # Errors
/// If it is too large, does not arrive in time, or ends early.
pub(crate) async fn read(app: &App, request: Request) -> Result<Vec<u8>> {
    let limit = app.settings.max_body_bytes;
    // A client that still sends would not see the answer.
    let too_large = async |body: Body| {
        let _ = tokio::time::timeout(DRAIN_TIME, drain(body)).await;
        let message = format!("the body may have {limit} bytes, and has more");
        Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message))
    };
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limit as u64) {
        return too_large(request.into_body()).await;
    }
    let mut body = request.into_body();
    match tokio::time::timeout(app.settings.read_timeout, collect(&mut body, limit)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => too_large(body).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "the body came too slowly")),
    }
}

/// The bytes of a body, if there are not more than `limit`.
async fn collect(body: &mut Body, limit: usize) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while let Some(frame) = frame(body).await {
        let frame = frame.map_err(|error| ApiError::bad_request(format!("the body could not be read: {error}")))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(Some(bytes))
}

/// Read on, and forget it.
async fn drain(mut body: Body) {
    while frame(&mut body).await.is_some_and(|frame| frame.is_ok()) {}
}

async fn frame(body: &mut Body) -> Option<Result<http_body::Frame<Bytes>, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}
