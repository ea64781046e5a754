//! Groups of GPTQ and AWQ ([`GroupEncoding`]).

use qwen_core::Encoding;
use qwen_core::numerics::encoding::{Block, GroupEncoding};

use super::{Affine, Format, SUB, f16_at, planes, put_lane};
use crate::simd::{LANES, Simd};

/// Codes of `BITS` bits, 4 or 8.
#[derive(Clone, Copy)]
pub(crate) struct Group<const BITS: usize>(pub(crate) GroupEncoding);

impl<const BITS: usize> Format for Group<BITS> {
    const BITS: usize = BITS;
    // Bytes are stored minus 128, so that they are signed.
    const SIGNED: bool = BITS == 8;
    const MOST: i32 = if BITS == 8 { 128 } else { 15 };
    const ZERO_POINTS: bool = true;

    fn block(self) -> Block {
        Encoding::Group(self.0).block()
    }

    fn scale_bytes(self) -> usize {
        // The zero points of 4-bit codes, 0 to 16, are one byte; those of 8-bit codes, 0 to 256, are stored minus 128
        // in two bytes.
        2 * LANES + BITS / 4 * LANES
    }

    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB] {
        let mut codes = [0; SUB];
        if BITS == 8 {
            codes.iter_mut().zip(&block[4 + SUB * sub..]).for_each(|(code, byte)| *code = byte ^ 0x80);
        } else {
            for (pair, byte) in codes.chunks_exact_mut(2).zip(&block[4 + SUB / 2 * sub..]) {
                (pair[0], pair[1]) = (byte & 15, byte >> 4);
            }
        }
        codes
    }

    fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
        put_lane(out, lane, &f16_at(block, 0));
        let zero = u16::from_le_bytes(f16_at(block, 2));
        if BITS == 8 {
            put_lane(&mut out[2 * LANES..], lane, &zero.to_le_bytes());
        } else {
            // Clamp values that no valid file has.
            put_lane(&mut out[2 * LANES..], lane, &[zero.min(255) as u8]);
        }
    }

    #[inline(always)]
    unsafe fn line<S: Simd>(self, s: S, codes: *const u8, line: usize) -> S::Bytes {
        // SAFETY: guaranteed by the caller.
        let v = unsafe { planes::line(s, BITS, codes, line) };
        if BITS == 8 { s.prepare_signed(v) } else { v }
    }

    #[inline(always)]
    unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, _: usize) -> Affine<S::F> {
        // SAFETY: guaranteed by the caller.
        let (scale, zero) = unsafe {
            let at = scales.add(2 * LANES);
            let zero = if BITS == 8 { s.add_ints(s.load_u16(at), s.splat_ints(-128)) } else { s.load_u8(at) };
            (s.load_f16(scales.cast()), s.ints_to_f(zero))
        };
        Affine { zero, ..Affine::scale(s, scale) }
    }
}
