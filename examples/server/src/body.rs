//! Bodies of requests: whole, and neither too large nor too slow.

use std::future::poll_fn;
use std::pin::Pin;

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::{StatusCode, header};

use crate::app::App;
use crate::error::{ApiError, Result};

/// The whole body of a request.
///
/// # Errors
/// If it is too large, does not arrive in time, or ends early.
pub(crate) async fn read(app: &App, request: Request) -> Result<Vec<u8>> {
    let limit = app.settings.max_body_bytes;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limit as u64) {
        return Err(too_large(limit));
    }
    match tokio::time::timeout(app.settings.read_timeout, collect(request, limit)).await {
        Ok(body) => body,
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "the body came too slowly")),
    }
}

async fn collect(request: Request, limit: usize) -> Result<Vec<u8>> {
    let (mut body, mut bytes) = (request.into_body(), Vec::new());
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| ApiError::bad_request(format!("the body could not be read: {error}")))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > limit {
                return Err(too_large(limit));
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes)
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body may have {limit} bytes, and has more");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
}
