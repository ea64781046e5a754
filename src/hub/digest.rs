//! The checksums by which the hub names contents: SHA-256 for large files, and for small ones the SHA-1 by which git names
//! a file (over `blob LENGTH\0` and the bytes).

use std::fmt::Write;

/// A checksum that is computed while bytes arrive.
pub(super) enum Digest {
    Sha256(Box<hmac_sha256::Hash>),
    Git(Box<Sha1>),
    /// The name is neither: only the length is checked.
    Unknown,
}

impl Digest {
    /// The one by which `etag` names a file of `size` bytes.
    pub(super) fn of(etag: &str, size: u64) -> Self {
        let is_hex = etag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match etag.len() {
            64 if is_hex => Digest::Sha256(Box::default()),
            40 if is_hex => {
                let mut hash = Sha1::default();
                hash.update(format!("blob {size}\0").as_bytes());
                Digest::Git(Box::new(hash))
            }
            _ => Digest::Unknown,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Digest::Sha256(hash) => hash.update(bytes),
            Digest::Git(hash) => hash.update(bytes),
            Digest::Unknown => {}
        }
    }

    /// In lower-case hexadecimal; `None` where nothing can be checked.
    pub(super) fn finish(self) -> Option<String> {
        match self {
            Digest::Sha256(hash) => Some(hex(&hash.finalize())),
            Digest::Git(hash) => Some(hex(&hash.finish())),
            Digest::Unknown => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-1 (FIPS 180-4). It finds damage; it does not resist forgers, against whom only TLS helps.
pub(super) struct Sha1 {
    state: [u32; 5],
    /// The block that is not full yet: the bytes at the end of all that came.
    block: Vec<u8>,
    length: u64,
}

impl Default for Sha1 {
    fn default() -> Self {
        let state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        Sha1 { state, block: Vec::with_capacity(64), length: 0 }
    }
}

impl Sha1 {
    fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(64 - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == 64 {
                self.compress();
            }
        }
    }

    fn finish(mut self) -> [u8; 20] {
        let bits = self.length * 8;
        self.update(&[0x80]);
        while self.block.len() != 56 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        let mut out = [0; 20];
        for (bytes, word) in out.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        out
    }

    /// Take the full block in.
    fn compress(&mut self) {
        // The last 16 words, oldest first.
        let mut words = [0u32; 16];
        for (word, bytes) in words.iter_mut().zip(self.block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.state;
        for i in 0..80 {
            let word = words[0];
            words.rotate_left(1);
            words[15] = (word ^ words[1] ^ words[7] ^ words[12]).rotate_left(1);
            let (f, k) = match i / 20 {
                0 => (b & c | !b & d, 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (sum, word) in self.state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(word);
        }
        self.block.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha1(pieces: &[&[u8]]) -> String {
        let mut hash = Sha1::default();
        pieces.iter().for_each(|piece| hash.update(piece));
        hex(&hash.finish())
    }

    #[test]
    fn known_digests() {
        assert_eq!(sha1(&[]), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(sha1(&[b"abc"]), "a9993e364706816aba3e25717850c26c9cd0d89d");
        let million = vec![b'a'; 1_000_000];
        let whole = "34aa973cd4c4daa4f61eeb2bdbad27316534016f";
        for size in [1_000_000, 63, 64, 65, 1000] {
            assert_eq!(sha1(&million.chunks(size).collect::<Vec<_>>()), whole);
        }
        // `git hash-object` of a file with "hello\n".
        let etag = "ce013625030ba8dba906f756967f9e9ca394464a";
        let mut digest = Digest::of(etag, 6);
        digest.update(b"hello\n");
        assert_eq!(digest.finish().as_deref(), Some(etag));
        assert!(Digest::of("W-abc", 6).finish().is_none());
    }
}
