//! How a server behaves: names, limits, keys. The command line is in `args.rs`.

use std::time::Duration;

use hmac_sha256::Hash;
use subtle::{Choice, ConstantTimeEq};

/// How a server behaves. The defaults are those of the command line.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Settings {
    /// The names under which clients ask for the model; the first one is in the answers.
    pub model_names: Vec<String>,
    /// The keys of which clients have to send one; empty lets everybody in.
    pub api_keys: Vec<ApiKey>,
    /// Names that requests may be addressed to (`Host`), besides those of this machine's loopback interface. Looked at
    /// where the server listens on that interface alone: a page of another site could otherwise be made to speak to it
    /// by DNS.
    pub allowed_hosts: Vec<String>,
    /// Origins of other pages that may use the server from a browser (CORS); `*` for all.
    pub cors_origins: Vec<String>,
    /// Bytes of a request's body at most.
    pub max_body_bytes: usize,
    /// Answers that one request may ask for at most: `n`, times the prompts of a completion.
    pub max_choices: usize,
    /// Texts that one request may ask vectors of at most.
    pub max_inputs: usize,
    /// Connections at most; further ones wait in the system's queue.
    pub max_connections: usize,
    /// How long a request may wait for its first token, as far as that is known in advance: those that would wait longer
    /// are refused (429).
    pub max_first_token_time: Duration,
    /// How long an answer may take, from its request to its end.
    pub request_timeout: Duration,
    /// How long the head of a request, and its body, may take to arrive; also how long a connection stays open between
    /// requests.
    pub read_timeout: Duration,
    /// How long a client may take no byte of its answer before its connection is closed.
    pub write_timeout: Duration,
    /// How long requests that run may go on when the server is told to end.
    pub shutdown_timeout: Duration,
    /// A comment is sent in streams after each such time without anything to say, so that nobody in between takes the
    /// connection for dead.
    pub ping_interval: Duration,
    /// Write prompts and answers to the log. They are private: off by default.
    pub log_prompts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            model_names: vec!["qwen".into()],
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            max_body_bytes: 8 << 20,
            max_choices: 128,
            max_inputs: 2048,
            max_connections: 1024,
            max_first_token_time: Duration::from_secs(60),
            request_timeout: Duration::from_secs(600),
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(15),
            log_prompts: false,
        }
    }
}

/// A key that clients send. Only its SHA-256 is kept.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// The key as clients send it.
    pub fn new(key: &str) -> Self {
        ApiKey(Hash::hash(key.as_bytes()))
    }

    /// What stands for the key in logs: eight digits of its hash.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The one of `keys` that `sent` is. How long that takes tells nothing of the keys.
    #[must_use]
    pub fn find<'a>(keys: &'a [ApiKey], sent: &str) -> Option<&'a ApiKey> {
        let sent = ApiKey::new(sent);
        let mut found = None;
        for key in keys {
            let is_equal: Choice = key.0.ct_eq(&sent.0);
            if is_equal.into() {
                found = Some(key);
            }
        }
        found
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({}...)", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_and_never_shown() {
        let keys = [ApiKey::new("first"), ApiKey::new("second")];
        assert_eq!(ApiKey::find(&keys, "second").map(ApiKey::fingerprint), Some(keys[1].fingerprint()));
        assert!(ApiKey::find(&keys, "third").is_none() && ApiKey::find(&[], "first").is_none());
        assert!(!format!("{keys:?}").contains("first"));
    }
}
