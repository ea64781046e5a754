//! The operations of [`qwen_core::Backend`] as data, and the cases over them, one file per kind.

pub mod add;
pub mod add_rows;
pub mod argmax;
pub mod attention;
pub mod blocks;
pub mod embed;
pub mod extremes;
pub mod gate_up_silu;
pub mod gather_rows;
pub mod kv;
mod kv_bytes;
pub mod kv_encoding;
pub(crate) mod kv_rows;
pub mod linear;
pub mod memory;
pub mod qkv_rope_store;
pub mod rms_norm;
pub mod rope;
pub mod steps;

use std::ops::Range;

use super::random::Rng;

/// Whether a fused operation runs in the backend's own form or composed of base operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The backend's own.
    Own,
    /// The one of [`qwen_core::backend::composed`], on the same backend.
    Composed,
}

/// The distribution of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// Near normal, of deviation 1.
    Normal,
    /// A few channels are a thousand, one is a hundred thousand times larger, as in Qwen2.5's MLPs: beyond the range of
    /// f16.
    Outliers,
    /// So small that the epsilon of a norm matters.
    Tiny,
    /// All zeros.
    Zero,
}

impl Inputs {
    /// Rows `rows` of an endless matrix with `width` columns. A row does not depend on which others are requested.
    pub fn rows(self, seed: u64, rows: Range<usize>, width: usize) -> Vec<f32> {
        rows.flat_map(|row| {
            let mut values = Rng::of(&[seed, row as u64, width as u64]).normals(width, self.scale());
            if self == Inputs::Outliers && width > 3 {
                for channel in [1, width / 2, width - 2] {
                    values[channel] *= 1e3;
                }
                values[width - 1] *= 1e5;
            }
            values
        })
        .collect()
    }

    fn scale(self) -> f32 {
        match self {
            Inputs::Normal | Inputs::Outliers => 1.0,
            Inputs::Tiny => 1e-4,
            Inputs::Zero => 0.0,
        }
    }
}

/// The root of the mean square.
pub(super) fn rms(values: &[f32]) -> f64 {
    (values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// Row counts at, below and above the tiles that kernels use.
pub(super) const RAGGED_ROWS: [usize; 10] = [0, 1, 2, 3, 5, 8, 13, 16, 17, 33];
