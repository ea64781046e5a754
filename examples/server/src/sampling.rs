//! How an answer is generated: the fields that chats and completions have in common, of OpenAI's API and of this library.

use qwen::GenerateOptions;
use serde_json::{Map, Value, json};

use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// Fields, and what the library calls them. Those that OpenAI's API has not are named as other servers name them.
const OPTIONS: &[(&str, &str)] = &[
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("stop", "stop"),
    ("logit_bias", "logit_bias"),
    ("user", "user"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("typical_p", "typical_p"),
    ("top_n_sigma", "top_n_sigma"),
    ("epsilon_cutoff", "epsilon_cutoff"),
    ("eta_cutoff", "eta_cutoff"),
    ("xtc_probability", "xtc_probability"),
    ("xtc_threshold", "xtc_threshold"),
    ("dynatemp_range", "dynatemp_range"),
    ("dynatemp_exponent", "dynatemp_exponent"),
    ("mirostat", "mirostat"),
    ("repetition_penalty", "repetition_penalty"),
    ("penalty_window", "penalty_window"),
    ("dry", "dry"),
    ("no_repeat_ngram_size", "no_repeat_ngram_size"),
    ("min_tokens", "min_new_tokens"),
    ("stop_token_ids", "stop_token_ids"),
    ("ignore_eos", "ignore_eos"),
    ("bad_words", "bad_words"),
    ("allowed_token_ids", "allowed_token_ids"),
    ("banned_token_ids", "banned_token_ids"),
    ("banned_sequences", "banned_sequences"),
    ("forced_token_ids", "forced_token_ids"),
    ("grammar", "grammar"),
    ("preset", "preset"),
    ("stages", "stages"),
    ("speculation", "speculation"),
    ("cache_salt", "cache_salt"),
    ("priority", "priority"),
];

/// The most alternatives of a token.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;

/// Take all fields of how an answer is generated, except for its length and its log-probabilities.
///
/// # Errors
/// For values that are out of bounds in any model; the engine checks the others.
pub(crate) fn options(fields: &mut Fields) -> Result<GenerateOptions> {
    let mut all = Map::new();
    for (field, option) in OPTIONS {
        let Some(value) = fields.value(field) else { continue };
        // Alone first, so that an error has its name.
        let one = Value::Object(Map::from_iter([((*option).to_owned(), value.clone())]));
        if let Err(error) = serde_json::from_value::<GenerateOptions>(one) {
            return Err(ApiError::invalid(*field, error));
        }
        all.insert((*option).into(), value);
    }
    let mut options: GenerateOptions =
        serde_json::from_value(Value::Object(all)).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if let Some((id, bias)) = options.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(*bias)) {
        return Err(ApiError::invalid("logit_bias", format!("of token {id} must be -100 to 100, is {bias}")));
    }
    for (name, penalty) in
        [("presence_penalty", options.presence_penalty), ("frequency_penalty", options.frequency_penalty)]
    {
        if let Some(penalty) = penalty.filter(|penalty| !(-2.0..=2.0).contains(penalty)) {
            return Err(ApiError::invalid(name, format!("must be -2 to 2, is {penalty}")));
        }
    }
    // Negative seeds are as good as any.
    options.seed = fields.take::<i64>("seed")?.map(i64::cast_unsigned);
    Ok(options)
}

/// Take the fields that change nothing here, and refuse those of them that ask for something.
pub(crate) fn ignore_harmless(fields: &mut Fields) -> Result<()> {
    fields.ignore(&["metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"]);
    fields.only("store", &[json!(false)], "nothing is stored here")?;
    fields.only("service_tier", &[json!("auto"), json!("default")], "there is one tier: auto")
}

/// `n`: how many answers.
pub(crate) fn choices(fields: &mut Fields, max: usize) -> Result<usize> {
    let n = fields.take::<usize>("n")?.unwrap_or(1);
    match n {
        0 => Err(ApiError::invalid("n", "must be at least 1")),
        n if n > max => Err(ApiError::invalid("n", format!("must be at most {max}, is {n}"))),
        n => Ok(n),
    }
}

/// Whether the answer is streamed, and whether its usage comes at the end of the stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streaming {
    pub(crate) on: bool,
    pub(crate) include_usage: bool,
}

pub(crate) fn streaming(fields: &mut Fields) -> Result<Streaming> {
    let on = fields.take("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object("stream_options")? else { return Ok(Streaming { on, include_usage: false }) };
    if !on {
        return Err(ApiError::invalid("stream_options", "only allowed when `stream` is true"));
    }
    let include_usage = options.take("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[json!(false), json!(true)], "must be true or false")?;
    options.finish()?;
    Ok(Streaming { on, include_usage })
}
