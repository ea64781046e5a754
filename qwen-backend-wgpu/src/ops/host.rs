//! Host writes and reads, and when queued kernels are submitted for them.

use qwen_core::Result;

use crate::executor::{WgpuBackend, Words};

/// Copy `values` to the beginning of `dst`.
pub(crate) fn write(
    b: &mut WgpuBackend,
    op: &str,
    dst: &Words,
    values: impl ExactSizeIterator<Item = [u8; 4]>,
) -> Result<()> {
    b.need(op, "dst", dst, &[values.len()])?;
    let bytes: Vec<u8> = values.flatten().collect();
    b.host_access();
    if b.gpu.pending.has_kernels() {
        // Queued kernels must not see the new values.
        b.gpu.flush(op)?;
    }
    b.gpu.write(op, &dst.array, 0, &bytes)
}

/// Copy the beginning of `src` to `dst`, after everything queued.
pub(crate) fn read<T>(
    b: &mut WgpuBackend,
    op: &str,
    src: &Words,
    dst: &mut [T],
    decode: impl Fn([u8; 4]) -> T,
) -> Result<()> {
    b.need(op, "src", src, &[dst.len()])?;
    b.gpu.device.check_owner(op, [&src.array].into_iter())?;
    b.host_access();
    if dst.is_empty() {
        return b.gpu.flush(op);
    }
    let len = dst.len();
    let mut left = dst.iter_mut();
    b.gpu.read_back(op, &src.array, len, |bytes| {
        left.by_ref().zip(bytes.as_chunks().0).for_each(|(dst, word)| *dst = decode(*word));
    })
}
