//! Errors as OpenAI's clients know them: a status, and a JSON body with message, type, param and code.
//!
//! Clients retry 408, 409, 429 and whatever begins with 5; so what cannot succeed is a 4xx.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use qwen::ErrorKind;
use serde_json::{Value, json};

/// A request that fails, before or while it is answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which it may succeed.
    retry_after: Option<u64>,
}

pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request is wrong, and no single field is to blame.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The field `param` is wrong.
    pub(crate) fn invalid(param: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("`{param}`: {reason}");
        ApiError { param: Some(param), ..Self::bad_request(message) }
    }

    /// The field `param` asks for what this server cannot do.
    pub(crate) fn unsupported(param: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::invalid(param, reason).code("unsupported_value")
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).retry_after(1)
    }

    /// Too many requests wait.
    pub(crate) fn busy(message: impl Into<String>, seconds: u64) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self::new(status, "rate_limit_error", message).code("rate_limit_exceeded").retry_after(seconds)
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    /// The same error of a request whose fields have other names.
    pub(crate) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        if let Some(param) = &mut self.param {
            let renamed = rename(param);
            self.message = self.message.replacen(&format!("`{param}`"), &format!("`{renamed}`"), 1);
            *param = renamed;
        }
        self
    }

    fn retry_after(self, seconds: u64) -> Self {
        ApiError { retry_after: Some(seconds.max(1)), ..self }
    }

    /// The body of the response, and of an event that ends a stream.
    pub(crate) fn json(&self) -> Value {
        let ApiError { kind, message, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

/// The request's field for an argument of the library, where it has another name.
fn field(argument: &str) -> &str {
    match argument {
        "max_new_tokens" => "max_tokens",
        "min_new_tokens" => "min_tokens",
        "logprobs" => "top_logprobs",
        argument => argument,
    }
}

impl From<qwen::Error> for ApiError {
    fn from(error: qwen::Error) -> Self {
        let message = error.to_string();
        if let qwen::Error::Model(qwen::ModelError::InvalidArgument { name, reason }) = &error {
            return ApiError::invalid(field(name), reason);
        }
        if let qwen::Error::Model(qwen::ModelError::Grammar { reason }) = &error {
            return ApiError::invalid("grammar", reason);
        }
        match error.kind() {
            ErrorKind::PromptTooLong => ApiError::bad_request(message).code("context_length_exceeded"),
            ErrorKind::InvalidMessages => ApiError::invalid("messages", message),
            ErrorKind::InvalidArgument => ApiError::bad_request(message),
            ErrorKind::Unsupported => ApiError::bad_request(message).code("unsupported_value"),
            ErrorKind::Busy => ApiError::busy(message, 1),
            ErrorKind::DeadlineExceeded => {
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).code("timeout")
            }
            ErrorKind::EngineStopped | ErrorKind::Cancelled => ApiError::unavailable(message),
            _ => ApiError::internal(message),
        }
    }
}

impl From<qwen::TextError> for ApiError {
    fn from(error: qwen::TextError) -> Self {
        qwen::Error::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::GATEWAY_TIMEOUT {
            // A second attempt would take as long.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}
