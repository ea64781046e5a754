//! What holds of every variant: its text says all, once, and people can read its figures.

use std::error::Error as _;
use std::io;

use super::*;

/// One of each, and two of the operating system.
fn all() -> Vec<Error> {
    let path = || PathBuf::from("model.safetensors");
    let text = || String::from("of the test");
    vec![
        Error::Io { path: path(), error: io::Error::from(io::ErrorKind::PermissionDenied) },
        Error::Io { path: path(), error: io::Error::from(io::ErrorKind::NotFound) },
        Error::InvalidFile { path: path(), reason: text() },
        Error::InvalidConfig { path: path(), key: text(), reason: text() },
        Error::Unsupported { what: text(), reason: text() },
        Error::DamagedSnapshot { path: path(), reason: text() },
        Error::SnapshotMismatch { path: path(), what: text(), expected: text(), found: text() },
        Error::MissingTensor { name: text(), path: path(), instead: text() },
        Error::InvalidTensor { name: text(), path: path(), expected: text(), found: text() },
        Error::DoesNotFit { needed: 9 << 30, available: 3 << 30, advice: text() },
        Error::OutOfBlocks { needed: 3, available: 2, advice: text() },
        Error::QueueFull { waiting: 3, max_waiting: 3 },
        Error::DeadlineExceeded { tokens: 3 },
        Error::OutOfMemory { device: text(), what: text(), bytes: 5 << 20 },
        Error::EmptyPrompt,
        Error::InvalidTokenId { id: 9, position: 2, vocab_size: 9 },
        Error::ContextLength { prompt: 64, limit: 63, context: 64 },
        Error::NonFinite { sequence: 1, place: text() },
        Error::StepFailed { reason: text(), kind: ErrorKind::Distributed },
        Error::Cancelled,
        Error::EngineStopped { reason: text() },
        Error::InvalidArgument { name: "batch", reason: text() },
        Error::Device { device: text(), op: text(), reason: text() },
        Error::Launch { variables: text(), reason: text() },
        Error::Rendezvous { rank: 1, address: text(), reason: text() },
        Error::RankMismatch { rank: 1, what: text(), expected: text(), found: text() },
        Error::RankFailed { rank: 1, reason: text() },
    ]
}

#[test]
fn no_error_has_a_source_that_its_text_says_already() {
    for error in all() {
        assert!(error.source().is_none(), "{error}");
        if let Error::Io { error: io, .. } = &error {
            assert!(error.to_string().contains(&io.to_string()), "{error}");
        }
    }
}

#[test]
fn each_variant_has_the_kind_that_a_program_acts_on() {
    use ErrorKind::*;
    let expected = [
        Io,
        NotFound,
        InvalidModel,
        InvalidModel,
        Unsupported,
        InvalidSnapshot,
        InvalidSnapshot,
        InvalidModel,
        InvalidModel,
        OutOfMemory,
        InvalidArgument,
        Busy,
        DeadlineExceeded,
        OutOfMemory,
        InvalidArgument,
        InvalidArgument,
        PromptTooLong,
        InvalidModel,
        Distributed,
        Cancelled,
        EngineStopped,
        InvalidArgument,
        Device,
        Distributed,
        Distributed,
        Distributed,
        Distributed,
    ];
    let kinds: Vec<ErrorKind> = all().iter().map(Error::kind).collect();
    assert_eq!(kinds, expected);
    for kind in kinds {
        assert_eq!(serde_json::to_value(kind).ok(), Some(kind.as_str().into()));
    }
}

#[test]
fn figures_are_in_units_that_people_read() {
    let text = |needed, available| Error::DoesNotFit { needed, available, advice: String::new() }.to_string();
    assert_eq!(text(9 << 30, 3 << 29), "needs 9.00 GiB of memory, 1.50 GiB are available");
    // Figures that look alike do not explain a refusal.
    assert_eq!(text((9 << 30) + 5, 9 << 30), "needs 9663676421 bytes of memory, 9663676416 bytes are available");
    let error = Error::OutOfMemory { device: "a GPU".into(), what: "w".into(), bytes: 5 << 20 };
    assert!(error.to_string().starts_with("a GPU: out of memory for `w` (5.00 MiB): "), "{error}");
}
