//! The secret that ranks may share, and its proof: an HMAC-SHA256 of both sides' random bytes.
//!
//! Each side contributes random bytes, so that a recorded proof is worthless later. The two sides' proofs have
//! different labels, so that neither can be answered by echoing the other one.

use std::fmt;

use hmac_sha256::HMAC;

/// Bytes of a proof.
pub(super) const PROOF_BYTES: usize = 32;

/// Fewer bytes could be guessed.
const MIN_BYTES: usize = 16;

/// More bytes mean a wrong file, not a secret.
pub(super) const MAX_BYTES: usize = 4096;

/// A secret. It is never printed.
#[derive(Clone)]
pub(super) struct Secret(Vec<u8>);

/// Who proves that it knows the secret.
#[derive(Debug, Clone, Copy)]
pub(super) enum Prover {
    /// Rank 0.
    Leader,
    /// Another rank.
    Worker,
}

/// The random bytes of one side of a connection.
pub(super) type Nonce = [u8; 32];

/// Fresh random bytes of the operating system.
pub(super) fn nonce() -> Result<Nonce, String> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(|error| format!("the system has no random bytes: {error}"))?;
    Ok(nonce)
}

impl Secret {
    /// The secret `bytes`, without white space around it. The error says what is wrong with its length.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, String> {
        let bytes = bytes.trim_ascii();
        match bytes.len() {
            MIN_BYTES..=MAX_BYTES => Ok(Secret(bytes.to_vec())),
            len => Err(format!(
                "a secret has {MIN_BYTES} to {MAX_BYTES} bytes, this one has {len}: make one by `openssl rand -hex 32`"
            )),
        }
    }

    /// The proof of `prover` for the connection with these random bytes of rank 0 and this hello, which contains those
    /// of the other rank.
    pub(super) fn prove(&self, prover: Prover, leader: &Nonce, hello: &[u8]) -> [u8; PROOF_BYTES] {
        self.mac(prover, leader, hello).finalize()
    }

    /// Whether `proof` is that of [`Secret::prove`], compared in constant time.
    pub(super) fn verify(&self, proof: &[u8], prover: Prover, leader: &Nonce, hello: &[u8]) -> bool {
        let Ok(proof) = proof.try_into() else { return false };
        self.mac(prover, leader, hello).finalize_verify(proof)
    }

    fn mac(&self, prover: Prover, leader: &Nonce, hello: &[u8]) -> HMAC {
        let mut mac = HMAC::new(&self.0);
        // All parts but the last have a fixed length, so that no two inputs give the same bytes.
        mac.update(match prover {
            Prover::Leader => b"qwen ranks v2: leader",
            Prover::Worker => b"qwen ranks v2: worker",
        });
        mac.update(leader);
        mac.update(hello);
        mac
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.verify(&other.prove(Prover::Leader, &Nonce::default(), &[]), Prover::Leader, &Nonce::default(), &[])
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Nonce = [1; 32];

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_proof_holds_for_its_secret_prover_and_connection_only() {
        let secrets = [secret("a secret of the ranks"), secret("a secret of the rankt")];
        let proof = secrets[0].prove(Prover::Worker, &A, b"hello");
        assert!(secrets[0].verify(&proof, Prover::Worker, &A, b"hello"));
        assert!(!secrets[1].verify(&proof, Prover::Worker, &A, b"hello"));
        assert!(!secrets[0].verify(&proof, Prover::Leader, &A, b"hello"));
        assert!(!secrets[0].verify(&proof, Prover::Worker, &[2; 32], b"hello"));
        assert!(!secrets[0].verify(&proof, Prover::Worker, &A, b"hell"));
        for wrong in [&proof[..31], &[&proof[..], &[0]].concat(), &[]] {
            assert!(!secrets[0].verify(wrong, Prover::Worker, &A, b"hello"));
        }
        for bit in 0..256 {
            let mut wrong = proof;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!secrets[0].verify(&wrong, Prover::Worker, &A, b"hello"));
        }
    }

    /// Case 2 of RFC 4231 through the same type, to check that the primitive is the one named.
    #[test]
    fn the_primitive_is_hmac_sha256() {
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let mac = HMAC::mac(b"what do ya want for nothing?", b"Jefe");
        assert_eq!(mac.map(|byte| format!("{byte:02x}")).concat(), expected);
    }

    #[test]
    fn a_secret_has_a_length_and_is_never_printed() {
        let text = "0123456789abcdef";
        assert_eq!(secret(&format!("  {text}\n")), secret(text));
        assert_ne!(secret("0123456789abcdeg"), secret(text));
        assert!(Secret::new(b"0123456789abcde\n").unwrap_err().contains("has 15"));
        assert!(Secret::new(&[7; MAX_BYTES + 1]).is_err());
        assert_eq!(format!("{:?}", secret(text)), "Secret(..)");
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
