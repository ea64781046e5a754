//! Memory of a device, and ranges of it as kernel bindings.

use std::ops::Range;

/// An array of 32-bit words on a device. Clones are the same array.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    /// A number that is unique in this process.
    pub(crate) id: u64,
    /// The device that owns it. Two instances of wgpu would mistake each other's handles for their own.
    pub(crate) owner: u64,
    pub(crate) buffer: wgpu::Buffer,
}

/// An array, or a range of one, as a kernel binding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binding<'a> {
    pub(crate) array: &'a Array,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) writable: bool,
}

impl Array {
    /// The words of `range`, read-only.
    pub(crate) fn read(&self, range: Range<usize>) -> Binding<'_> {
        let offset = 4 * range.start as u64;
        let bytes = bytes_of(range.len() as u64).min(self.buffer.size().saturating_sub(offset));
        Binding { array: self, offset, bytes, writable: false }
    }

    /// The words of `range`, writable.
    pub(crate) fn write(&self, range: Range<usize>) -> Binding<'_> {
        Binding { writable: true, ..self.read(range) }
    }

    /// The whole array, read-only.
    pub(crate) fn read_all(&self) -> Binding<'_> {
        Binding { array: self, offset: 0, bytes: self.buffer.size(), writable: false }
    }

    /// The whole array, writable.
    pub(crate) fn write_all(&self) -> Binding<'_> {
        Binding { writable: true, ..self.read_all() }
    }
}

/// Bytes of an array of `words` 32-bit words: whole vectors of four, and at least one. `u64::MAX` if they overflow.
pub(crate) fn bytes_of(words: u64) -> u64 {
    words.max(1).div_ceil(4).saturating_mul(16)
}
