//! Blocks of 256 columns whose scales are integers with their own scale: Q2_K to Q6_K and IQ4_XS.
//!
//! Integer scales stay packed as in the file, a few words per row, and are unpacked sixteen rows at a time.

use qwen_core::Encoding;
use qwen_core::numerics::encoding::{Block, iq4};

use super::legacy::nibbles;
use super::{Affine, Format, SUB, f16_at, planes, put_lane};
use crate::simd::{LANES, Simd, array};

/// Bytes of a word, or of an f16, of sixteen rows.
const WORDS: usize = 4 * LANES;
const HALVES: usize = 2 * LANES;

/// Codes from the bytes `bytes`: `bits` bits of each from bit `shift` on.
fn take(bytes: &[u8], shift: usize, bits: usize) -> [u8; SUB] {
    let mut codes = [0; SUB];
    let mask = (1u8 << bits) - 1;
    codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> shift & mask);
    codes
}

/// `low | high << bits`
fn join(mut low: [u8; SUB], high: [u8; SUB], bits: usize) -> [u8; SUB] {
    low.iter_mut().zip(high).for_each(|(low, high)| *low |= high << bits);
    low
}

/// Store three words of a row in their runs of sixteen.
fn put_words(words: &[u8], lane: usize, out: &mut [u8]) {
    for (word, out) in words.as_chunks::<4>().0.iter().zip(out.chunks_exact_mut(WORDS)) {
        put_lane(out, lane, word);
    }
}

/// The 6-bit scale and minimum of sub-block `sub` from the three words per row of Q4_K and Q5_K.
#[inline(always)]
unsafe fn scale_and_min<S: Simd>(s: S, words: *const u8, sub: usize) -> [S::Ints; 2] {
    let at = 8 * (sub as u32 % 4);
    // SAFETY: guaranteed by the caller.
    let (scales, mins) = unsafe { (s.load_ints(words), s.load_ints(words.add(WORDS))) };
    if sub < 4 {
        return [s.bits(scales, at, 63), s.bits(mins, at, 63)];
    }
    // SAFETY: guaranteed by the caller.
    let low = unsafe { s.load_ints(words.add(2 * WORDS)) };
    [s.join(s.bits(low, at, 15), s.bits(scales, at + 6, 3)), s.join(s.bits(low, at + 4, 15), s.bits(mins, at + 6, 3))]
}

/// Scales of Q4_K and Q5_K: `d`, `dmin`, three words.
macro_rules! scales_with_minima {
    () => {
        fn scale_bytes(self) -> usize {
            2 * HALVES + 3 * WORDS
        }

        fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
            put_lane(out, lane, &f16_at(block, 0));
            put_lane(&mut out[HALVES..], lane, &f16_at(block, 2));
            put_words(&block[4..16], lane, &mut out[2 * HALVES..]);
        }

        #[inline(always)]
        unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, sub: usize) -> Affine<S::F> {
            // SAFETY: guaranteed by the caller.
            let (d, dmin, [scale, min]) = unsafe {
                let words = scale_and_min(s, scales.add(2 * HALVES), sub);
                (s.load_f16(scales.cast()), s.load_f16(scales.add(HALVES).cast()), words)
            };
            let scale = s.mul(d, s.ints_to_f(scale));
            let offset = s.sub(s.splat(0.0), s.mul(dmin, s.ints_to_f(min)));
            Affine { offset: [offset; 2], ..Affine::scale(s, scale) }
        }
    };
}

/// Q2_K.
#[derive(Clone, Copy)]
pub(crate) struct Q2K;

impl Format for Q2K {
    const BITS: usize = 2;
    const OFFSETS: bool = true;
    const HALVES: bool = true;

    fn block(self) -> Block {
        Encoding::Q2K.block()
    }

    fn scale_bytes(self) -> usize {
        2 * HALVES + 16 * LANES
    }

    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB] {
        take(&block[16 + sub / 4 * SUB..], 2 * (sub % 4), 2)
    }

    fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
        put_lane(out, lane, &f16_at(block, 80));
        put_lane(&mut out[HALVES..], lane, &f16_at(block, 82));
        for (scale, out) in block[..16].iter().zip(out[2 * HALVES..].chunks_exact_mut(LANES)) {
            out[lane] = *scale;
        }
    }

    #[inline(always)]
    unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, sub: usize) -> Affine<S::F> {
        // SAFETY: guaranteed by the caller.
        let (d, dmin, codes) = unsafe {
            let at = scales.add(2 * HALVES + 2 * sub * LANES);
            (
                s.load_f16(scales.cast()),
                s.load_f16(scales.add(HALVES).cast()),
                [s.load_u8(at), s.load_u8(at.add(LANES))],
            )
        };
        Affine {
            scale: array!(half < 2 => s.mul(d, s.ints_to_f(s.bits(codes[half], 0, 15)))),
            offset: array!(half < 2 => s.sub(s.splat(0.0), s.mul(dmin, s.ints_to_f(s.bits(codes[half], 4, 15))))),
            zero: s.splat(0.0),
        }
    }
}

/// Q3_K.
#[derive(Clone, Copy)]
pub(crate) struct Q3K;

impl Format for Q3K {
    const BITS: usize = 3;
    const ZERO: i32 = 4;
    const HALVES: bool = true;

    fn block(self) -> Block {
        Encoding::Q3K.block()
    }

    fn scale_bytes(self) -> usize {
        HALVES + 3 * WORDS
    }

    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB] {
        join(take(&block[32 + sub / 4 * SUB..], 2 * (sub % 4), 2), take(block, sub, 1), 2)
    }

    fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
        put_lane(out, lane, &f16_at(block, 108));
        put_words(&block[96..108], lane, &mut out[HALVES..]);
    }

    #[inline(always)]
    unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, sub: usize) -> Affine<S::F> {
        // SAFETY: guaranteed by the caller.
        let (d, words) = unsafe {
            let words = scales.add(HALVES);
            (s.load_f16(scales.cast()), array!(i < 3 => s.load_ints(words.add(i * WORDS))))
        };
        let scale = array!(half < 2 => {
            let i = 2 * sub + half;
            let byte = 8 * (i as u32 % 4);
            let low = s.bits(words[i % 8 / 4], byte + 4 * (i as u32 / 8), 15);
            let high = s.bits(words[2], byte + 2 * (i as u32 / 4), 3);
            s.mul(d, s.ints_to_f(s.add_ints(s.join(low, high), s.splat_ints(-32))))
        });
        Affine { scale, offset: [s.splat(0.0); 2], zero: s.splat(0.0) }
    }
}

/// Q4_K.
#[derive(Clone, Copy)]
pub(crate) struct Q4K;

impl Format for Q4K {
    const BITS: usize = 4;
    const OFFSETS: bool = true;

    fn block(self) -> Block {
        Encoding::Q4K.block()
    }

    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB] {
        take(&block[16 + sub / 2 * SUB..], 4 * (sub % 2), 4)
    }

    scales_with_minima!();
}

/// Q5_K.
#[derive(Clone, Copy)]
pub(crate) struct Q5K;

impl Format for Q5K {
    const BITS: usize = 5;
    const OFFSETS: bool = true;

    fn block(self) -> Block {
        Encoding::Q5K.block()
    }

    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB] {
        join(take(&block[48 + sub / 2 * SUB..], 4 * (sub % 2), 4), take(&block[16..], sub, 1), 4)
    }

    scales_with_minima!();
}

/// Q6_K.
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

impl Format for Q6K {
    const BITS: usize = 6;
    const ZERO: i32 = 32;
    const HALVES: bool = true;

    fn block(self) -> Block {
        Encoding::Q6K.block()
    }

    fn scale_bytes(self) -> usize {
        HALVES + 16 * LANES
    }

    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB] {
        let (half, part) = (sub / 4, sub % 4);
        let low = take(&block[64 * half + SUB * (part % 2)..], 4 * (part / 2), 4);
        join(low, take(&block[128 + SUB * half..], 2 * part, 2), 4)
    }

    fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
        put_lane(out, lane, &f16_at(block, 208));
        for (scale, out) in block[192..208].iter().zip(out[HALVES..].chunks_exact_mut(LANES)) {
            out[lane] = *scale;
        }
    }

    #[inline(always)]
    unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, sub: usize) -> Affine<S::F> {
        // SAFETY: guaranteed by the caller.
        let (d, codes) = unsafe {
            let at = scales.add(HALVES + 2 * sub * LANES);
            (s.load_f16(scales.cast()), [s.load_i8(at), s.load_i8(at.add(LANES))])
        };
        let scale = array!(half < 2 => s.mul(d, s.ints_to_f(codes[half])));
        Affine { scale, offset: [s.splat(0.0); 2], zero: s.splat(0.0) }
    }
}

/// IQ4_XS.
#[derive(Clone, Copy)]
pub(crate) struct Iq4Xs;

impl Format for Iq4Xs {
    const BITS: usize = 4;
    const SIGNED: bool = true;
    const MOST: i32 = 127;

    fn block(self) -> Block {
        Encoding::Iq4Xs.block()
    }

    fn scale_bytes(self) -> usize {
        2 * HALVES + WORDS
    }

    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB] {
        nibbles(&block[8 + 16 * sub..])
    }

    fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]) {
        put_lane(out, lane, &f16_at(block, 0));
        put_lane(&mut out[HALVES..], lane, &f16_at(block, 2));
        put_words(&block[4..8], lane, &mut out[2 * HALVES..]);
    }

    #[inline(always)]
    unsafe fn line<S: Simd>(self, s: S, codes: *const u8, line: usize) -> S::Bytes {
        // SAFETY: guaranteed by the caller.
        s.prepare_signed(s.lookup(&iq4::LEVELS, unsafe { planes::line(s, 4, codes, line) }))
    }

    #[inline(always)]
    unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, sub: usize) -> Affine<S::F> {
        // SAFETY: guaranteed by the caller.
        let (d, high, low) = unsafe {
            let words = s.load_ints(scales.add(2 * HALVES));
            (s.load_f16(scales.cast()), s.load_u16(scales.add(HALVES)), words)
        };
        let code = s.join(s.bits(low, 4 * sub as u32, 15), s.bits(high, 2 * sub as u32, 3));
        Affine::scale(s, s.mul(d, s.ints_to_f(s.add_ints(code, s.splat_ints(-32)))))
    }
}
