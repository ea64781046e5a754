//! Blocks of 32 columns with a scale each: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL.

use qwen_core::Encoding;
use qwen_core::numerics::encoding::{Block, iq4};

use super::{Affine, Format, SUB, f16_at, planes, put_lane};
use crate::simd::{LANES, Simd};

/// 4-bit codes: the lower halves of sixteen bytes, then the upper ones.
pub(super) fn nibbles(bytes: &[u8]) -> [u8; SUB] {
    let mut codes = [0; SUB];
    let (low, high) = codes.split_at_mut(SUB / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}

/// `codes` with a fifth bit for each from the four bytes `bits`.
fn with_fifth(mut codes: [u8; SUB], bits: &[u8]) -> [u8; SUB] {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bits[i / 8] >> (i % 8) & 1) << 4;
    }
    codes
}

/// Formats of 32 columns: the name, its encoding and bits, and the positions of its parts.
macro_rules! formats {
    ($($name:ident, $bits:literal, [$($constant:ident: $ty:ty = $value:expr),*], |$block:ident| $codes:expr, $scales:tt;)*) => {$(
        #[doc = concat!(stringify!($name), ".")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Format for $name {
            const BITS: usize = $bits;
            $(const $constant: $ty = $value;)*

            fn block(self) -> Block {
                Encoding::$name.block()
            }

            fn codes(self, $block: &[u8], _: usize) -> [u8; SUB] {
                $codes
            }

            formats!(@scales $scales);
        }
    )*};
    // A scale.
    (@scales scale) => {
        fn scale_bytes(self) -> usize {
            2 * LANES
        }

        fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
            put_lane(out, lane, &f16_at(block, 0));
        }

        #[inline(always)]
        unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, _: usize) -> Affine<S::F> {
            // SAFETY: guaranteed by the caller.
            Affine::scale(s, unsafe { s.load_f16(scales.cast()) })
        }
    };
    // A scale and an offset.
    (@scales offset) => {
        fn scale_bytes(self) -> usize {
            4 * LANES
        }

        fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
            put_lane(out, lane, &f16_at(block, 0));
            put_lane(&mut out[2 * LANES..], lane, &f16_at(block, 2));
        }

        #[inline(always)]
        unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, _: usize) -> Affine<S::F> {
            // SAFETY: guaranteed by the caller.
            let (scale, offset) = unsafe { (s.load_f16(scales.cast()), s.load_f16(scales.cast::<u16>().add(LANES))) };
            Affine { offset: [offset; 2], ..Affine::scale(s, scale) }
        }
    };
    // A scale; codes are indices into a table.
    (@scales table) => {
        formats!(@scales scale);

        #[inline(always)]
        unsafe fn line<S: Simd>(self, s: S, codes: *const u8, line: usize) -> S::Bytes {
            // SAFETY: guaranteed by the caller.
            s.prepare_signed(s.lookup(&iq4::LEVELS, unsafe { planes::line(s, 4, codes, line) }))
        }
    };
    // A scale; codes are signed bytes.
    (@scales signed) => {
        formats!(@scales scale);

        #[inline(always)]
        unsafe fn line<S: Simd>(self, s: S, codes: *const u8, line: usize) -> S::Bytes {
            // SAFETY: guaranteed by the caller.
            s.prepare_signed(unsafe { planes::line(s, 8, codes, line) })
        }
    };
}

formats! {
    Q4_0, 4, [ZERO: i32 = 8], |block| nibbles(&block[2..]), scale;
    Q4_1, 4, [OFFSETS: bool = true], |block| nibbles(&block[4..]), offset;
    Q5_0, 5, [ZERO: i32 = 16], |block| with_fifth(nibbles(&block[6..]), &block[2..6]), scale;
    Q5_1, 5, [OFFSETS: bool = true], |block| with_fifth(nibbles(&block[8..]), &block[4..8]), offset;
    Q8_0, 8, [SIGNED: bool = true, MOST: i32 = 128], |block| {
        let mut codes = [0; SUB];
        codes.copy_from_slice(&block[2..2 + SUB]);
        codes
    }, signed;
    Iq4Nl, 4, [SIGNED: bool = true, MOST: i32 = 127], |block| nibbles(&block[2..]), table;
}
