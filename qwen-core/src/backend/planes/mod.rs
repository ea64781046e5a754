//! Block formats on GPUs: how a row of blocks is laid out, the same for every device.
//!
//! A row is divided into planes, one after another, each with a few bytes of every block: first the codes, then what
//! remains of wider codes, then scales. So a plane is an array of words, and a thread reads the codes of eight values
//! with one or two loads. No value is widened: planes take as many bytes as the blocks of the file, and a row is padded
//! to 16 bytes. Codes of fewer than eight bits are interleaved, so that a mask and a shift leave four of them in the
//! bytes of a word, in the order of their columns.
//!
//! A format is a [`PlaneFormat`] here, with a function that packs a block; a device has a file beside its kernels that
//! unpacks eight codes with their scale. Not here: where rows go (each backend), and the kernels.

mod grids;
mod groups;
mod k_quants;
mod small;
mod writer;

use crate::Encoding;
use crate::numerics::encoding::{Block, GroupBits, GroupEncoding};

use writer::Planes;

/// A block format, as GPUs store it.
///
/// ```
/// use qwen_core::Encoding;
/// use qwen_core::backend::planes::PlaneFormat;
///
/// let format = PlaneFormat::of(Encoding::Q8_0).expect("blocks");
/// // The codes of two blocks, then their scales, padded.
/// assert_eq!(format.row_bytes(Encoding::Q8_0, 64), Some(64 + 4 + 12));
/// let blocks: Vec<u8> = (0..68).collect();
/// let mut row = [0; 80];
/// format.pack_row(Encoding::Q8_0, &blocks, &mut row);
/// assert_eq!((row[0], row[63], row[64..68].to_vec()), (2, 67, vec![0, 1, 34, 35]));
/// assert!(PlaneFormat::of(Encoding::Bf16).is_none());
/// ```
pub struct PlaneFormat {
    name: &'static str,
    /// Bytes of a block in each plane; of groups, of 32 values in the first one.
    planes: &'static [usize],
    table: &'static [u8],
    pack: fn(&[u8], &mut Planes<'_>),
}

impl PlaneFormat {
    const fn new(name: &'static str, planes: &'static [usize], pack: fn(&[u8], &mut Planes<'_>)) -> Self {
        PlaneFormat { name, planes, table: &[], pack }
    }

    const fn with_table(self, table: &'static [u8]) -> Self {
        PlaneFormat { table, ..self }
    }

    /// The format of an encoding that stores blocks; `None` for 16- and 32-bit values, and for groups of a size that no
    /// kernel takes.
    pub fn of(encoding: Encoding) -> Option<&'static PlaneFormat> {
        let format = match encoding {
            Encoding::Q4_0 => &small::Q4_0,
            Encoding::Q4_1 => &small::Q4_1,
            Encoding::Q5_0 => &small::Q5_0,
            Encoding::Q5_1 => &small::Q5_1,
            Encoding::Q8_0 => &small::Q8_0,
            Encoding::Iq4Nl => &small::IQ4_NL,
            Encoding::Q2K => &k_quants::Q2_K,
            Encoding::Q3K => &k_quants::Q3_K,
            Encoding::Q4K => &k_quants::Q4_K,
            Encoding::Q5K => &k_quants::Q5_K,
            Encoding::Q6K => &k_quants::Q6_K,
            Encoding::Iq4Xs => &k_quants::IQ4_XS,
            Encoding::Iq2Xxs => &grids::IQ2_XXS,
            Encoding::Iq2Xs => &grids::IQ2_XS,
            Encoding::Iq2S => &grids::IQ2_S,
            Encoding::Iq3Xxs => &grids::IQ3_XXS,
            Encoding::Iq3S => &grids::IQ3_S,
            Encoding::Group(group) if group.group_size > 0 && group.group_size.is_multiple_of(32) => match group.bits {
                GroupBits::Four => &groups::INT4,
                GroupBits::Eight => &groups::INT8,
            },
            _ => return None,
        };
        Some(format)
    }

    /// The name that kernels know it by: `q4_k`, `iq2_xs`, and `int4` or `int8` for groups.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What codes are looked up in, which has to be at hand beside the rows; empty for most formats.
    pub fn table(&self) -> &'static [u8] {
        self.table
    }

    /// Bytes of each plane of a row of `blocks` blocks of `encoding`, in whole words; `None` if they overflow.
    fn plane_bytes(&self, encoding: Encoding, blocks: usize) -> impl Iterator<Item = Option<usize>> {
        let units = match encoding {
            // A plane of groups has the bytes of 32 values, or of one scale.
            Encoding::Group(group) => group.group_size as usize / 32,
            _ => 1,
        };
        self.planes.iter().enumerate().map(move |(plane, bytes)| {
            let bytes = if plane == 0 { bytes.checked_mul(units)? } else { *bytes };
            bytes.checked_mul(blocks)?.checked_next_multiple_of(4)
        })
    }

    /// Bytes of a row of `cols` values; `None` if they are not whole blocks or overflow.
    pub fn row_bytes(&self, encoding: Encoding, cols: usize) -> Option<usize> {
        let Block { values, .. } = encoding.block();
        if values == 0 || !cols.is_multiple_of(values) {
            return None;
        }
        let sum = self.plane_bytes(encoding, cols / values).try_fold(0usize, |sum, bytes| sum.checked_add(bytes?))?;
        sum.checked_next_multiple_of(16)
    }

    /// Pack a row of blocks into `out`, which has [`PlaneFormat::row_bytes`] zeros.
    pub fn pack_row(&self, encoding: Encoding, row: &[u8], out: &mut [u8]) {
        let block = encoding.block().bytes.max(1);
        let mut planes = Planes::new(out, self.plane_bytes(encoding, row.len() / block).flatten());
        for block in row.chunks_exact(block) {
            (self.pack)(block, &mut planes);
        }
    }
}

/// Every encoding with such a format, with groups of the sizes that the conformance suite uses: for tests of devices.
pub fn encodings() -> Vec<Encoding> {
    let group = |bits, group_size| Encoding::Group(GroupEncoding { bits, group_size });
    let groups = [group(GroupBits::Four, 64), group(GroupBits::Eight, 32)];
    Encoding::NAMED.into_iter().chain(groups).filter(|encoding| PlaneFormat::of(*encoding).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_hardly_more_than_in_the_file() {
        let encodings = encodings();
        assert_eq!(encodings.len(), 19);
        for encoding in encodings {
            let format = PlaneFormat::of(encoding).unwrap();
            let block = encoding.block();
            for cols in [896usize, 1536, 4864, 27_648, 29_696] {
                if !cols.is_multiple_of(block.values) {
                    continue;
                }
                let (ours, file) = (format.row_bytes(encoding, cols).unwrap(), encoding.row_bytes(cols).unwrap());
                assert!(ours as f64 <= 1.03 * file as f64, "{encoding}: {ours} of {file} bytes for {cols} columns");
            }
            assert_eq!(format.row_bytes(encoding, block.values + 8), None);
        }
    }
}
