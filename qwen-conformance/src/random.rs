//! Deterministic values for the cases: the same on every machine, so that the name of a failure is enough to reproduce
//! it.

use half::{bf16, f16};

use qwen_core::Encoding;

/// A SplitMix64 generator (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// A generator seeded by `parts`, independent of all others.
    pub fn of(parts: &[u64]) -> Self {
        let mut rng = Rng(0x5157_454E);
        for &part in parts {
            rng.0 = rng.next_u64() ^ part.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        }
        rng
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// An integer below `bound`, which has to be much smaller than 2^64.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound.max(1) as u64) as usize
    }

    /// A value of mean 0 and variance 1, nearly normal: the sum of four uniform ones.
    pub fn normal(&mut self) -> f32 {
        // Four integers of 16 bits have a variance of 4 * (2^32 - 1) / 12 about their mean 4 * (2^16 - 1) / 2.
        const DEVIATION: f32 = 37_837.22;
        let bits = self.next_u64();
        let sum = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48);
        (sum as f32 - 131_070.0) / DEVIATION
    }

    /// `len` values of mean 0 and deviation `scale`.
    pub fn normals(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| scale * self.normal()).collect()
    }

    /// The numbers `0..len` in random order.
    pub fn permutation(&mut self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// `values` as stored in a checkpoint, rounded to `encoding`.
pub(crate) fn encode(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    match encoding {
        Encoding::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Encoding::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        Encoding::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        other => panic!("the suite has no encoder for {other}"),
    }
}

/// A matrix of `rows` x `cols` in a block format: random codes, with scales that give values a deviation of about `1 /
/// sqrt(cols)`.
///
/// # Panics
/// When rows are not whole blocks, and for encodings without blocks.
pub fn random_blocks(rng: &mut Rng, encoding: Encoding, rows: usize, cols: usize) -> Vec<u8> {
    let block = encoding.block();
    assert!(cols.is_multiple_of(block.values), "{cols} columns of {encoding}");
    // The positions of a block's f16 scales, and the approximate RMS of a value if these are 1.
    let (scales, size): (&[usize], f32) = match encoding {
        Encoding::Q4_0 => (&[0], 4.6),
        Encoding::Q4_1 => (&[0, 2], 9.0),
        Encoding::Q5_0 => (&[0], 9.2),
        Encoding::Q5_1 => (&[0, 2], 18.0),
        Encoding::Q8_0 => (&[0], 74.0),
        Encoding::Q2K => (&[80, 82], 14.0),
        Encoding::Q3K => (&[108], 42.0),
        Encoding::Q4K => (&[0, 2], 320.0),
        Encoding::Q5K => (&[0, 2], 650.0),
        Encoding::Q6K => (&[208], 1360.0),
        Encoding::Iq4Nl => (&[0], 68.0),
        Encoding::Iq4Xs => (&[0], 1260.0),
        Encoding::Iq2Xxs | Encoding::Iq2Xs | Encoding::Iq2S => (&[0], 50.0),
        Encoding::Iq3Xxs => (&[0], 140.0),
        Encoding::Iq3S => (&[0], 130.0),
        Encoding::Group(group) => (&[0], (1 << group.bits.count()) as f32 / 3.0),
        other => panic!("{other} has no blocks"),
    };
    let size = size * (cols as f32).sqrt();
    let mut bytes: Vec<u8> = (0..rows * cols / block.values * block.bytes).map(|_| rng.next_u64() as u8).collect();
    for block in bytes.chunks_exact_mut(block.bytes) {
        for at in scales {
            let scale = f16::from_f32((0.5 + rng.below(1000) as f32 / 1000.0) / size);
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if let Encoding::Group(group) = encoding {
            let zero = rng.below((1 << group.bits.count()) + 1) as u16;
            block[2..4].copy_from_slice(&zero.to_le_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_mean_0_and_variance_1() {
        let values = Rng::new(7).normals(100_000, 1.0);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.01, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.01, "variance {variance}");
    }

    #[test]
    fn a_permutation_holds_each_number_once() {
        let mut order = Rng::new(1).permutation(50);
        assert_ne!(order, (0..50).collect::<Vec<u32>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<u32>>());
    }
}
