//! The cryptography of encrypted connections: pure Rust and assembler inside it, so that no C compiler is needed. It has
//! no fallback for processors without the instructions that it is written for; these are asked for first.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use super::error::Error;

/// The provider of the program if it chose one, here or for the whole process, else our own.
pub(super) fn provider(chosen: Option<&Arc<CryptoProvider>>) -> Result<Arc<CryptoProvider>, Error> {
    match chosen.or(CryptoProvider::get_default()) {
        Some(provider) => Ok(Arc::clone(provider)),
        None => own(),
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn own() -> Result<Arc<CryptoProvider>, Error> {
    let missing: Vec<&str> = needed().into_iter().filter_map(|(name, is_here)| (!is_here).then_some(name)).collect();
    match missing.as_slice() {
        [] => Ok(Arc::new(rustls_graviola::default_provider())),
        missing => Err(Error::NoTls { missing: missing.join(", ") }),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn own() -> Result<Arc<CryptoProvider>, Error> {
    Err(Error::NoTls { missing: "the instructions of x86-64 and aarch64".into() })
}

/// The instructions that graviola asks for, and whether they are here.
#[cfg(target_arch = "x86_64")]
fn needed() -> Vec<(&'static str, bool)> {
    use std::arch::is_x86_feature_detected as detected;
    vec![
        ("aes", detected!("aes")),
        ("ssse3", detected!("ssse3")),
        ("pclmulqdq", detected!("pclmulqdq")),
        ("bmi1", detected!("bmi1")),
        ("bmi2", detected!("bmi2")),
        ("adx", detected!("adx")),
        ("avx", detected!("avx")),
        ("avx2", detected!("avx2")),
    ]
}

/// The instructions that graviola asks for, and whether they are here.
#[cfg(target_arch = "aarch64")]
fn needed() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected as detected;
    vec![
        ("neon", detected!("neon")),
        ("aes", detected!("aes")),
        ("pmull", detected!("pmull")),
        ("sha2", detected!("sha2")),
    ]
}
