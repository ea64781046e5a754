//! An unpacked sub-block, for kernels that use it more than once.
//!
//! ```text
//! bytes     0  eight lines of sixteen rows by four columns, as `dot` or `dot_signed` take them
//!         512  sixteen scales of the first half, and of the second
//!         640  sixteen offsets of the first half, and of the second
//! ```

use super::{Affine, Format, LINE, LINES, SUB};
use crate::simd::{LANES, Simd, array};

/// Bytes of an unpacked sub-block.
pub(crate) const BYTES: usize = LINES * LINE + 4 * 4 * LANES;

/// The scales and the codes of sub-block `sub` of a group, and its number within its block.
#[inline(always)]
pub(crate) fn find<F: Format>(
    format: F,
    scales: *const u8,
    codes: *const u8,
    sub: usize,
) -> (*const u8, *const u8, usize) {
    let each = format.block().values / SUB;
    let (block, within) = (sub / each, sub % each);
    let lines = if F::STAGED { 0 } else { within * F::BITS * LINE };
    (scales.wrapping_add(block * format.scale_bytes()), codes.wrapping_add(block * format.code_bytes() + lines), within)
}

/// The affine of a sub-block whose codes count from zero: zero points become part of the offsets.
#[inline(always)]
pub(crate) unsafe fn affine<S: Simd, F: Format>(s: S, format: F, scales: *const u8, within: usize) -> Affine<S::F> {
    // SAFETY: guaranteed by the caller.
    let mut affine = unsafe { format.affine(s, scales, within) };
    if F::ZERO_POINTS {
        affine.offset = array!(half < 2 => s.sub(s.splat(0.0), s.mul(affine.scale[half], affine.zero)));
    }
    affine
}

/// The affine of the unpacked sub-block at `at`.
///
/// # Safety
/// There is one at `at`.
#[inline(always)]
pub(crate) unsafe fn affine_apart<S: Simd>(s: S, at: *const u8) -> Affine<S::F> {
    let floats = at.wrapping_add(LINES * LINE).cast::<f32>();
    // SAFETY: guaranteed by the caller.
    let [scale, offset] = array!(i < 2 => array!(half < 2 => unsafe { s.load(floats.add(LANES * (2 * i + half))) }));
    Affine { scale, offset, zero: s.splat(0.0) }
}

/// Unpack sub-block `sub` of the group at `scales` and `codes`.
///
/// # Safety
/// The group has the sub-block, and [`BYTES`] bytes can be written at `out`.
#[inline(always)]
pub(crate) unsafe fn stage<S: Simd, F: Format>(
    s: S,
    format: F,
    scales: *const u8,
    codes: *const u8,
    sub: usize,
    out: *mut u8,
) {
    let (scales, codes, within) = find(format, scales, codes, sub);
    // SAFETY: guaranteed by the caller.
    unsafe {
        let floats = out.add(LINES * LINE).cast::<f32>();
        if F::STAGED {
            let lines = std::slice::from_raw_parts_mut(out, LINES * LINE);
            let values = std::slice::from_raw_parts_mut(floats, 2 * LANES);
            format.take_apart(codes, scales, within, lines, values);
            for line in 0..LINES {
                let at = out.add(LINE * line);
                s.store_bytes(s.prepare_signed(s.load_bytes(at)), at);
            }
            return;
        }
        for line in 0..LINES {
            s.store_bytes(format.line(s, codes, line), out.add(LINE * line));
        }
        let affine = affine(s, format, scales, within);
        for half in 0..2 {
            s.store(affine.scale[half], floats.add(LANES * half));
            s.store(affine.offset[half], floats.add(LANES * (2 + half)));
        }
    }
}

/// The values of sub-block `sub` exactly as the format defines them: `[32 columns][16 rows]`.
///
/// # Safety
/// The group has the sub-block, and that many values can be written at `out`.
#[inline(always)]
pub(crate) unsafe fn values<S: Simd, F: Format>(
    s: S,
    format: F,
    scales: *const u8,
    codes: *const u8,
    sub: usize,
    out: *mut f32,
) {
    /// Floats follow the lines.
    #[repr(align(64))]
    struct Aligned([u8; BYTES]);
    let mut apart = Aligned([0; BYTES]);
    // SAFETY: guaranteed by the caller; a staged sub-block fits.
    unsafe {
        let (affine, codes) = if F::STAGED {
            stage(s, format, scales, codes, sub, apart.0.as_mut_ptr());
            (affine_apart(s, apart.0.as_ptr()), apart.0.as_ptr())
        } else {
            let (scales, codes, within) = find(format, scales, codes, sub);
            (format.affine(s, scales, within), codes)
        };
        let zero = if F::SIGNED { 128 } else { F::ZERO };
        for line in 0..LINES {
            let bytes = if F::STAGED { s.load_bytes(codes.add(LINE * line)) } else { format.line(s, codes, line) };
            let bytes = if F::SIGNED { s.flip_sign(bytes) } else { bytes };
            for (i, code) in s.bytes_to_f(bytes).into_iter().enumerate() {
                // Differences of codes are exact.
                let mut code = s.sub(code, s.splat(zero as f32));
                if F::ZERO_POINTS {
                    code = s.sub(code, affine.zero);
                }
                let half = line / (LINES / 2);
                let value = s.mul(affine.scale[half], code);
                let value = if F::OFFSETS { s.add(value, affine.offset[half]) } else { value };
                s.store(value, out.add(LANES * (4 * line + i)));
            }
        }
    }
}
