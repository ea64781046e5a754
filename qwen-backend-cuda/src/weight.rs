//! The layout of a matrix on the GPU: rows in the order and encoding of the file, each padded with zeros to whole words
//! of 16 bytes. If the parts of a matrix differ in encoding, they are decoded to f32, which represents all of them
//! exactly.

use qwen_core::backend::{RowReader, WeightShape, WeightView};
use qwen_core::{Encoding, Error, HumanBytes, Result};

use crate::driver::Array;
use crate::geometry::WEIGHT_ALIGN;
use crate::gpu::Gpu;
use crate::kernel::Element;
use crate::sizes::{kernel_size, product, taken_bytes};

/// The shape of a matrix on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) encoding: Encoding,
    pub(crate) element: Element,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// The row stride in elements.
    pub(crate) stride: usize,
    /// Bytes of all rows.
    pub(crate) bytes: usize,
}

impl Layout {
    /// The layout of a matrix.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoding without kernels, and for a matrix whose size overflows.
    pub(crate) fn new(shape: &WeightShape) -> Result<Self> {
        let first = shape.parts.first().map_or(Encoding::F32, |(encoding, _)| *encoding);
        for (encoding, _) in &shape.parts {
            if Element::of(*encoding).is_none() {
                let reason = "CUDA kernels take F32, F16 and BF16";
                return Err(Error::unsupported(format!("a matrix in {encoding}"), reason));
            }
        }
        let uniform = shape.parts.iter().all(|(encoding, _)| *encoding == first);
        let encoding = if uniform { first } else { Encoding::F32 };
        let element = Element::of(encoding).unwrap_or(Element::F32);
        let rows = shape.parts.iter().try_fold(0_usize, |sum, (_, rows)| sum.checked_add(*rows));
        let (rows, cols) = (rows.unwrap_or(usize::MAX), shape.cols);
        let what = format!("a matrix of {rows} x {cols}");
        let stride = cols.checked_next_multiple_of(WEIGHT_ALIGN).unwrap_or(usize::MAX);
        if [rows, stride].into_iter().any(|size| kernel_size(size).is_none()) {
            return Err(Error::unsupported(what, format!("kernels count to {} rows or columns", i32::MAX)));
        }
        let bytes = product(&what, &[rows, stride, element.bytes()])?;
        Ok(Layout { encoding, element, rows, cols, stride, bytes })
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.stride * self.element.bytes()
    }

    /// Bytes of the GPU's memory that it takes.
    pub(crate) fn taken_bytes(&self) -> u64 {
        taken_bytes(self.bytes)
    }
}

/// A matrix on the GPU.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    pub(crate) array: Array,
}

impl Matrix {
    /// Copy a matrix to the GPU: rows are packed into one piece of pinned memory while another is copied.
    pub(crate) fn load(gpu: &mut Gpu, view: &WeightView<'_>) -> Result<Self> {
        view.check()?;
        let layout = Layout::new(&view.shape())?;
        let row_bytes = layout.row_bytes();
        if row_bytes > Gpu::piece() {
            let [row, most] = HumanBytes::compared(row_bytes as u64, Gpu::piece() as u64);
            let reason = format!("a row of {} columns has {row}, at most {most} are copied", layout.cols);
            return Err(Error::unsupported(view.name, reason));
        }
        let array = gpu.unset_array(view.name, layout.bytes)?;
        let mut decoded = vec![0.0; layout.cols];
        let rows_at_once = Gpu::piece() / row_bytes.max(1);
        let mut first = 0;
        for part in view.parts {
            let mut stored = RowReader::new(part);
            for begin in (0..part.rows).step_by(rows_at_once) {
                let rows = rows_at_once.min(part.rows - begin);
                let mut failed = None;
                gpu.write(view.name, &array, (first + begin) * row_bytes, rows * row_bytes, |piece| {
                    for (row, out) in piece.chunks_exact_mut(row_bytes.max(1)).enumerate() {
                        match stored.row(begin + row) {
                            Ok(bytes) => pack_row(part.encoding, bytes, &layout, &mut decoded, out),
                            Err(error) => {
                                failed.get_or_insert(error);
                            }
                        }
                    }
                })?;
                if let Some(error) = failed {
                    return Err(error);
                }
            }
            first += part.rows;
        }
        Ok(Matrix { layout, array })
    }
}

/// Write a row in the layout of the GPU; missing bytes become zeros.
fn pack_row(encoding: Encoding, bytes: &[u8], layout: &Layout, decoded: &mut [f32], out: &mut [u8]) {
    let filled = if encoding == layout.encoding {
        let len = bytes.len().min(out.len());
        out[..len].copy_from_slice(&bytes[..len]);
        len
    } else {
        decoded.fill(0.0);
        encoding.decode_row(bytes, decoded);
        for (out, value) in out.chunks_exact_mut(4).zip(&*decoded) {
            out.copy_from_slice(&value.to_le_bytes());
        }
        4 * decoded.len()
    };
    out[filled..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwen_core::backend::WeightRole;

    fn layout(parts: &[(Encoding, usize)], cols: usize) -> Layout {
        Layout::new(&WeightShape { role: WeightRole::Linear, parts: parts.to_vec(), cols }).unwrap()
    }

    #[test]
    fn rows_are_padded_to_whole_words() {
        let odd = layout(&[(Encoding::Bf16, 3)], 9);
        assert_eq!((odd.stride, odd.row_bytes(), odd.bytes), (16, 32, 96));
        assert_eq!(layout(&[(Encoding::F32, 2)], 8).bytes, 64);
        assert_eq!(layout(&[], 8).bytes, 0);
    }

    #[test]
    fn parts_of_different_encodings_become_f32() {
        let mixed = layout(&[(Encoding::Bf16, 1), (Encoding::F16, 1)], 8);
        assert_eq!((mixed.element, mixed.bytes), (Element::F32, 64));
        let mut out = [1; 32];
        let bytes: Vec<u8> = [half::bf16::ONE; 7].iter().flat_map(|value| value.to_le_bytes()).collect();
        pack_row(Encoding::Bf16, &bytes, &Layout { cols: 7, ..mixed }, &mut [0.0; 7], &mut out);
        let expected: Vec<u8> =
            [1.0_f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(out[..], expected);
    }

    #[test]
    fn matrices_without_a_number_are_refused() {
        for huge in [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX] {
            let encodings = [Encoding::F32, Encoding::Bf16];
            for (parts, cols) in
                [(vec![huge], 4096), (vec![4096], huge), (vec![huge; 3], 8), (vec![1], huge), (vec![huge], 0)]
            {
                let parts = parts.iter().zip(encodings.iter().cycle()).map(|(rows, encoding)| (*encoding, *rows));
                let shape = WeightShape { role: WeightRole::Linear, parts: parts.collect(), cols };
                let error = Layout::new(&shape).unwrap_err();
                assert!(matches!(error, Error::Unsupported { .. }), "{shape:?}: {error}");
            }
        }
    }

    #[test]
    fn encodings_and_sizes_without_kernels_are_refused_by_name() {
        let shape =
            |encoding, rows, cols| WeightShape { role: WeightRole::Linear, parts: vec![(encoding, rows)], cols };
        let error = Layout::new(&shape(Encoding::Q8_0, 32, 64)).unwrap_err().to_string();
        assert!(error.contains("a matrix in Q8_0"), "{error}");
        for extreme in [1 << 53, 1 << 60, usize::MAX - 31, usize::MAX] {
            for (rows, cols) in [(extreme, 1 << 10), (1 << 10, extreme), (extreme, extreme)] {
                assert!(Layout::new(&shape(Encoding::Bf16, rows, cols)).is_err(), "{rows} x {cols}");
            }
        }
    }
}
