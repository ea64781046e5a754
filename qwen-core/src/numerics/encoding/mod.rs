//! How numbers are stored in checkpoints and in the K/V store.
//!
//! Every encoding stores a row of values as whole *blocks*: a fixed number of values in a fixed number of bytes. A plain
//! element type is a block of one value. One file per family has the exact scalar decoders, with which every kernel is
//! compared; `quantize` has their inverses. Not here: where rows are stored ([`crate::backend::MatrixPart`]), how
//! kernels pack them (each backend), and what kernels may round ([`crate::Precision`]).

mod block;
mod float;
pub mod grids;
mod group;
mod iq2;
mod iq3;
pub mod iq4;
pub mod k_quants;
pub mod legacy;
pub mod q8;
mod quantize;

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

pub use block::Block;
pub use group::{GroupBits, GroupEncoding};

/// The encoding of a stored matrix's values.
///
/// Variants are named after the formats: GGUF's `Q4_K` is [`Encoding::Q4K`]. Serialised by this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single: 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// Blocks of 32: an F16 scale, 4-bit codes minus 8.
    Q4_0,
    /// Blocks of 32: an F16 scale and minimum, 4-bit codes.
    Q4_1,
    /// Blocks of 32: an F16 scale, 5-bit codes minus 16.
    Q5_0,
    /// Blocks of 32: an F16 scale and minimum, 5-bit codes.
    Q5_1,
    /// Blocks of 32: an F16 scale, signed bytes.
    Q8_0,
    /// Blocks of 256: sixteen 4-bit scales and minima, 2-bit codes.
    Q2K,
    /// Blocks of 256: sixteen 6-bit scales, 3-bit codes.
    Q3K,
    /// Blocks of 256: eight 6-bit scales and minima, 4-bit codes.
    Q4K,
    /// Blocks of 256: eight 6-bit scales and minima, 5-bit codes.
    Q5K,
    /// Blocks of 256: sixteen 8-bit scales, 6-bit codes minus 32.
    Q6K,
    /// Blocks of 32: an F16 scale, 4-bit codes that index a table of sixteen values.
    Iq4Nl,
    /// Blocks of 256: eight 6-bit scales, 4-bit codes that index a table of sixteen values.
    Iq4Xs,
    /// Blocks of 256, about 2.06 bits per value: grid points with signs.
    Iq2Xxs,
    /// Blocks of 256, about 2.31 bits per value: grid points with signs.
    Iq2Xs,
    /// Blocks of 256, about 2.56 bits per value: grid points with signs.
    Iq2S,
    /// Blocks of 256, about 3.06 bits per value: grid points with signs.
    Iq3Xxs,
    /// Blocks of 256, about 3.44 bits per value: grid points with signs.
    Iq3S,
    /// Groups of columns with a scale and a zero point, as in GPTQ and AWQ.
    Group(GroupEncoding),
}

impl Encoding {
    /// All encodings that have a name: all except [`Encoding::Group`].
    pub const NAMED: [Encoding; 20] = [
        Encoding::F32,
        Encoding::F16,
        Encoding::Bf16,
        Encoding::Q4_0,
        Encoding::Q4_1,
        Encoding::Q5_0,
        Encoding::Q5_1,
        Encoding::Q8_0,
        Encoding::Q2K,
        Encoding::Q3K,
        Encoding::Q4K,
        Encoding::Q5K,
        Encoding::Q6K,
        Encoding::Iq4Nl,
        Encoding::Iq4Xs,
        Encoding::Iq2Xxs,
        Encoding::Iq2Xs,
        Encoding::Iq2S,
        Encoding::Iq3Xxs,
        Encoding::Iq3S,
    ];

    /// The block that rows consist of.
    ///
    /// ```
    /// use qwen_core::Encoding;
    /// use qwen_core::numerics::encoding::Block;
    /// assert_eq!(Encoding::Bf16.block(), Block { values: 1, bytes: 2 });
    /// assert_eq!(Encoding::Q4K.block(), Block { values: 256, bytes: 144 });
    /// ```
    pub const fn block(self) -> Block {
        let (values, bytes) = match self {
            Encoding::F32 => (1, 4),
            Encoding::F16 | Encoding::Bf16 => (1, 2),
            Encoding::Q4_0 | Encoding::Iq4Nl => (32, 18),
            Encoding::Q4_1 => (32, 20),
            Encoding::Q5_0 => (32, 22),
            Encoding::Q5_1 => (32, 24),
            Encoding::Q8_0 => (32, 34),
            Encoding::Q2K => (256, 84),
            Encoding::Q3K => (256, 110),
            Encoding::Q4K => (256, 144),
            Encoding::Q5K => (256, 176),
            Encoding::Q6K => (256, 210),
            Encoding::Iq4Xs => (256, 136),
            Encoding::Iq2Xxs => (256, 66),
            Encoding::Iq2Xs => (256, 74),
            Encoding::Iq2S => (256, 82),
            Encoding::Iq3Xxs => (256, 98),
            Encoding::Iq3S => (256, 110),
            Encoding::Group(group) => return group.block(),
        };
        Block { values, bytes }
    }

    /// Bytes of a row of `cols` values; `None` if they are not whole blocks or the product overflows.
    ///
    /// ```
    /// use qwen_core::Encoding;
    /// assert_eq!(Encoding::F32.row_bytes(3), Some(12));
    /// assert_eq!(Encoding::Q8_0.row_bytes(64), Some(68));
    /// assert_eq!(Encoding::Q8_0.row_bytes(40), None);
    /// assert_eq!(Encoding::F32.row_bytes(usize::MAX), None);
    /// ```
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        self.block().row_bytes(cols)
    }

    /// Bytes of `values` consecutive values, as in a K/V store; [`usize::MAX`], which fits nowhere, if they are not
    /// whole blocks or the size overflows.
    pub const fn bytes(self, values: usize) -> usize {
        match self.row_bytes(values) {
            Some(bytes) => bytes,
            None => usize::MAX,
        }
    }

    /// Decode the blocks of `bytes` into `out`, as many whole blocks as both have. The decoding is exact: each value is
    /// the one that the format defines, rounded to f32 once.
    ///
    /// ```
    /// use qwen_core::Encoding;
    /// let mut values = [0.0; 2];
    /// Encoding::Bf16.decode_row(&[0x80, 0x3f, 0x00, 0xc0], &mut values);
    /// assert_eq!(values, [1.0, -2.0]);
    /// ```
    pub fn decode_row(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Encoding::F32 => float::decode_f32(bytes, out),
            Encoding::F16 => float::decode_f16(bytes, out),
            Encoding::Bf16 => float::decode_bf16(bytes, out),
            Encoding::Q8_0 => q8::decode(bytes, out),
            Encoding::Q4_0 => legacy::decode_q4_0(bytes, out),
            Encoding::Q4_1 => legacy::decode_q4_1(bytes, out),
            Encoding::Q5_0 => legacy::decode_q5_0(bytes, out),
            Encoding::Q5_1 => legacy::decode_q5_1(bytes, out),
            Encoding::Q2K => k_quants::decode_q2_k(bytes, out),
            Encoding::Q3K => k_quants::decode_q3_k(bytes, out),
            Encoding::Q4K => k_quants::decode_q4_k(bytes, out),
            Encoding::Q5K => k_quants::decode_q5_k(bytes, out),
            Encoding::Q6K => k_quants::decode_q6_k(bytes, out),
            Encoding::Iq4Nl => iq4::decode_nl(bytes, out),
            Encoding::Iq4Xs => iq4::decode_xs(bytes, out),
            Encoding::Iq2Xxs => iq2::decode_xxs(bytes, out),
            Encoding::Iq2Xs => iq2::decode_xs(bytes, out),
            Encoding::Iq2S => iq2::decode_s(bytes, out),
            Encoding::Iq3Xxs => iq3::decode_xxs(bytes, out),
            Encoding::Iq3S => iq3::decode_s(bytes, out),
            Encoding::Group(group) => group.decode(bytes, out),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::F32 => "F32",
            Encoding::F16 => "F16",
            Encoding::Bf16 => "BF16",
            Encoding::Q4_0 => "Q4_0",
            Encoding::Q4_1 => "Q4_1",
            Encoding::Q5_0 => "Q5_0",
            Encoding::Q5_1 => "Q5_1",
            Encoding::Q8_0 => "Q8_0",
            Encoding::Q2K => "Q2_K",
            Encoding::Q3K => "Q3_K",
            Encoding::Q4K => "Q4_K",
            Encoding::Q5K => "Q5_K",
            Encoding::Q6K => "Q6_K",
            Encoding::Iq4Nl => "IQ4_NL",
            Encoding::Iq4Xs => "IQ4_XS",
            Encoding::Iq2Xxs => "IQ2_XXS",
            Encoding::Iq2Xs => "IQ2_XS",
            Encoding::Iq2S => "IQ2_S",
            Encoding::Iq3Xxs => "IQ3_XXS",
            Encoding::Iq3S => "IQ3_S",
            Encoding::Group(group) => {
                return write!(f, "INT{} in groups of {}", group.bits.count(), group.group_size);
            }
        })
    }
}

// Groups have a text, and none that is read.
serde_by_text!(Encoding);

/// Parses the name that `Display` prints, in any case.
///
/// ```
/// use qwen_core::Encoding;
/// assert_eq!("q4_k".parse::<Encoding>().unwrap(), Encoding::Q4K);
/// let error = "Q9_K".parse::<Encoding>().unwrap_err();
/// assert!(error.to_string().contains("`Q9_K`") && error.to_string().contains("Q4_K, "));
/// ```
impl FromStr for Encoding {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = |encoding: &Encoding| encoding.to_string().eq_ignore_ascii_case(name);
        Encoding::NAMED.into_iter().find(named).ok_or_else(|| {
            let names = Encoding::NAMED.map(|encoding| encoding.to_string()).join(", ");
            Error::argument("encoding", format!("`{name}` is not one of {names}"))
        })
    }
}
