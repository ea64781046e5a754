//! The paths of the server, and what answers them.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};

use crate::app::App;
use crate::error::{ApiError, Result};
use crate::{body, chat, completions, embeddings, gate, health, models, page, responses, tokens};

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", with_body(chat::complete))
        .route("/v1/completions", with_body(completions::complete))
        .route("/v1/responses", with_body(responses::respond))
        .route("/v1/embeddings", with_body(embeddings::embed))
        .route("/tokenize", with_body(tokens::tokenize))
        .route("/detokenize", with_body(tokens::detokenize))
        .route("/apply-template", with_body(tokens::apply_template))
        .route("/v1/models", get(|State(app): State<Arc<App>>| async move { models::list(&app) }))
        .route(
            "/v1/models/{*id}",
            get(|State(app): State<Arc<App>>, Path(id): Path<String>| async move { models::one(&app, &id) }),
        )
        .route("/health", get(|State(app): State<Arc<App>>| async move { health::health(&app) }))
        .route(
            "/metrics",
            get(|State(app): State<Arc<App>>| async move { text(app.metrics.page(app.loaded()), PROMETHEUS) }),
        )
        .route("/", get(|| async { page::html() }))
        .route("/page.css", get(|| async { page::css() }))
        .route("/page.js", get(|| async { page::script() }))
        .route("/openapi.json", get(|| async { page::openapi() }))
        .fallback(|uri: Uri| async move {
            let message = format!("there is nothing at {}", uri.path());
            ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "this path has another method")
        })
        .layer(middleware::from_fn_with_state(app.clone(), gate::gate))
        .with_state(app)
}

/// A route that takes the whole body of a request.
fn with_body<F>(answer: fn(Arc<App>, Vec<u8>) -> F) -> MethodRouter<Arc<App>>
where
    F: Future<Output = Result<Response>> + Send + 'static,
{
    post(move |State(app): State<Arc<App>>, request: Request| async move {
        let body = body::read(&app, request).await?;
        answer(app, body).await
    })
}

/// The type of Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn text(text: impl Into<Body>, kind: &'static str) -> Response {
    let mut response = text.into().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
