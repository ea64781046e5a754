//! The sizes that attention's kernels, its schedule and the backend's workspace agree on.

use crate::kernels::scratch::SUMS;
use crate::simd::LANES;

/// Positions that are reduced by themselves.
pub(crate) const SPAN: usize = 256;

/// Rows of a task, unless a single token has more.
const ROWS: usize = 64;

/// Floats of a span's result for one row: `o`, `m`, `l`.
pub(crate) fn partial_len(padded_dim: usize) -> usize {
    padded_dim + LANES
}

/// Tokens of a task whose K/V heads serve `group` query heads each.
pub(crate) fn task_tokens(group: usize) -> usize {
    (ROWS / group).max(1)
}

/// Whether the scratch of a thread holds a task.
pub(crate) fn fits(group: usize, padded_dim: usize) -> bool {
    let floats = || {
        let rows = task_tokens(group).checked_mul(group)?;
        let queries = rows.checked_mul(padded_dim.checked_add(1)?)?.checked_mul(2)?;
        let tile = padded_dim.checked_add(SPAN)?.checked_mul(12)?;
        queries.checked_add(tile)?.checked_add(4 * LANES)
    };
    floats().is_some_and(|floats| floats <= SUMS)
}
