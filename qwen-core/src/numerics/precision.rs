//! What a backend may round: a guarantee about results, not about storage.

use crate::numerics::encoding::Encoding;

/// What a backend may round. docs/numerics.md states the contract of each in figures.
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

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "exact" => Ok(Precision::Exact),
            "fast" => Ok(Precision::Fast),
            _ => Err(format!("a precision is exact or fast, not `{name}`")),
        }
    }
}
