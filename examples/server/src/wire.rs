//! What the answers of several endpoints have in common on the wire.

use qwen::FinishReason;
use serde_json::{Value, json};

use crate::answers::Usage;

/// What answers of one version of this server have in common.
pub(crate) const FINGERPRINT: &str = concat!("qwen-rs-", env!("CARGO_PKG_VERSION"));

/// The usage as OpenAI's API has it.
pub(crate) fn usage(usage: Usage) -> Value {
    let Usage { prompt_tokens, cached_tokens, completion_tokens } = usage;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    })
}

/// Why an answer ended, as OpenAI's API has it.
pub(crate) fn finish_reason(reason: FinishReason, has_calls: bool) -> &'static str {
    match reason {
        FinishReason::Length | FinishReason::ContextFull => "length",
        _ if has_calls => "tool_calls",
        _ => "stop",
    }
}

/// JSON has no infinity; OpenAI's API writes this where a token is all but impossible.
pub(crate) fn finite(logprob: f64) -> f64 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
