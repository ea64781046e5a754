//! `g_idx`: the group of each column of a GPTQ matrix, and the column order in which each group is contiguous.
//!
//! With act-order (`desc_act`) columns are quantised and grouped in the order of their importance, while the file keeps
//! the original order of columns.

use std::sync::Arc;

use crate::checkpoint::Stored;
use crate::error::{Error, Result};

/// The columns sorted by group (a stable sort): entry `j` is the column that goes to place `j`. `None` if they are
/// sorted already.
///
/// # Errors
/// [`Error::InvalidTensor`] for a group that does not exist; [`Error::Unsupported`] for groups of unequal sizes.
pub(super) fn column_order(g_idx: &Stored, groups: usize, group_size: usize) -> Result<Option<Arc<[u32]>>> {
    let bytes = g_idx.read_all()?;
    let (indices, _) = bytes.as_chunks();
    let mut order = vec![0u32; indices.len()];
    let mut sizes = vec![0usize; groups];
    for (column, index) in indices.iter().enumerate() {
        let index = i32::from_le_bytes(*index);
        let Some((group, size)) = usize::try_from(index).ok().and_then(|group| Some((group, sizes.get_mut(group)?)))
        else {
            let expected = format!("groups 0 to {}, as many as `scales` has rows", groups.saturating_sub(1));
            let found = format!("group {index} for column {column}: the file is damaged, download it again");
            let (name, path) = (g_idx.info.name.clone(), g_idx.shard.path().to_path_buf());
            return Err(Error::InvalidTensor { name, path, expected, found });
        };
        if *size == group_size {
            let what =
                format!("groups of unequal sizes (tensor `{}` in {})", g_idx.info.name, g_idx.shard.path().display());
            let reason = format!(
                "group {group} has more than {group_size} columns; use a file quantised in whole groups, or the GGUF \
                 or 16-bit files of the same model"
            );
            return Err(Error::unsupported(what, reason));
        }
        // In bounds: a full group was refused, and the number of groups times their size is the number of columns.
        if let Some(place) = order.get_mut(group * group_size + *size) {
            *place = column as u32;
        }
        *size += 1;
    }
    let sorted = order.iter().enumerate().all(|(place, column)| place == *column as usize);
    Ok((!sorted).then(|| order.into()))
}
