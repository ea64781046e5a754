//! The grids of the IQ2 and IQ3 formats, and their signs: constants of the formats.
//!
//! A grid is a list of points with 8 or 4 coordinates, all positive; a code is the index of a point, and signs are
//! stored separately. The authors of the formats found the points by a search over trained weights, so they follow no
//! rule and are listed in full. They are stored as level indices and expanded at compile time.

mod tables;

/// The levels of a coordinate in the IQ2 grids.
pub const IQ2_LEVELS: [u8; 3] = [8, 25, 43];

/// The levels of a coordinate in the grid of IQ3_XXS.
pub const IQ3_XXS_LEVELS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];

/// The levels of a coordinate in the grid of IQ3_S.
pub const IQ3_S_LEVELS: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// The grid of IQ2_XXS.
pub static IQ2_XXS: [[u8; 8]; 256] = expand(&tables::IQ2_XXS, 2, &IQ2_LEVELS);

/// The grid of IQ2_XS.
pub static IQ2_XS: [[u8; 8]; 512] = expand(&tables::IQ2_XS, 2, &IQ2_LEVELS);

/// The grid of IQ2_S.
pub static IQ2_S: [[u8; 8]; 1024] = expand(&tables::IQ2_S, 2, &IQ2_LEVELS);

/// The grid of IQ3_XXS.
pub static IQ3_XXS: [[u8; 4]; 256] = expand(&tables::IQ3_XXS, 3, &IQ3_XXS_LEVELS);

/// The grid of IQ3_S.
pub static IQ3_S: [[u8; 4]; 512] = expand(&tables::IQ3_S, 3, &IQ3_S_LEVELS);

const fn expand<const POINTS: usize, const DIMS: usize>(
    codes: &[u16; POINTS],
    bits: usize,
    levels: &[u8],
) -> [[u8; DIMS]; POINTS] {
    let mut points = [[0; DIMS]; POINTS];
    let mut i = 0;
    while i < POINTS * DIMS {
        let (point, dim) = (i / DIMS, i % DIMS);
        points[point][dim] = levels[(codes[point] >> (bits * dim)) as usize & ((1 << bits) - 1)];
        i += 1;
    }
    points
}

/// The eight signs encoded by seven stored bits, the first in the lowest bit, where 1 is negative: the number of
/// negative signs is even, which determines the eighth.
///
/// ```
/// use qwen_core::numerics::encoding::grids::signs;
/// assert_eq!(signs(0b000_0101), 0b0000_0101);
/// assert_eq!(signs(0b000_0111), 0b1000_0111);
/// ```
pub const fn signs(seven_bits: u8) -> u8 {
    let bits = seven_bits & 0x7f;
    bits | (bits.count_ones() as u8 & 1) << 7
}
