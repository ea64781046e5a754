//! The planes of a row while it is packed, and the order of codes within their words.

/// The rest of each plane of a row.
pub(super) struct Planes<'a>(Vec<&'a mut [u8]>);

impl<'a> Planes<'a> {
    /// The planes of `row`, with these numbers of bytes.
    pub(super) fn new(row: &'a mut [u8], bytes: impl Iterator<Item = usize>) -> Self {
        let mut rest = row;
        let mut planes = Vec::new();
        for bytes in bytes {
            let (plane, after) = std::mem::take(&mut rest).split_at_mut_checked(bytes).unwrap_or_default();
            planes.push(plane);
            rest = after;
        }
        Planes(planes)
    }

    /// Append to plane `plane`.
    pub(super) fn put(&mut self, plane: usize, bytes: &[u8]) {
        let Some(rest) = self.0.get_mut(plane) else { return };
        if let Some((out, after)) = std::mem::take(rest).split_at_mut_checked(bytes.len()) {
            out.copy_from_slice(bytes);
            *rest = after;
        }
    }

    /// Append words to plane `plane`.
    pub(super) fn words(&mut self, plane: usize, words: impl IntoIterator<Item = u32>) {
        words.into_iter().for_each(|word| self.put(plane, &word.to_le_bytes()));
    }

    /// Append the low four bits of codes, eight to a word.
    pub(super) fn four_bits(&mut self, plane: usize, codes: &[u8]) {
        self.words(plane, codes.chunks_exact(8).map(|codes| interleaved(codes, 4)));
    }

    /// Append the low two bits of codes, sixteen to a word.
    pub(super) fn two_bits(&mut self, plane: usize, codes: impl Iterator<Item = u8>) {
        let codes: Vec<u8> = codes.collect();
        self.words(plane, codes.chunks_exact(16).map(|codes| interleaved(codes, 2)));
    }

    /// Append the lowest bit of codes, 32 to a word.
    pub(super) fn one_bit(&mut self, plane: usize, codes: impl Iterator<Item = u8>) {
        let codes: Vec<u8> = codes.collect();
        self.words(plane, codes.chunks_exact(32).map(|codes| interleaved(codes, 1)));
    }
}

/// The low `bits` of each code: of four consecutive codes in the four bytes of a word, at a multiple of `bits`.
fn interleaved(codes: &[u8], bits: usize) -> u32 {
    let mask = (1u32 << bits) - 1;
    codes.iter().enumerate().fold(0, |word, (i, code)| word | (u32::from(*code) & mask) << (i % 4 * 8 + i / 4 * bits))
}

/// The low four bits of eight small numbers, the first in the lowest bits.
pub(super) fn nibbles(values: &[u8]) -> u32 {
    values.iter().enumerate().fold(0, |word, (i, value)| word | u32::from(value & 15) << (4 * i))
}

/// Bits 4 and 5 of up to sixteen small numbers, the first in the lowest bits.
pub(super) fn high_pairs(values: &[u8]) -> u32 {
    values.iter().enumerate().fold(0, |word, (i, value)| word | u32::from(value >> 4 & 3) << (2 * i))
}

/// Two halves of a word.
pub(super) fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}
