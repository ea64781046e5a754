//! The kernels, one operation per file, each written once over [`crate::simd::Simd`].
//!
//! An operation is a plain struct that holds handles to its operands; [`Op`] is any of them. It is divided into pieces
//! that write disjoint memory, so that threads can take them in any order.

pub(crate) mod add;
pub(crate) mod add_rows;
pub(crate) mod argmax;
pub(crate) mod attention;
pub(crate) mod embed;
pub(crate) mod epilogue;
pub(crate) mod gather_rows;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod panel;
pub(crate) mod rms_norm;
pub(crate) mod rope;
mod scratch;
pub(crate) mod silu_and_mul;
pub(crate) mod store_kv;
#[cfg(test)]
mod tests;
pub(crate) mod tile;

use crate::simd::{self, Isa};

pub(crate) use scratch::Scratch;

/// A recorded operation.
macro_rules! ops {
    ($($variant:ident($ty:ty), $pieces:expr;)*) => {
        /// Any recorded operation.
        // Boxing the large variant would allocate in every step.
        #[allow(clippy::large_enum_variant)]
        #[derive(Debug)]
        pub(crate) enum Op {
            $($variant($ty),)*
        }

        impl Op {
            /// How many pieces it has.
            pub(crate) fn pieces(&self) -> usize {
                match self {
                    $(Op::$variant(op) => { let count: fn(&$ty) -> usize = $pieces; count(op) })*
                }
            }

            /// Compute piece `piece`.
            ///
            /// # Safety
            /// Each piece is computed by one thread, after all pieces of the preceding operations, and only those
            /// threads access the operands.
            pub(crate) unsafe fn run(&self, isa: Isa, piece: usize, scratch: &mut Scratch) {
                // SAFETY: guaranteed by the caller; the backend checked `isa`.
                unsafe {
                    match self {
                        $(Op::$variant(op) => simd::run(isa, op, piece, scratch),)*
                    }
                }
            }
        }
    };
}

ops! {
    Embed(embed::Embed), |op| op.rows;
    GatherRows(gather_rows::GatherRows), |op| op.rows;
    Add(add::Add), |op| op.pieces();
    AddRows(add_rows::AddRows), |op| op.pieces();
    SiluAndMul(silu_and_mul::SiluAndMul), |op| op.pieces();
    RmsNorm(rms_norm::RmsNorm), |op| op.pieces();
    Rope(rope::Rope), |op| op.pieces();
    StoreKv(store_kv::StoreKv), |op| op.rows;
    Pack(panel::Pack), |op| op.pieces();
    Linear(linear::Linear), |op| op.pieces();
    Attention(attention::Attention), |op| op.pieces();
    Merge(attention::merge::Merge), |op| op.pieces();
    ArgmaxRuns(argmax::ArgmaxRuns), |op| op.pieces();
    ArgmaxRows(argmax::ArgmaxRows), |op| op.rows;
}
