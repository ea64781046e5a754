//! A small mutating fuzzer for stable toolchains: seeded, bounded, without coverage feedback.
//!
//! It finds problems close to valid files (wrong lengths, numbers, nesting, duplicates), in seconds and on every
//! machine. Deeper ones need cargo-fuzz.

/// Inputs derived from seeds, deterministic for a given number.
pub struct Mutator {
    state: u64,
    seeds: Vec<Vec<u8>>,
}

/// Pieces that tend to break parsers of JSON and of lengths.
const PIECES: &[&[u8]] = &[
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"-0.0",
    b"4294967296",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775807",
    b"1e308",
    b"NaN",
    b"\"\"",
    b"{}",
    b"[]",
    b"[[[[[[[[",
    b"{\"a\":",
    b",",
    b":",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"../",
    b"\0",
    b"\xff\xfe",
    b"\xf0\x9f\x98\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x08\0\0\0\0\0\0\0",
];

/// Longer inputs add time and no new paths.
const MAX_BYTES: usize = 1 << 16;

impl Mutator {
    /// Start from `seeds`, and from nothing if there are none.
    pub fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        Mutator { state: seed ^ 0x9e37_79b9_7f4a_7c15, seeds }
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.some_seed();
        for _ in 0..=self.below(6) {
            self.mutate(&mut input);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let end = at + self.below(input.len() - at + 1).min(64);
        match self.below(8) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => {
                let copy = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            3 => {
                let piece = PIECES[self.below(PIECES.len())];
                input.splice(at..end.min(at + 12), piece.iter().copied());
            }
            4 => self.replace_number(input),
            5 => {
                let other = self.some_seed();
                let from = self.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ if at < input.len() => input[at] ^= 1 << self.below(8),
            _ => input.push(self.below(256) as u8),
        }
    }

    /// Replace one of the decimal numbers.
    fn replace_number(&mut self, input: &mut Vec<u8>) {
        let starts: Vec<usize> = (0..input.len())
            .filter(|&i| input[i].is_ascii_digit() && (i == 0 || !input[i - 1].is_ascii_digit()))
            .collect();
        if starts.is_empty() {
            return;
        }
        let start = starts[self.below(starts.len())];
        let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let bits = self.below(65) as u32;
        let figure = self.next().checked_shr(bits).unwrap_or(0);
        input.splice(start..start + digits, figure.to_string().into_bytes());
    }

    fn some_seed(&mut self) -> Vec<u8> {
        let at = self.below(self.seeds.len());
        self.seeds.get(at).cloned().unwrap_or_default()
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
