//! Formats whose codes are grid points: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.
//!
//! A point is looked up by its index, which no vector instruction does for sixteen rows at once: the blocks of the file
//! stay whole, sixteen rows one after another, and are unpacked into lines row by row ([`super::super::kernels`] calls
//! that staging) before kernels read them.

use half::f16;
use qwen_core::Encoding;
use qwen_core::numerics::encoding::{Block, grids};

use super::{Affine, Format, LINE, SUB, f16_at};
use crate::simd::{LANES, Simd};

/// The coordinates of 32 columns and the scales of their halves.
pub(crate) struct Points {
    pub(crate) coordinates: [i8; SUB],
    pub(crate) scales: [f32; 2],
}

/// A grid format.
pub(crate) trait PointFormat: Copy + Send + Sync + 'static {
    const ENCODING: Encoding;
    /// Whether the two halves of a sub-block have separate scales.
    const HALVES: bool;

    /// Sub-block `sub` of a block of the file.
    fn points(block: &[u8], sub: usize) -> Points;
}

/// A [`PointFormat`] as a [`Format`].
#[derive(Clone, Copy)]
pub(crate) struct Grid<P>(pub(crate) P);

impl<P: PointFormat> Format for Grid<P> {
    const BITS: usize = 8;
    const SIGNED: bool = true;
    const MOST: i32 = 62;
    const HALVES: bool = P::HALVES;
    const STAGED: bool = true;

    fn block(self) -> Block {
        P::ENCODING.block()
    }

    fn scale_bytes(self) -> usize {
        0
    }

    fn code_bytes(self) -> usize {
        LANES * self.block().bytes
    }

    fn codes(self, _: &[u8], _: usize) -> [u8; SUB] {
        [0; SUB]
    }

    fn pack_scales(self, _: &[u8], _: usize, _: &mut [u8]) {}

    fn pack(self, rows: &[&[u8]], _: &mut [u8], codes: &mut [u8]) {
        for (row, out) in rows.iter().zip(codes.chunks_exact_mut(self.block().bytes)) {
            out.copy_from_slice(row);
        }
    }

    #[inline(always)]
    unsafe fn affine<S: Simd>(self, s: S, _: *const u8, _: usize) -> Affine<S::F> {
        Affine::scale(s, s.splat(0.0))
    }

    #[inline(always)]
    unsafe fn take_apart(self, codes: *const u8, _: *const u8, sub: usize, lines: &mut [u8], scales: &mut [f32]) {
        let bytes = self.block().bytes;
        // SAFETY: the caller gives the packed codes of a block.
        let blocks = unsafe { std::slice::from_raw_parts(codes, LANES * bytes) };
        for (lane, block) in blocks.chunks_exact(bytes).enumerate() {
            let Points { coordinates, scales: halves } = P::points(block, sub);
            for (line, columns) in lines.chunks_exact_mut(LINE).zip(coordinates.as_chunks::<4>().0) {
                line[4 * lane..][..4].copy_from_slice(&columns.map(|value| value as u8));
            }
            (scales[lane], scales[LANES + lane]) = (halves[0], halves[1]);
        }
    }
}

/// The coordinates of `point` from column `at` on, negated if their sign bit is set.
fn put(coordinates: &mut [i8; SUB], at: usize, point: &[u8], signs: u8) {
    for (i, (out, &value)) in coordinates[at..].iter_mut().zip(point).enumerate() {
        let value = value as i8;
        *out = if signs >> i & 1 == 1 { -value } else { value };
    }
}

fn half(block: &[u8]) -> f32 {
    f16::from_le_bytes(f16_at(block, 0)).to_f32()
}

/// The scale of the four bits of `code` in IQ2 formats.
fn quarter(d: f32, code: u8) -> f32 {
    d * (0.5 + f32::from(code & 15)) * 0.25
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// IQ2_XXS.
#[derive(Clone, Copy)]
pub(crate) struct Iq2Xxs;

impl PointFormat for Iq2Xxs {
    const ENCODING: Encoding = Encoding::Iq2Xxs;
    const HALVES: bool = false;

    fn points(block: &[u8], sub: usize) -> Points {
        let run = &block[2 + 8 * sub..][..8];
        let bits = word(run, 4);
        let mut coordinates = [0; SUB];
        for (i, &number) in run[..4].iter().enumerate() {
            let signs = grids::signs((bits >> (7 * i)) as u8);
            put(&mut coordinates, 8 * i, &grids::IQ2_XXS[usize::from(number)], signs);
        }
        Points { coordinates, scales: [quarter(half(block), (bits >> 28) as u8); 2] }
    }
}

/// IQ2_XS.
#[derive(Clone, Copy)]
pub(crate) struct Iq2Xs;

impl PointFormat for Iq2Xs {
    const ENCODING: Encoding = Encoding::Iq2Xs;
    const HALVES: bool = true;

    fn points(block: &[u8], sub: usize) -> Points {
        let (d, scale) = (half(block), block[66 + sub]);
        let mut coordinates = [0; SUB];
        for (i, bits) in block[2 + 8 * sub..][..8].as_chunks::<2>().0.iter().enumerate() {
            let bits = u16::from_le_bytes(*bits);
            let signs = grids::signs((bits >> 9) as u8);
            put(&mut coordinates, 8 * i, &grids::IQ2_XS[usize::from(bits & 511)], signs);
        }
        Points { coordinates, scales: [quarter(d, scale), quarter(d, scale >> 4)] }
    }
}

/// IQ2_S.
#[derive(Clone, Copy)]
pub(crate) struct Iq2S;

impl PointFormat for Iq2S {
    const ENCODING: Encoding = Encoding::Iq2S;
    const HALVES: bool = true;

    fn points(block: &[u8], sub: usize) -> Points {
        let (d, high, scale) = (half(block), block[66 + sub], block[74 + sub]);
        let mut coordinates = [0; SUB];
        for i in 0..4 {
            let number = usize::from(block[2 + 4 * sub + i]) | usize::from(high >> (2 * i) & 3) << 8;
            put(&mut coordinates, 8 * i, &grids::IQ2_S[number], block[34 + 4 * sub + i]);
        }
        Points { coordinates, scales: [quarter(d, scale), quarter(d, scale >> 4)] }
    }
}

/// IQ3_XXS.
#[derive(Clone, Copy)]
pub(crate) struct Iq3Xxs;

impl PointFormat for Iq3Xxs {
    const ENCODING: Encoding = Encoding::Iq3Xxs;
    const HALVES: bool = false;

    fn points(block: &[u8], sub: usize) -> Points {
        let bits = word(block, 66 + 4 * sub);
        let mut coordinates = [0; SUB];
        for (i, &number) in block[2 + 8 * sub..][..8].iter().enumerate() {
            let signs = grids::signs((bits >> (7 * (i / 2))) as u8) >> (i % 2 * 4);
            put(&mut coordinates, 4 * i, &grids::IQ3_XXS[usize::from(number)], signs);
        }
        Points { coordinates, scales: [half(block) * (0.5 + (bits >> 28) as f32) * 0.5; 2] }
    }
}

/// IQ3_S.
#[derive(Clone, Copy)]
pub(crate) struct Iq3S;

impl PointFormat for Iq3S {
    const ENCODING: Encoding = Encoding::Iq3S;
    const HALVES: bool = false;

    fn points(block: &[u8], sub: usize) -> Points {
        let high = block[66 + sub];
        let mut coordinates = [0; SUB];
        for (i, &low) in block[2 + 8 * sub..][..8].iter().enumerate() {
            let number = usize::from(low) | usize::from(high >> i & 1) << 8;
            let signs = block[74 + 4 * sub + i / 2] >> (i % 2 * 4);
            put(&mut coordinates, 4 * i, &grids::IQ3_S[number], signs);
        }
        let scale = block[106 + sub / 2] >> (sub % 2 * 4) & 15;
        Points { coordinates, scales: [half(block) * (1.0 + 2.0 * f32::from(scale)); 2] }
    }
}
