//! Memory that a kernel writes in addition to its operands: intermediate sums, rows of a tile.

use crate::simd::LANES;

/// Floats of a thread's scratch for sums.
pub(crate) const SUMS: usize = 128 << 10;

/// Bytes of a thread's scratch for unpacked columns of two groups: 512 of them as f32.
pub(crate) const STAGE: usize = 64 << 10;

/// A thread's own memory.
#[derive(Debug)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
    stage: Vec<Line>,
}

/// Sixteen floats, aligned to a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; LANES]);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        let lines = |floats| vec![Line([0.0; LANES]); floats / LANES];
        Scratch { lines: lines(SUMS), stage: lines(STAGE / 4) }
    }

    /// Bytes of a thread's scratch.
    pub(crate) const BYTES: usize = 4 * SUMS + STAGE;

    /// As [`Scratch::floats`], plus [`STAGE`] bytes.
    #[inline(always)]
    pub(crate) fn sums_and_stage(&mut self, len: usize) -> (&mut [f32], &mut [u8]) {
        // SAFETY: a line is 64 bytes without padding, and the borrows are of different vectors.
        let stage = unsafe { std::slice::from_raw_parts_mut(self.stage.as_mut_ptr().cast(), STAGE) };
        (floats(&mut self.lines, len), stage)
    }

    /// The first `len` floats, aligned to a cache line, with unspecified contents.
    #[inline(always)]
    pub(crate) fn floats(&mut self, len: usize) -> &mut [f32] {
        floats(&mut self.lines, len)
    }
}

#[inline(always)]
fn floats(lines: &mut [Line], len: usize) -> &mut [f32] {
    let lines = &mut lines[..len.div_ceil(LANES)];
    // SAFETY: a line is sixteen floats without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
}
