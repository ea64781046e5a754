//! What a kernel writes beside its operands: sums that wait, rows of a tile.

use crate::simd::LANES;

/// Floats of a thread's scratch for sums.
pub(crate) const SUMS: usize = 128 << 10;

/// A thread's own memory.
#[derive(Debug)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
}

/// Sixteen floats on a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; LANES]);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { lines: vec![Line([0.0; LANES]); SUMS / LANES] }
    }

    /// Bytes of a thread's scratch.
    pub(crate) const BYTES: usize = 4 * SUMS;

    /// The first `len` floats, on a cache line, with whatever they hold.
    #[inline(always)]
    pub(crate) fn floats(&mut self, len: usize) -> &mut [f32] {
        let lines = &mut self.lines[..len.div_ceil(LANES)];
        // SAFETY: a line is sixteen floats without padding.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
    }
}
