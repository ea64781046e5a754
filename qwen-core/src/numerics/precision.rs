//! What a backend may round: a guarantee about results, not about storage.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// What a backend may round. docs/numerics.md states the contract of each in figures. As text: `exact` and `fast`.
///
/// ```
/// use qwen_core::Precision;
/// assert_eq!("exact".parse::<Precision>()?, Precision::Exact);
/// assert_eq!(Precision::default().to_string(), "fast");
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Weights as in the file, f32 activations and K/V, f32 or wider sums.
    Exact,
    /// The inputs of matrix products and the K/V store may be rounded to 16 bits; everything else stays f32.
    #[default]
    Fast,
}

impl Precision {
    /// The element type of the K/V store.
    pub fn kv_encoding(self) -> Encoding {
        match self {
            Precision::Exact => Encoding::F32,
            Precision::Fast => Encoding::F16,
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "exact" => Ok(Precision::Exact),
            "fast" => Ok(Precision::Fast),
            _ => Err(Error::argument("precision", format!("must be exact or fast, is `{name}`"))),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::Exact => "exact",
            Precision::Fast => "fast",
        })
    }
}

serde_by_text!(Precision);
