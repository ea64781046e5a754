//! `/health`: whether requests are answered, for whoever sends them here.

use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::app::App;
use crate::sse;

/// 200 when the model is loaded, 503 before and while the server ends.
pub(crate) fn health(app: &App) -> Response {
    let status = match app.loaded() {
        _ if app.is_ending.load(Ordering::Relaxed) => "ending",
        Some(_) => "ok",
        None => "loading",
    };
    let mut response = sse::json(&json!({"status": status}));
    if status != "ok" {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}
