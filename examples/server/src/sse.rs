//! Responses: JSON at once, or server-sent events as they come.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_core::Stream;
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep};

/// A response of JSON.
pub(crate) fn json(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Where events come from.
pub(crate) trait Events: Send + Unpin + 'static {
    /// The next event: its text is what stands on the wire. `None` at the end.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<String>>;
}

/// The text of an event that is data alone.
pub(crate) fn data(data: impl std::fmt::Display) -> String {
    format!("data: {data}\n\n")
}

/// The event that ends OpenAI's streams.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// A response that streams `events`. A comment is sent after each `ping` without one.
pub(crate) fn stream(events: impl Events, ping: Duration) -> Response {
    let stream = EventStream { events, ping, silence: Box::pin(sleep(ping)), is_done: false };
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies such as nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct EventStream<E> {
    events: E,
    ping: Duration,
    silence: Pin<Box<Sleep>>,
    is_done: bool,
}

impl<E: Events> Stream for EventStream<E> {
    type Item = Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_done {
            return Poll::Ready(None);
        }
        let text = match this.events.poll_next(context) {
            Poll::Ready(Some(text)) => text,
            Poll::Ready(None) => {
                this.is_done = true;
                return Poll::Ready(None);
            }
            Poll::Pending => match this.silence.as_mut().poll(context) {
                Poll::Ready(()) => ": still here\n\n".into(),
                Poll::Pending => return Poll::Pending,
            },
        };
        this.silence.as_mut().reset(Instant::now() + this.ping);
        Poll::Ready(Some(Ok(text)))
    }
}
