//! What every request passes: an id, the checks of host, origin and key, and a line in the log at its end, also where its
//! client leaves before.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use crate::app::App;
use crate::error::{ApiError, Result};
use crate::settings::{ApiKey, Settings};

const REQUEST_ID: &str = "x-request-id";
/// The status, in logs and figures, of a request whose client left.
const CLIENT_LEFT: u16 = 499;
/// Paths that need no key: probes, and files that are the same everywhere.
const OPEN: [&str; 5] = ["/health", "/", "/page.css", "/page.js", "/openapi.json"];

/// The paths that figures know; others are one.
pub(crate) const ROUTES: [&str; 15] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/health",
    "/metrics",
    "/openapi.json",
    "/page.css",
    "/page.js",
    "/v1/models/{id}",
    "/",
];

/// The middleware of all routes.
pub(crate) async fn gate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let route = match path.strip_prefix("/v1/models/") {
        Some(_) => "/v1/models/{id}",
        None => ROUTES.into_iter().find(|route| *route == path).unwrap_or("other"),
    };
    let id = request_id(&app, request.headers());
    let span = tracing::debug_span!("request", id = id.as_str(), method = %request.method(), route);
    let mut end =
        End { app: app.clone(), route, id: id.clone(), started: Instant::now(), status: CLIENT_LEFT, key: None };
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = async {
        match check(&app, &request, &mut end.key) {
            Err(error) => error.into_response(),
            Ok(()) if request.method() == Method::OPTIONS && origin.is_some() => preflight(),
            Ok(()) => next.run(request).await,
        }
    }
    .instrument(span)
    .await;
    end.status = response.status().as_u16();
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !app.settings.cors_origins.is_empty() {
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = origin.filter(|origin| is_allowed(&app.settings, origin)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers
                .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
        }
    }
    response.map(|body| Body::new(Logged { body, end: Some(end) }))
}

/// The client's own id, if it is one that a log can hold.
fn request_id(app: &App, headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_plain = |id: &&str| !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic());
    sent.filter(is_plain).map_or_else(|| app.id("req-"), str::to_owned)
}

fn check(app: &App, request: &Request, key: &mut Option<String>) -> Result<()> {
    let (settings, headers) = (&app.settings, request.headers());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let forbidden = |message: String| ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", message);
    if app.is_loopback
        && !is_this_machine(host)
        && !settings.allowed_hosts.iter().any(|allowed| allowed == name_of(host))
    {
        return Err(forbidden(format!("requests to the host {host:?} are not answered: see --allowed-host")));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let own =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(|(_, origin)| origin == host);
        if !own && !is_allowed(settings, origin) {
            return Err(forbidden("pages of other sites may not use this server: see --cors-origin".into()));
        }
    }
    let is_open = OPEN.contains(&request.uri().path()) || request.method() == Method::OPTIONS;
    if settings.api_keys.is_empty() || is_open {
        return Ok(());
    }
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match sent.and_then(|(_, sent)| ApiKey::find(&settings.api_keys, sent.trim())) {
        Some(found) => {
            *key = Some(found.fingerprint());
            Ok(())
        }
        None => {
            let message = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message).code("invalid_api_key"))
        }
    }
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        // Not within an IPv6 address.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = name_of(host);
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

fn is_allowed(settings: &Settings, origin: &HeaderValue) -> bool {
    settings.cors_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
}

/// The answer to a browser that asks whether it may send a request.
fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    let allowed = "authorization, content-type, x-request-id";
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Writes down how a request ended, when it is dropped.
struct End {
    app: Arc<App>,
    route: &'static str,
    id: String,
    started: Instant,
    status: u16,
    key: Option<String>,
}

impl Drop for End {
    fn drop(&mut self) {
        let End { app, route, id, started, status, key } = self;
        app.metrics.request(route, *status);
        let millis = started.elapsed().as_millis();
        let key = key.as_deref().unwrap_or("-");
        tracing::info!(target: "qwen_server", "{route} {status} in {millis} ms, id {id}, key {key}");
    }
}

/// A body that is written down as left if it is dropped before its end.
struct Logged {
    body: Body,
    end: Option<End>,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None) = frame {
            self.end = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if let Some(end) = &mut self.end
            && !self.body.is_end_stream()
        {
            end.status = CLIENT_LEFT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_this_machine_are_known_with_and_without_ports() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com:80", "10.0.0.1:8080", "127.0.0.1.example.com"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
