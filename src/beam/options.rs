//! How a beam search goes, as a program or a request in JSON says it.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// When a beam search ends, before all beams have `max_new_tokens`. In serde it is `false`, `true` or `"never"`, as in
/// transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EarlyStopping {
    /// `false`: when there are `num_beams` complete answers, and the best running beam, scored as if it were complete,
    /// is not better than the worst of them. Where a `length_penalty` above 0 would still make it better, this misses it.
    #[default]
    False,
    /// `true`: as soon as there are `num_beams` complete answers.
    True,
    /// `"never"`: only when no running beam can become better than the worst of `num_beams` complete answers.
    Never,
}

impl From<bool> for EarlyStopping {
    fn from(on: bool) -> Self {
        if on { EarlyStopping::True } else { EarlyStopping::False }
    }
}

impl Serialize for EarlyStopping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            EarlyStopping::False => serializer.serialize_bool(false),
            EarlyStopping::True => serializer.serialize_bool(true),
            EarlyStopping::Never => serializer.serialize_str("never"),
        }
    }
}

impl<'de> Deserialize<'de> for EarlyStopping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "true, false or \"never\"")]
        enum Value {
            Bool(bool),
            Text(String),
        }
        match Value::deserialize(deserializer)? {
            Value::Bool(on) => Ok(on.into()),
            Value::Text(text) if text == "never" => Ok(EarlyStopping::Never),
            Value::Text(text) => Err(D::Error::custom(format!("must be true, false or \"never\", is {text:?}"))),
        }
    }
}

/// How [`Engine::beam_search`](crate::Engine::beam_search) searches; the names, meanings and defaults are transformers', except for the number of
/// beams.
///
/// ```
/// use qwen::{BeamOptions, EarlyStopping};
/// let options: BeamOptions = serde_json::from_str(r#"{"num_beams": 3, "early_stopping": "never"}"#)?;
/// assert_eq!(options, BeamOptions::new(3).early_stopping(EarlyStopping::Never));
/// assert!(serde_json::from_str::<BeamOptions>(r#"{"beams": 3}"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct BeamOptions {
    /// Beams that grow side by side, at least 1. Default 4.
    pub num_beams: usize,
    /// How many of the best answers are given, at least 1 and at most `num_beams`. Default 1.
    pub num_return_sequences: usize,
    /// Scores are sums of log-probabilities, divided by the number of tokens to this power: above 0 favours long answers,
    /// below 0 short ones. Finite. Default 1.
    pub length_penalty: f64,
    /// When the search ends. Default [`EarlyStopping::False`].
    pub early_stopping: EarlyStopping,
    /// The maximum number of tokens in an answer, at least 1. If not set, the checkpoint's, or what the context holds.
    pub max_new_tokens: Option<usize>,
    /// Token ids that end an answer, in addition to those of the checkpoint.
    pub stop_token_ids: Vec<u32>,
    /// Continue after the checkpoint's stop tokens.
    pub ignore_eos: bool,
}

impl Default for BeamOptions {
    fn default() -> Self {
        BeamOptions {
            num_beams: 4,
            num_return_sequences: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
            max_new_tokens: None,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl BeamOptions {
    /// The defaults with this many beams.
    pub fn new(num_beams: usize) -> Self {
        BeamOptions { num_beams, ..Self::default() }
    }

    /// See [`BeamOptions::num_return_sequences`].
    pub fn num_return_sequences(mut self, sequences: usize) -> Self {
        self.num_return_sequences = sequences;
        self
    }

    /// See [`BeamOptions::length_penalty`].
    pub fn length_penalty(mut self, penalty: f64) -> Self {
        self.length_penalty = penalty;
        self
    }

    /// See [`BeamOptions::early_stopping`].
    pub fn early_stopping(mut self, early: impl Into<EarlyStopping>) -> Self {
        self.early_stopping = early.into();
        self
    }

    /// See [`BeamOptions::max_new_tokens`].
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = Some(tokens);
        self
    }

    /// See [`BeamOptions::stop_token_ids`].
    pub fn stop_token_ids(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.stop_token_ids = ids.into();
        self
    }

    /// See [`BeamOptions::ignore_eos`].
    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    pub(super) fn check(&self) -> qwen_core::Result<()> {
        let BeamOptions { num_beams, num_return_sequences, length_penalty, .. } = *self;
        if num_beams == 0 {
            return Err(qwen_core::Error::argument("num_beams", "must be at least 1, is 0"));
        }
        if !(1..=num_beams).contains(&num_return_sequences) {
            let reason =
                format!("must be at least 1 and at most num_beams, which is {num_beams}; is {num_return_sequences}");
            return Err(qwen_core::Error::argument("num_return_sequences", reason));
        }
        if !length_penalty.is_finite() {
            return Err(qwen_core::Error::argument("length_penalty", format!("must be finite, is {length_penalty}")));
        }
        if self.max_new_tokens == Some(0) {
            return Err(qwen_core::Error::argument("max_new_tokens", "must be at least 1 in a beam search, is 0"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_as_transformers_has_them() {
        let read = |text: &str| serde_json::from_str::<BeamOptions>(text);
        for early in [EarlyStopping::False, EarlyStopping::True, EarlyStopping::Never] {
            let options = BeamOptions::new(3).early_stopping(early).stop_token_ids([7]);
            assert_eq!(read(&serde_json::to_string(&options).unwrap()).unwrap(), options);
        }
        assert_eq!(read(r#"{"early_stopping": true}"#).unwrap().early_stopping, EarlyStopping::True);
        for wrong in [r#"{"early_stopping": "always"}"#, r#"{"early_stopping": 1}"#] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("true, false or \"never\""), "{error}");
        }
    }
}
