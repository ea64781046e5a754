//! How numbers lie in checkpoints and in the K/V store.
//!
//! Every encoding stores a row of values as whole *blocks*: a fixed number of values in a fixed number of bytes. A plain
//! element type is a block of one value. One file a family holds the exact scalar decoders, which every kernel is
//! compared with. Not here: where rows lie ([`crate::backend::MatrixPart`]), how kernels pack them (each backend), and
//! what kernels may round ([`crate::Precision`]).

mod block;
mod float;
mod q8;

use std::fmt;

pub use block::Block;

/// How the values of a stored matrix are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single: 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// Blocks of 32 signed bytes with one F16 scale before them, as GGUF files have them. No checkpoint reader produces
    /// it yet; the reference decodes it, the other backends refuse it by name.
    Q8_0,
}

impl Encoding {
    /// The block that rows consist of.
    ///
    /// ```
    /// use qwen_core::Encoding;
    /// use qwen_core::numerics::encoding::Block;
    /// assert_eq!(Encoding::Bf16.block(), Block { values: 1, bytes: 2 });
    /// assert_eq!(Encoding::Q8_0.block(), Block { values: 32, bytes: 34 });
    /// ```
    pub const fn block(self) -> Block {
        match self {
            Encoding::F32 => Block { values: 1, bytes: 4 },
            Encoding::F16 | Encoding::Bf16 => Block { values: 1, bytes: 2 },
            Encoding::Q8_0 => Block { values: q8::VALUES, bytes: q8::BYTES },
        }
    }

    /// Bytes of a row of `cols` values; `None` unless they are whole blocks, and where the product overflows.
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

    /// Bytes of `values` consecutive values, as of a K/V store: [`usize::MAX`], which fits nowhere, where they are no whole
    /// blocks or cannot be counted.
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
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::F32 => "F32",
            Encoding::F16 => "F16",
            Encoding::Bf16 => "BF16",
            Encoding::Q8_0 => "Q8_0",
        })
    }
}
