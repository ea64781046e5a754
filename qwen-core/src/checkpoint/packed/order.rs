//! `g_idx`: the group of each column of a GPTQ matrix, and the order in which the columns of a group lie together.
//!
//! With act-order (`desc_act`) columns are quantised by importance and groups are made in that order, while the file
//! keeps the columns where they were.

use std::sync::Arc;

use crate::checkpoint::Stored;
use crate::error::{Error, Result};

/// The columns sorted by group, those of a group in their own order: entry `j` is the column that comes at place `j`.
/// `None` where that is the order that they have.
///
/// # Errors
/// [`Error::InvalidTensor`] for a group that there is not; [`Error::Unsupported`] for groups of unequal sizes.
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
        // Within the order: a full group was refused, and groups times their size are the columns.
        if let Some(place) = order.get_mut(group * group_size + *size) {
            *place = column as u32;
        }
        *size += 1;
    }
    let sorted = order.iter().enumerate().all(|(place, column)| place == *column as usize);
    Ok((!sorted).then(|| order.into()))
}
