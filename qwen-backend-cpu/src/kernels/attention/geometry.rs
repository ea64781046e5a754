//! The sizes shared by attention's kernels, its schedule and the backend's workspace.

use crate::kernels::scratch::SUMS;
use crate::simd::LANES;

/// Positions of a span, which is reduced separately.
pub(crate) const SPAN: usize = 256;

/// Rows per task, unless a single token has more.
const ROWS: usize = 64;

/// Floats of a span's result for one row: `o`, `m`, `l`.
pub(crate) fn partial_len(padded_dim: usize) -> usize {
    padded_dim + LANES
}

/// Tokens per task if each K/V head serves `group` query heads.
pub(crate) fn task_tokens(group: usize) -> usize {
    (ROWS / group).max(1)
}

/// Whether a task fits in the scratch of a thread.
pub(crate) fn fits(group: usize, padded_dim: usize) -> bool {
    let floats = || {
        let rows = task_tokens(group).checked_mul(group)?;
        let queries = rows.checked_mul(padded_dim.checked_add(1)?)?.checked_mul(2)?;
        let tile = padded_dim.checked_add(SPAN)?.checked_mul(12)?;
        queries.checked_add(tile)?.checked_add(4 * LANES)
    };
    floats().is_some_and(|floats| floats <= SUMS)
}
