//! The kernels, one operation a file, each written once over [`crate::simd::Simd`].
//!
//! An operation is a plain struct that holds handles to its operands; [`Op`] is any of them. It is cut into pieces that
//! write disjoint memory, so that threads take them in any order.

pub(crate) mod argmax;
pub(crate) mod attention;
pub(crate) mod epilogue;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod panel;
pub(crate) mod plan;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod store_kv;
#[cfg(test)]
mod tests;
pub(crate) mod tile;

use crate::simd::{self, Isa, LANES};

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

/// A recorded operation.
macro_rules! ops {
    ($($variant:ident($ty:ty), $pieces:expr;)*) => {
        /// Any recorded operation.
        #[derive(Debug)]
        pub(crate) enum Op {
            $($variant($ty),)*
            Linear(linear::Linear),
        }

        impl Op {
            /// How many pieces it has.
            pub(crate) fn pieces(&self) -> usize {
                match self {
                    $(Op::$variant(op) => { let count: fn(&$ty) -> usize = $pieces; count(op) })*
                    Op::Linear(op) => op.pieces(),
                }
            }

            /// Compute piece `piece`.
            ///
            /// # Safety
            /// Each piece is computed by one thread, after all pieces of the operations before this one, and nothing
            /// but those threads touches the operands.
            pub(crate) unsafe fn run(&self, isa: Isa, piece: usize, scratch: &mut Scratch) {
                // SAFETY: passed on to the caller; the backend checked `isa`.
                unsafe {
                    match self {
                        $(Op::$variant(op) => simd::run(isa, op, piece, scratch),)*
                        Op::Linear(op) if op.panel.bf16 => simd::run(isa, &linear::Dot(op), piece, scratch),
                        Op::Linear(op) => simd::run(isa, &linear::Full(op), piece, scratch),
                    }
                }
            }
        }
    };
}

ops! {
    Embed(rows::Embed), |op| op.rows;
    GatherRows(rows::GatherRows), |op| op.rows;
    Add(rows::Add), |op| op.pieces();
    SiluAndMul(rows::SiluAndMul), |op| op.pieces();
    RmsNorm(rms_norm::RmsNorm), |op| op.rows;
    Rope(rope::Rope), |op| op.rows;
    StoreKv(store_kv::StoreKv), |op| op.rows;
    Pack(panel::Pack), |op| op.pieces();
    Attention(attention::Attention), |op| op.pieces();
    Merge(attention::Merge), |op| op.pieces();
    ArgmaxRuns(argmax::ArgmaxRuns), |op| op.pieces();
    ArgmaxRows(argmax::ArgmaxRows), |op| op.rows;
}
