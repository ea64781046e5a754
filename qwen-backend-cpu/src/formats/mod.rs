//! Block formats as kernels read them: one family per file, each a [`Format`].
//!
//! A packed group is sixteen rows. First come its scales, one block of the file after another, sixteen rows side by
//! side; then its codes, in *sub-blocks* of 32 columns. A sub-block has eight *lines* of sixteen rows by four columns;
//! `planes.rs` describes how lines of codes with few bits share bytes. Nothing is added to the data of the file except
//! padding.
//!
//! Everything that kernels know about a format is here: how to read a line, and the [`Affine`] that turns codes into
//! values. To add one, implement [`Format`] and list it in [`with_format`].

mod grids;
mod group;
mod k_quants;
mod legacy;
pub(crate) mod planes;
pub(crate) mod staged;

use qwen_core::Encoding;
use qwen_core::numerics::encoding::Block;

use crate::simd::{LANES, Simd};

pub(crate) use grids::{Grid, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
pub(crate) use group::Group;
pub(crate) use k_quants::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use legacy::{Iq4Nl, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

/// Columns of a sub-block.
pub(crate) const SUB: usize = 32;

/// Lines of a sub-block.
pub(crate) const LINES: usize = 8;

/// Bytes of a line.
pub(crate) const LINE: usize = 4 * LANES;

/// The value of a code `q` of a sub-block in each row: `scale * (q - zero) + offset`. With [`Format::HALVES`], the
/// second of each pair is for the columns from 16 on.
#[derive(Clone, Copy)]
pub(crate) struct Affine<F> {
    pub(crate) scale: [F; 2],
    pub(crate) offset: [F; 2],
    /// Only with [`Format::ZERO_POINTS`].
    pub(crate) zero: F,
}

impl<F: Copy> Affine<F> {
    /// Only a scale.
    #[inline(always)]
    fn scale<S: Simd<F = F>>(s: S, scale: F) -> Affine<F> {
        Affine { scale: [scale; 2], offset: [s.splat(0.0); 2], zero: s.splat(0.0) }
    }
}

/// The layout of a format's blocks in a packed group, and the values of its codes.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Format: Copy + Send + Sync + 'static {
    /// Bits of a packed code.
    const BITS: usize;
    /// Whether lines hold signed bytes (made by [`Simd::prepare_signed`]) instead of codes.
    const SIGNED: bool = false;
    /// The largest magnitude of a byte of a line.
    const MOST: i32 = (1 << Self::BITS) - 1;
    /// The code that stands for zero in all rows.
    const ZERO: i32 = 0;
    /// Whether values have an offset.
    const OFFSETS: bool = false;
    /// Whether each row has its own code that stands for zero.
    const ZERO_POINTS: bool = false;
    /// Whether the two halves of a sub-block have separate scales.
    const HALVES: bool = false;

    /// Whether lines cannot be read from the packed codes directly, but have to be unpacked first.
    const STAGED: bool = false;

    /// A block of the file.
    fn block(self) -> Block;

    /// Bytes of the scales of a block, sixteen rows together.
    fn scale_bytes(self) -> usize;

    /// Bytes of the codes of a block, sixteen rows together.
    fn code_bytes(self) -> usize {
        self.block().values / SUB * Self::BITS * LINE
    }

    /// The codes of sub-block `sub` of a block of the file, in column order.
    fn codes(self, block: &[u8], sub: usize) -> [u8; SUB];

    /// Store the data of row `lane` in the scales of a block.
    fn pack_scales(self, block: &[u8], lane: usize, out: &mut [u8]);

    /// Line `line` of a sub-block whose codes begin at `codes`.
    #[inline(always)]
    unsafe fn line<S: Simd>(self, s: S, codes: *const u8, line: usize) -> S::Bytes {
        // SAFETY: guaranteed by the caller.
        unsafe { planes::line::<S>(s, Self::BITS, codes, line) }
    }

    /// The [`Affine`] of sub-block `sub` of the block whose scales begin at `scales`.
    unsafe fn affine<S: Simd>(self, s: S, scales: *const u8, sub: usize) -> Affine<S::F>;

    /// With [`Format::STAGED`]: unpack sub-block `sub` of a block into its lines, and the scales of its two halves,
    /// sixteen rows each. Signed bytes are not yet in the form of [`Simd::prepare_signed`].
    #[inline(always)]
    unsafe fn take_apart(self, _: *const u8, _: *const u8, _: usize, _: &mut [u8], _: &mut [f32]) {}

    /// Pack up to sixteen rows: `rows[lane]` is a block of the file, `scales` and `codes` are those of the block.
    fn pack(self, rows: &[&[u8]], scales: &mut [u8], codes: &mut [u8]) {
        for (lane, row) in rows.iter().enumerate() {
            self.pack_scales(row, lane, scales);
            for (sub, out) in codes.chunks_exact_mut(Self::BITS * LINE).enumerate() {
                planes::put(Self::BITS, &self.codes(row, sub), lane, out);
            }
        }
    }
}

/// Call an expression with the [`Format`] of a block encoding bound to a name; the last expression is for all others.
macro_rules! with_format {
    ($encoding:expr, $format:ident => $call:expr, else $other:expr) => {{
        use qwen_core::numerics::encoding::GroupBits;
        use $crate::formats as f;
        match $encoding {
            qwen_core::Encoding::Q4_0 => {
                let $format = f::Q4_0;
                $call
            }
            qwen_core::Encoding::Q4_1 => {
                let $format = f::Q4_1;
                $call
            }
            qwen_core::Encoding::Q5_0 => {
                let $format = f::Q5_0;
                $call
            }
            qwen_core::Encoding::Q5_1 => {
                let $format = f::Q5_1;
                $call
            }
            qwen_core::Encoding::Q8_0 => {
                let $format = f::Q8_0;
                $call
            }
            qwen_core::Encoding::Q2K => {
                let $format = f::Q2K;
                $call
            }
            qwen_core::Encoding::Q3K => {
                let $format = f::Q3K;
                $call
            }
            qwen_core::Encoding::Q4K => {
                let $format = f::Q4K;
                $call
            }
            qwen_core::Encoding::Q5K => {
                let $format = f::Q5K;
                $call
            }
            qwen_core::Encoding::Q6K => {
                let $format = f::Q6K;
                $call
            }
            qwen_core::Encoding::Iq4Nl => {
                let $format = f::Iq4Nl;
                $call
            }
            qwen_core::Encoding::Iq4Xs => {
                let $format = f::Iq4Xs;
                $call
            }
            qwen_core::Encoding::Iq2Xxs => {
                let $format = f::Grid(f::Iq2Xxs);
                $call
            }
            qwen_core::Encoding::Iq2Xs => {
                let $format = f::Grid(f::Iq2Xs);
                $call
            }
            qwen_core::Encoding::Iq2S => {
                let $format = f::Grid(f::Iq2S);
                $call
            }
            qwen_core::Encoding::Iq3Xxs => {
                let $format = f::Grid(f::Iq3Xxs);
                $call
            }
            qwen_core::Encoding::Iq3S => {
                let $format = f::Grid(f::Iq3S);
                $call
            }
            qwen_core::Encoding::Group(group) => match group.bits {
                GroupBits::Four => {
                    let $format = f::Group::<4>(group);
                    $call
                }
                GroupBits::Eight => {
                    let $format = f::Group::<8>(group);
                    $call
                }
            },
            _ => $other,
        }
    }};
}
pub(crate) use with_format;

/// The constants of a [`Format`], as values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub(crate) bits: usize,
    pub(crate) signed: bool,
    pub(crate) zero: i32,
    /// Including zero points.
    pub(crate) offsets: bool,
    pub(crate) halves: bool,
    pub(crate) staged: bool,
}

impl Form {
    fn new<F: Format>(_: F) -> Form {
        Form {
            bits: F::BITS,
            signed: F::SIGNED,
            zero: F::ZERO,
            offsets: F::OFFSETS || F::ZERO_POINTS,
            halves: F::HALVES,
            staged: F::STAGED,
        }
    }

    /// The traits of a block encoding; arbitrary ones for other encodings.
    #[inline(always)]
    pub(crate) fn of(encoding: Encoding) -> Form {
        with_format!(encoding, format => Form::new(format), else Form::new(Q8_0))
    }
}

/// Bytes of the scales and of the codes of a packed group of `cols` columns; `None` if the blocks of `encoding` are not
/// whole sub-blocks, `cols` are not whole blocks, or the size overflows.
pub(crate) fn group_bytes(encoding: Encoding, cols: usize) -> Option<(usize, usize)> {
    let Block { values, .. } = encoding.block();
    if values == 0 || !values.is_multiple_of(SUB) || !cols.is_multiple_of(values) {
        return None;
    }
    let blocks = cols / values;
    with_format!(encoding, format => {
        let scales = format.scale_bytes().checked_mul(blocks)?.checked_next_multiple_of(LINE)?;
        Some((scales, format.code_bytes().checked_mul(blocks)?))
    }, else None)
}

/// Pack rows of `cols` columns into a group of `out`, which begins as zeros.
pub(crate) fn pack_group(encoding: Encoding, rows: &[&[u8]], cols: usize, out: &mut [u8]) {
    let (Some((scale_bytes, _)), Block { values, bytes }) = (group_bytes(encoding, cols), encoding.block()) else {
        return;
    };
    let (scales, codes) = out.split_at_mut(scale_bytes);
    with_format!(encoding, format => {
        let mut blocks: Vec<&[u8]> = Vec::with_capacity(rows.len());
        let mut scales = scales.chunks_exact_mut(format.scale_bytes().max(1));
        for (i, codes) in codes.chunks_exact_mut(format.code_bytes()).take(cols / values).enumerate() {
            blocks.clear();
            blocks.extend(rows.iter().filter_map(|row| row.get(i * bytes..(i + 1) * bytes)));
            format.pack(&blocks, scales.next().unwrap_or_default(), codes);
        }
    }, else ());
}

/// Two bytes as an f16.
#[inline(always)]
fn f16_at(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

/// Store `bytes` in the place of row `lane` in a run of sixteen.
fn put_lane(out: &mut [u8], lane: usize, bytes: &[u8]) {
    out[lane * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests;
