//! Element types: how numbers lie in checkpoints and in the K/V store.

use std::fmt;

/// How the elements of a stored matrix are encoded. Quantised encodings join when their formats do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single: 8 bits of exponent, 7 of mantissa.
    Bf16,
}

impl Encoding {
    /// Bytes of `elements` consecutive elements.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Encoding::F32 => 4 * elements,
            Encoding::F16 | Encoding::Bf16 => 2 * elements,
        }
    }

    /// Decode little-endian `bytes` into as many values as fit in both slices. The decoding is exact.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Encoding::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Encoding::F16 => {
                for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *out = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Encoding::Bf16 => {
                for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *out = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::F32 => "F32",
            Encoding::F16 => "F16",
            Encoding::Bf16 => "BF16",
        })
    }
}

/// What a backend may round. docs/numerics.md states the contract of each in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Weights as the file says, f32 activations and K/V, f32 or wider sums.
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
