//! What is ruled out before any stage: tokens, sequences, repeated n-grams, and an early end.

use super::params::SamplingParams;
use super::processor::History;

/// Whether the parameters rule anything out.
pub(super) fn is_set(params: &SamplingParams) -> bool {
    !params.allowed_token_ids.is_empty()
        || !params.banned_token_ids.is_empty()
        || !params.banned_sequences.is_empty()
        || params.no_repeat_ngram_size > 0
        || params.min_new_tokens > 0
}

/// Set the logits of what may not follow `history` to negative infinity. `values` is scratch.
pub(super) fn apply(
    params: &SamplingParams,
    stop_token_ids: &[u32],
    history: &History<'_>,
    logits: &mut [f32],
    values: &mut Vec<f32>,
) {
    if !params.allowed_token_ids.is_empty() {
        let value = |id: &u32| logits.get(*id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        values.clear();
        values.extend(params.allowed_token_ids.iter().map(value));
        logits.fill(f32::NEG_INFINITY);
        for (id, value) in params.allowed_token_ids.iter().zip(values.iter()) {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = *value;
            }
        }
    }
    let mut ban = |id: u32| {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    };
    params.banned_token_ids.iter().for_each(|id| ban(*id));
    for sequence in &params.banned_sequences {
        if let Some((last, before)) = sequence.split_last()
            && history.tokens.ends_with(before)
        {
            ban(*last);
        }
    }
    let size = params.no_repeat_ngram_size;
    if size > 0 && history.tokens.len() >= size {
        let (_, suffix) = history.tokens.split_at(history.tokens.len() + 1 - size);
        for ngram in history.tokens.windows(size) {
            if let Some((last, before)) = ngram.split_last()
                && before == suffix
            {
                ban(*last);
            }
        }
    }
    if history.position() < params.min_new_tokens {
        stop_token_ids.iter().for_each(|id| ban(*id));
    }
}
