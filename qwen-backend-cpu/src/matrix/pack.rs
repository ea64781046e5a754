//! Packs rows of a checkpoint into groups, on all threads.

use std::sync::OnceLock;

use qwen_core::backend::WeightView;
use qwen_core::{Encoding, Result};

use super::layout::{Group, Layout};
use crate::formats;
use crate::memory::Memory;
use crate::simd::LANES;

/// Groups per task, so that its buffers are reused.
const GROUPS_AT_ONCE: usize = 8;

/// Pack the groups of `view` into `memory`; `parallel` calls its second argument for each number below its first.
///
/// # Errors
/// For an invalid part or its file; errors of `parallel`.
pub(super) fn pack(
    view: &WeightView<'_>,
    layout: &Layout,
    memory: &Memory,
    parallel: impl FnOnce(usize, &(dyn Fn(usize) + Sync)) -> Result<()>,
) -> Result<()> {
    let base = SendPtr(memory.ptr());
    let failed = OnceLock::new();
    parallel(layout.groups.len().div_ceil(GROUPS_AT_ONCE), &|run| {
        let mut buffers = vec![Vec::new(); view.parts.len()];
        for group in layout.groups.iter().skip(run * GROUPS_AT_ONCE).take(GROUPS_AT_ONCE) {
            if failed.get().is_some() {
                return;
            }
            // SAFETY: groups are disjoint and within the memory, and each number occurs once.
            let out = unsafe { std::slice::from_raw_parts_mut(base.get().add(group.offset), group.bytes) };
            if let Err(error) = pack_group(view, layout.cols, group, &mut buffers, out) {
                // The first error is reported; later ones usually have the same cause.
                let _ = failed.set(error);
            }
        }
    })?;
    failed.into_inner().map_or(Ok(()), Err)
}

/// A pointer that several threads share, each for its own part of the memory.
struct SendPtr(*mut u8);
// SAFETY: see the type.
unsafe impl Sync for SendPtr {}

impl SendPtr {
    // A closure that names the field would capture it alone, which is not `Sync`.
    fn get(&self) -> *mut u8 {
        self.0
    }
}

/// Read and pack a group. `buffers` has one for each part, for rows read from a file: they stay in cache from the read
/// to the packing.
fn pack_group(
    view: &WeightView<'_>,
    cols: usize,
    group: &Group,
    buffers: &mut [Vec<u8>],
    out: &mut [u8],
) -> Result<()> {
    let mut rows: [&[u8]; LANES] = [&[]; LANES];
    let (mut lane, mut part_start) = (0, 0);
    for (part, buffer) in view.parts.iter().zip(buffers) {
        // The rows of the group that this part has.
        let start = (group.row + lane).max(part_start).min(part_start + part.rows);
        let end = (group.row + group.lanes).clamp(start, part_start + part.rows);
        let bytes = part.read(start - part_start..end - part_start, buffer)?;
        let row_bytes = bytes.len() / (end - start).max(1);
        for row in bytes.chunks_exact(row_bytes.max(1)) {
            rows[lane] = row;
            lane += 1;
        }
        part_start += part.rows;
    }
    let rows = &rows[..lane];
    match group.encoding {
        // Two columns of bf16 are one element of the layout.
        Encoding::Bf16 | Encoding::F32 => interleave::<4>(rows, out),
        Encoding::F16 => interleave::<2>(rows, out),
        encoding => formats::pack_group(encoding, rows, cols, out),
    }
    Ok(())
}

/// `out[i][lane] = rows[lane][i]` for elements of `N` bytes, sixteen lanes wide.
fn interleave<const N: usize>(rows: &[&[u8]], out: &mut [u8]) {
    // Short runs of columns, so that the lines being filled stay in cache while looping over the rows.
    const RUN: usize = 32;
    let len = rows.first().map_or(0, |row| row.len());
    for (run, lines) in out.chunks_mut(RUN * N * LANES).enumerate() {
        let start = (run * RUN * N).min(len);
        let end = ((run + 1) * RUN * N).min(len);
        for (lane, row) in rows.iter().enumerate() {
            // Elements of constant size: the compiler emits a move for each, not a call.
            let (elements, rest) = row[start..end].as_chunks::<N>();
            let mut lines = lines.chunks_exact_mut(N * LANES);
            for (element, line) in elements.iter().zip(&mut lines) {
                line[N * lane..][..N].copy_from_slice(element);
            }
            // The last column of bf16, if the number is odd.
            if let (false, Some(line)) = (rest.is_empty(), lines.next()) {
                line[N * lane..][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}
