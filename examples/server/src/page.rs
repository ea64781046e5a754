//! Files that are the same for everybody: the chat page, and the description of the server.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const SCRIPT: &str = concat!(
    include_str!("page/dom.js"),
    include_str!("page/markdown.js"),
    include_str!("page/api.js"),
    include_str!("page/messages.js"),
    include_str!("page/page.js"),
);
const OPENAPI: &str = include_str!("../openapi.json");

/// What the page may do: talk to this server, and nothing else. A model's text cannot make it run or load anything.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri \
                      'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

pub(crate) fn html() -> Response {
    let mut response = file(HTML, "text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

pub(crate) fn css() -> Response {
    file(CSS, "text/css; charset=utf-8")
}

pub(crate) fn script() -> Response {
    file(SCRIPT, "text/javascript; charset=utf-8")
}

pub(crate) fn openapi() -> Response {
    file(OPENAPI, "application/json")
}

fn file(text: &'static str, kind: &'static str) -> Response {
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
