//! Activations that a kernel has rounded for a product.

use crate::runtime::array::Array;

/// Rounded rows. Clones are the same arrays.
#[derive(Debug, Clone)]
pub(super) struct Rounded {
    pub(super) values: Array,
    /// Words of a row in `values`.
    pub(super) width: usize,
    /// One per row, if they are not among the values.
    pub(super) scales: Option<Array>,
}
