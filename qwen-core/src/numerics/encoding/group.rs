//! Groups: the form in which GPTQ and AWQ matrices reach a backend.
//!
//! The files of both spread a matrix over tensors that are laid out along its output features. While they are read they
//! are converted to rows of blocks like any other matrix: a block is one group of columns, with an F16 scale, the code
//! that stands for zero (16 bits), and the codes, 4 or 8 bits each, the first in the lowest bits. A value is `scale *
//! (code - zero)`.

use half::f16;

use super::Block;

/// Width of the codes and size of the groups of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupEncoding {
    /// Width of the codes.
    pub bits: GroupBits,
    /// Values of a group: a multiple of 32.
    pub group_size: u32,
}

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupBits {
    /// Two codes per byte.
    Four,
    /// One code per byte.
    Eight,
}

impl GroupBits {
    /// The number.
    pub const fn count(self) -> u32 {
        match self {
            GroupBits::Four => 4,
            GroupBits::Eight => 8,
        }
    }
}

/// Bytes of a block before its codes.
pub(super) const HEAD: usize = 4;

impl GroupEncoding {
    pub(super) const fn block(self) -> Block {
        let values = self.group_size as usize;
        Block { values, bytes: HEAD + values * self.bits.count() as usize / 8 }
    }

    /// Decode as many whole blocks as both slices have.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let Block { values, bytes: len } = self.block();
        if values == 0 {
            return;
        }
        for (out, block) in out.chunks_exact_mut(values).zip(bytes.chunks_exact(len)) {
            let [scale_low, scale_high, zero_low, zero_high, codes @ ..] = block else { return };
            let scale = f16::from_le_bytes([*scale_low, *scale_high]).to_f32();
            let zero = i32::from(u16::from_le_bytes([*zero_low, *zero_high]));
            let value = |code: u8| scale * (i32::from(code) - zero) as f32;
            match self.bits {
                GroupBits::Eight => out.iter_mut().zip(codes).for_each(|(out, code)| *out = value(*code)),
                GroupBits::Four => {
                    for (out, code) in out.chunks_exact_mut(2).zip(codes) {
                        out[0] = value(code & 15);
                        out[1] = value(code >> 4);
                    }
                }
            }
        }
    }
}
