//! The layout of the bits of codes in a sub-block of sixteen rows by 32 columns.
//!
//! A *plane* holds some bits of every code, so that lines of 64 bytes stay whole vectors at every width:
//!
//! ```text
//! 4 bits   four lines: line i holds columns 4i..4i+4 low and 16+4i..16+4i+4 high
//! 2 bits   two lines: line i holds lines i, i+2, i+4, i+6 of the codes, from the lowest bits up
//! 1 bit    one line: bit i is line i of the codes
//! 8 bits   eight lines
//! ```
//!
//! Codes of 5, 6 and 3 bits are a plane of their lower bits (4, 4, 2) followed by one of the remaining bits.

use super::{LINE, LINES, SUB};
use crate::simd::Simd;

/// Line `line` of codes with `bits` bits whose planes begin at `p`.
///
/// # Safety
/// `64 * bits` bytes can be read at `p`, and `line` is below 8.
#[inline(always)]
pub(crate) unsafe fn line<S: Simd>(s: S, bits: usize, p: *const u8, line: usize) -> S::Bytes {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match bits {
            2 => two(s, p, line, 0),
            3 => s.or_bytes(two(s, p, line, 0), one(s, p.add(2 * LINE), line, 2)),
            4 => four(s, p, line),
            5 => s.or_bytes(four(s, p, line), one(s, p.add(4 * LINE), line, 4)),
            6 => s.or_bytes(four(s, p, line), two(s, p.add(4 * LINE), line, 4)),
            _ => s.load_bytes(p.add(LINE * line)),
        }
    }
}

#[inline(always)]
unsafe fn four<S: Simd>(s: S, p: *const u8, line: usize) -> S::Bytes {
    // SAFETY: guaranteed by the caller.
    let v = unsafe { s.load_bytes(p.add(LINE * (line % 4))) };
    s.shift_right(v, if line < 4 { 0 } else { 4 }, 15)
}

/// Two bits of each code, moved up to bit `at`.
#[inline(always)]
unsafe fn two<S: Simd>(s: S, p: *const u8, line: usize, at: u32) -> S::Bytes {
    // SAFETY: guaranteed by the caller.
    let v = unsafe { s.load_bytes(p.add(LINE * (line % 2))) };
    moved(s, v, 2 * (line as u32 / 2), at, 3)
}

/// One bit of each code, moved up to bit `at`.
#[inline(always)]
unsafe fn one<S: Simd>(s: S, p: *const u8, line: usize, at: u32) -> S::Bytes {
    // SAFETY: guaranteed by the caller.
    let v = unsafe { s.load_bytes(p) };
    moved(s, v, line as u32, at, 1)
}

/// The bits `mask` at bit `from` of each byte, moved to bit `to`.
#[inline(always)]
fn moved<S: Simd>(s: S, v: S::Bytes, from: u32, to: u32, mask: u8) -> S::Bytes {
    if from >= to { s.shift_right(v, from - to, mask << to) } else { s.shift_left(v, to - from, mask << to) }
}

/// Store the codes of row `lane` in zeroed planes.
pub(crate) fn put(bits: usize, codes: &[u8; SUB], lane: usize, out: &mut [u8]) {
    let (low_bits, low, high) = match bits {
        2 | 3 => (2, 2 * LINE, bits - 2),
        4..=6 => (4, 4 * LINE, bits - 4),
        _ => (8, LINES * LINE, 0),
    };
    let (low, high_plane) = out.split_at_mut(low);
    put_plane(low_bits, codes, 0, lane, low);
    if high > 0 {
        put_plane(high, codes, low_bits, lane, high_plane);
    }
}

/// Store `bits` bits of each code, from bit `from` on, in a plane.
fn put_plane(bits: usize, codes: &[u8; SUB], from: usize, lane: usize, out: &mut [u8]) {
    // Lines of a plane; lines of codes that share one are adjacent bits of its bytes.
    let lines = bits;
    let mask = if bits == 8 { 255 } else { (1u8 << bits) - 1 };
    for (line, columns) in codes.as_chunks::<4>().0.iter().enumerate() {
        let at = &mut out[line % lines * LINE + 4 * lane..][..4];
        for (out, code) in at.iter_mut().zip(columns) {
            *out |= (code >> from & mask) << (line / lines * bits);
        }
    }
}
