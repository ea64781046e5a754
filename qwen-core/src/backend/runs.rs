//! A matrix of several parts as runs of rows that are stored alike: what GPU backends keep one array for.

use std::ops::Range;
use std::sync::Arc;

use super::matrix::{WeightShape, WeightView};
use crate::numerics::encoding::Encoding;

/// Consecutive rows of a matrix in one encoding, with columns in one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightRun {
    /// The encoding of its values.
    pub encoding: Encoding,
    /// The input feature of each column, if they are stored in another order.
    pub column_order: Option<Arc<[u32]>>,
    /// Which rows of the matrix these are.
    pub rows: Range<usize>,
}

/// Join adjacent parts that are stored alike.
fn joined(parts: impl Iterator<Item = (Encoding, usize, Option<Arc<[u32]>>)>) -> Vec<WeightRun> {
    let mut runs: Vec<WeightRun> = Vec::new();
    let mut end = 0usize;
    for (encoding, rows, column_order) in parts {
        let first = end;
        end = end.saturating_add(rows);
        match runs.last_mut() {
            Some(last) if last.encoding == encoding && last.column_order == column_order => last.rows.end = end,
            _ => runs.push(WeightRun { encoding, column_order, rows: first..end }),
        }
    }
    runs
}

impl WeightView<'_> {
    /// Its rows, as runs that are stored alike.
    ///
    /// ```
    /// use qwen_core::Encoding;
    /// use qwen_core::backend::{MatrixPart, WeightRole, WeightView};
    ///
    /// let bytes = [0; 64];
    /// let part = |encoding, rows| MatrixPart::whole(encoding, rows, 4, &bytes);
    /// let parts = [part(Encoding::Bf16, 3)?, part(Encoding::Bf16, 2)?, part(Encoding::F32, 1)?];
    /// let runs = WeightView { name: "w", role: WeightRole::Linear, parts: &parts }.runs();
    /// assert_eq!(runs.iter().map(|run| run.rows.clone()).collect::<Vec<_>>(), [0..5, 5..6]);
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    pub fn runs(&self) -> Vec<WeightRun> {
        joined(self.parts.iter().map(|part| (part.encoding, part.rows, part.column_order.clone())))
    }
}

impl WeightShape {
    /// Its rows, as runs that are stored alike if no part reorders its columns, which headers do not say.
    pub fn runs(&self) -> Vec<WeightRun> {
        joined(self.parts.iter().map(|(encoding, rows)| (*encoding, *rows, None)))
    }
}
