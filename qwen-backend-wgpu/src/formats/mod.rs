//! Block formats on the device: how a row of blocks is laid out, and what each format adds to the shaders.
//!
//! A row is divided into planes, one after another, each with a few bytes of every block: first the codes, then what
//! remains of wider codes, then scales. So a plane is an array of words, and a thread reads the codes of eight values
//! with one or two loads. No value is widened: planes take as many bytes as the blocks of the file, and a row is padded
//! to 16 bytes. A format is a row of [`FORMATS`], a function that packs a block, and a fragment in `shaders/formats/`
//! that unpacks eight codes with their scale. Not here: slabs of rows (`weight.rs`), and the kernels.

mod grids;
mod groups;
mod k_quants;
mod planes;
mod small;

use qwen_core::Encoding;
use qwen_core::numerics::encoding::{Block, GroupBits};

use planes::Planes;

/// A block format.
pub(crate) struct Format {
    /// The fragment in `shaders/formats/`.
    pub(crate) fragment: &'static str,
    /// Bytes of a block in each plane, and in the table before the first row of a slab.
    planes: &'static [usize],
    table: &'static [u8],
    pack: fn(&[u8], &mut Planes<'_>),
}

impl Format {
    const fn new(fragment: &'static str, planes: &'static [usize], pack: fn(&[u8], &mut Planes<'_>)) -> Self {
        Format { fragment, planes, table: &[], pack }
    }

    const fn with_table(self, table: &'static [u8]) -> Self {
        Format { table, ..self }
    }

    /// The format of an encoding that stores blocks; `None` for 16- and 32-bit values, and for groups of a size that no
    /// kernel takes.
    pub(crate) fn of(encoding: Encoding) -> Option<&'static Format> {
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

    /// Bytes before the first row of a slab: what codes are looked up in.
    pub(crate) fn table(&self) -> &'static [u8] {
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
    pub(crate) fn row_bytes(&self, encoding: Encoding, cols: usize) -> Option<usize> {
        let Block { values, .. } = encoding.block();
        if values == 0 || !cols.is_multiple_of(values) {
            return None;
        }
        let sum = self.plane_bytes(encoding, cols / values).try_fold(0usize, |sum, bytes| sum.checked_add(bytes?))?;
        sum.checked_next_multiple_of(16)
    }

    /// Pack a row of blocks into `out`, which has [`Format::row_bytes`] zeros.
    pub(crate) fn pack_row(&self, encoding: Encoding, row: &[u8], out: &mut [u8]) {
        let block = encoding.block().bytes.max(1);
        let mut planes = Planes::new(out, self.plane_bytes(encoding, row.len() / block).flatten());
        for block in row.chunks_exact(block) {
            (self.pack)(block, &mut planes);
        }
    }
}

/// All formats, with groups of the sizes that the conformance suite uses.
#[cfg(test)]
pub(crate) fn all() -> Vec<Encoding> {
    use qwen_core::numerics::encoding::GroupEncoding;
    let group = |bits, group_size| Encoding::Group(GroupEncoding { bits, group_size });
    let groups = [group(GroupBits::Four, 64), group(GroupBits::Eight, 32)];
    Encoding::NAMED.into_iter().chain(groups).filter(|encoding| Format::of(*encoding).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_hardly_more_than_in_the_file() {
        let encodings = all();
        assert_eq!(encodings.len(), 19);
        for encoding in encodings {
            let format = Format::of(encoding).unwrap();
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
