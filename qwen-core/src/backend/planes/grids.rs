//! Blocks of 256 values as points of a grid: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.
//!
//! The parts of a block become planes as they are. The grid is before the first row of a slab, a word for four
//! coordinates.

use crate::numerics::encoding::grids;

use super::PlaneFormat;
use super::writer::Planes;

pub(super) static IQ2_XXS: PlaneFormat = PlaneFormat::new("iq2_xxs", &[64, 2], |block, out| {
    parts(block, &[(1, 2), (0, 64)], out);
})
.with_table(grids::IQ2_XXS.as_flattened());

pub(super) static IQ2_XS: PlaneFormat = PlaneFormat::new("iq2_xs", &[64, 8, 2], |block, out| {
    parts(block, &[(2, 2), (0, 64), (1, 8)], out);
})
.with_table(grids::IQ2_XS.as_flattened());

pub(super) static IQ2_S: PlaneFormat = PlaneFormat::new("iq2_s", &[32, 32, 8, 8, 2], |block, out| {
    parts(block, &[(4, 2), (0, 32), (1, 32), (2, 8), (3, 8)], out);
})
.with_table(grids::IQ2_S.as_flattened());

pub(super) static IQ3_XXS: PlaneFormat = PlaneFormat::new("iq3_xxs", &[64, 32, 2], |block, out| {
    parts(block, &[(2, 2), (0, 64), (1, 32)], out);
})
.with_table(grids::IQ3_XXS.as_flattened());

pub(super) static IQ3_S: PlaneFormat = PlaneFormat::new("iq3_s", &[64, 32, 8, 4, 2], |block, out| {
    parts(block, &[(4, 2), (0, 64), (2, 8), (1, 32), (3, 4)], out);
})
.with_table(grids::IQ3_S.as_flattened());

/// The parts of a block in the order of the file: the plane and the number of bytes of each.
fn parts(block: &[u8], parts: &[(usize, usize)], out: &mut Planes<'_>) {
    let mut rest = block;
    for (plane, bytes) in parts {
        let Some((part, after)) = rest.split_at_checked(*bytes) else { return };
        out.put(*plane, part);
        rest = after;
    }
}
