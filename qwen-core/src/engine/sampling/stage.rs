//! The stages of the chain, and the orders in which others run them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A stage between a model's logits and the draw. A stage whose parameters are neutral does nothing. What is ruled out
/// altogether (`allowed_token_ids`, `banned_token_ids`, `banned_sequences`, `no_repeat_ngram_size`, `min_new_tokens`,
/// `forced_token_ids`) is no stage: it comes before all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Adds `logit_bias`.
    LogitBias,
    /// `repetition_penalty`.
    RepetitionPenalty,
    /// `frequency_penalty`.
    FrequencyPenalty,
    /// `presence_penalty`.
    PresencePenalty,
    /// `dry`.
    Dry,
    /// The caller's own processors, in their order.
    Custom,
    /// `top_n_sigma`.
    TopNSigma,
    /// `temperature`, with `dynatemp_range` around it.
    Temperature,
    /// `top_k`.
    TopK,
    /// `top_p`.
    TopP,
    /// `min_p`.
    MinP,
    /// `typical_p`.
    TypicalP,
    /// `epsilon_cutoff`.
    EpsilonCutoff,
    /// `eta_cutoff`.
    EtaCutoff,
    /// `xtc_probability` and `xtc_threshold`.
    Xtc,
}

impl Stage {
    /// The name in `snake_case`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::LogitBias => "logit_bias",
            Stage::RepetitionPenalty => "repetition_penalty",
            Stage::FrequencyPenalty => "frequency_penalty",
            Stage::PresencePenalty => "presence_penalty",
            Stage::Dry => "dry",
            Stage::Custom => "custom",
            Stage::TopNSigma => "top_n_sigma",
            Stage::Temperature => "temperature",
            Stage::TopK => "top_k",
            Stage::TopP => "top_p",
            Stage::MinP => "min_p",
            Stage::TypicalP => "typical_p",
            Stage::EpsilonCutoff => "epsilon_cutoff",
            Stage::EtaCutoff => "eta_cutoff",
            Stage::Xtc => "xtc",
        }
    }

    /// Whether it changes the values of logits, which also changes the most likely token. The others only choose among
    /// the most likely ones, and greedy requests skip them.
    pub(super) const fn changes_logits(self) -> bool {
        use Stage::*;
        matches!(self, LogitBias | RepetitionPenalty | FrequencyPenalty | PresencePenalty | Dry | Custom)
    }

    /// Whether mirostat takes its place.
    pub(super) const fn is_cut(self) -> bool {
        use Stage::*;
        matches!(self, TopNSigma | TopK | TopP | MinP | TypicalP | EpsilonCutoff | EtaCutoff | Xtc)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whose order of stages, and whose meaning of penalties. Each order has all stages; those that the other program lacks
/// stand where they fit. Displayed, parsed and serialised as `transformers`, `vllm` and `llama_cpp`.
///
/// ```
/// use qwen_core::engine::sampling::{Preset, Stage};
/// assert_eq!(Preset::LlamaCpp.stages().last(), Some(&Stage::Temperature));
/// assert_eq!(Preset::LlamaCpp.penalty_window(), Some(64));
/// assert_eq!("vllm".parse::<Preset>()?, Preset::Vllm);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Preset {
    /// The temperature before all cuts, `top_k` before `top_p` before `min_p`. The repetition penalty counts prompt and
    /// answer, presence and frequency count the answer.
    #[default]
    Transformers,
    /// As transformers, but with the caller's own stages before the penalties, and `min_p` first among the cuts.
    Vllm,
    /// The cuts see the model's own probabilities: the temperature comes last. All penalties count the last 64 tokens of
    /// prompt and answer.
    LlamaCpp,
}

impl Preset {
    /// All stages, in this order.
    pub const fn stages(self) -> &'static [Stage] {
        use Stage::*;
        match self {
            Preset::Transformers => &[
                LogitBias,
                RepetitionPenalty,
                FrequencyPenalty,
                PresencePenalty,
                Dry,
                Custom,
                TopNSigma,
                Temperature,
                TopK,
                TopP,
                MinP,
                TypicalP,
                EpsilonCutoff,
                EtaCutoff,
                Xtc,
            ],
            Preset::Vllm => &[
                LogitBias,
                Custom,
                RepetitionPenalty,
                FrequencyPenalty,
                PresencePenalty,
                Dry,
                TopNSigma,
                Temperature,
                MinP,
                TopK,
                TopP,
                TypicalP,
                EpsilonCutoff,
                EtaCutoff,
                Xtc,
            ],
            Preset::LlamaCpp => &[
                LogitBias,
                RepetitionPenalty,
                FrequencyPenalty,
                PresencePenalty,
                Dry,
                Custom,
                TopNSigma,
                TopK,
                TypicalP,
                TopP,
                MinP,
                EpsilonCutoff,
                EtaCutoff,
                Xtc,
                Temperature,
            ],
        }
    }

    /// How many of the last tokens of prompt and answer all penalties count; `None` where repetition counts prompt and
    /// answer, presence and frequency count the answer.
    pub const fn penalty_window(self) -> Option<usize> {
        match self {
            Preset::LlamaCpp => Some(64),
            _ => None,
        }
    }

    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Preset::Transformers => "transformers",
            Preset::Vllm => "vllm",
            Preset::LlamaCpp => "llama_cpp",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let all = [Preset::Transformers, Preset::Vllm, Preset::LlamaCpp];
        all.into_iter()
            .find(|preset| preset.as_str() == text)
            .ok_or_else(|| Error::argument("preset", format!("must be transformers, vllm or llama_cpp, is `{text}`")))
    }
}
