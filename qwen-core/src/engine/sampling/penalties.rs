//! Stages that lower the logits of tokens that were used.

use super::params::SamplingParams;
use super::processor::History;

/// The value as a finite number, however large; what is ruled out stays so.
fn finite(value: f32, before: f32) -> f32 {
    if before == f32::NEG_INFINITY { before } else { value.clamp(f32::MIN, f32::MAX) }
}

/// Adds to the logits of single tokens.
pub(super) fn logit_bias(params: &SamplingParams, logits: &mut [f32]) {
    for (id, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = finite(*logit + bias, *logit);
        }
    }
}

/// Divides positive and multiplies negative logits of the tokens of prompt and answer, each once (Keskar et al. 2019).
/// `prompt_ids` are the distinct ids of the prompt, `seen` is scratch.
pub(super) fn repetition(
    params: &SamplingParams,
    prompt_ids: &[u32],
    history: &History<'_>,
    logits: &mut [f32],
    seen: &mut Vec<u32>,
) {
    let penalty = params.repetition_penalty;
    seen.clear();
    match params.window() {
        Some(window) => seen.extend_from_slice(last(history.tokens, window)),
        None => {
            seen.extend_from_slice(prompt_ids);
            seen.extend_from_slice(history.answer());
        }
    }
    seen.sort_unstable();
    seen.dedup();
    for id in seen.iter() {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = finite(if *logit < 0.0 { *logit * penalty } else { *logit / penalty }, *logit);
        }
    }
}

/// Subtracts `frequency` for each time that a token was used, and `presence` once. `seen` is scratch.
pub(super) fn occurrences(
    params: &SamplingParams,
    [frequency, presence]: [f32; 2],
    history: &History<'_>,
    logits: &mut [f32],
    seen: &mut Vec<u32>,
) {
    seen.clear();
    seen.extend_from_slice(match params.window() {
        Some(window) => last(history.tokens, window),
        None => history.answer(),
    });
    seen.sort_unstable();
    for uses in seen.chunk_by(|a, b| a == b) {
        let Some(logit) = uses.first().and_then(|id| logits.get_mut(*id as usize)) else { continue };
        *logit = finite(*logit - (frequency * uses.len() as f32 + presence), *logit);
    }
}

fn last(tokens: &[u32], count: usize) -> &[u32] {
    tokens.get(tokens.len().saturating_sub(count)..).unwrap_or_default()
}
