//! A saved conversation with K/V: an engine restores it or refuses it, and goes on computing in either case.

use std::path::PathBuf;
use std::sync::OnceLock;

use qwen::{ChatState, Device, Engine, EngineOptions, Error, GenerateOptions};

use crate::folder;

/// Bytes before the header: magic, version, length.
const BEFORE: usize = 20;

/// Bytes of a K/V block of the model.
const BLOCK: usize = 32 * 32 * 2 * 2;

/// A file, as it is and with a corrected length and checksums: otherwise mutations would rarely get past these.
pub fn snapshot(file: &[u8]) {
    restore(file);
    restore(&sealed(file));
}

fn restore(file: &[u8]) {
    let (engine, path) = engine();
    std::fs::write(path, file).expect("the scratch folder takes files");
    match engine.restore(path) {
        Ok(chat) => {
            let state = ChatState::load(path).expect("what was restored can be loaded");
            assert_eq!(state.messages(), chat.messages());
            let mut chat = chat.options(GenerateOptions::new().max_new_tokens(2));
            // The model layer may refuse the conversation, but the engine's thread ends only by a panic.
            if let Err(Error::Model(error)) = chat.send("Hello").and_then(|reply| reply.text()) {
                assert!(!matches!(error, qwen::core::Error::EngineStopped { .. }), "{error}");
            }
        }
        Err(Error::Model(error)) => {
            assert!(!matches!(error, qwen::core::Error::EngineStopped { .. }), "{error}");
        }
        Err(error) => panic!("{error}"),
    }
    let stats = engine.stats();
    assert_eq!((stats.running, stats.used_blocks), (0, 0), "{stats:?}");
}

/// The file with a length that it can have, and the checksums of what it holds.
fn sealed(file: &[u8]) -> Vec<u8> {
    let Some((before, rest)) = file.split_at_checked(BEFORE) else { return file.to_vec() };
    let end = rest.iter().rposition(|&byte| byte == b'}').map_or(0, |at| at + 1);
    let stated = u64::from_le_bytes(before[12..].try_into().expect("eight bytes")) as usize;
    let len = if stated <= rest.len() { stated } else { end };
    let (header, rest) = rest.split_at(len);
    let mut sealed = Vec::new();
    let mut sum = 0;
    let mut part = |pieces: &[&[u8]]| {
        for piece in pieces {
            sum = checksum(sum, piece);
            sealed.extend_from_slice(piece);
        }
        sealed.extend_from_slice(&sum.to_le_bytes());
    };
    part(&[&before[..8], &before[8..12], &(len as u64).to_le_bytes(), header]);
    let mut rest = rest.get(8..).unwrap_or_default();
    while let Some((count, blocks)) = rest.split_first_chunk::<4>() {
        let bytes = (u32::from_le_bytes(*count) as usize).saturating_mul(BLOCK).min(blocks.len());
        let (blocks, after) = blocks.split_at(bytes);
        match *count {
            [0, 0, 0, 0] => part(&[count]),
            _ => part(&[count, blocks]),
        }
        rest = after.get(8..).unwrap_or_default();
    }
    sealed
}

fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    let mut words: Vec<u8> = bytes.to_vec();
    words.resize(bytes.len() / 8 * 8 + 8, 0);
    let words = words.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    words.chain([bytes.len() as u64]).fold(sum, |sum, word| {
        let sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^ (sum >> 32)
    })
}

/// The engine of all inputs, and where each is written.
fn engine() -> &'static (Engine, PathBuf) {
    static ENGINE: OnceLock<(Engine, PathBuf)> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("qwen-fuzz-snapshot-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        for (name, bytes) in folder::files() {
            std::fs::write(folder.join(name), bytes).expect("the scratch folder takes files");
        }
        let options = EngineOptions::new().device(Device::Cpu).threads(1).context(256);
        let engine = options.load(&folder).expect("the model is sound");
        (engine, folder.join("one.chat"))
    })
}

/// A file of a short conversation, as a seed.
pub fn seed() -> Vec<u8> {
    let (engine, path) = engine();
    let mut chat = engine.chat().options(GenerateOptions::new().max_new_tokens(8).seed(1).ignore_eos(true));
    chat.send("Hello! ".repeat(12)).and_then(|reply| reply.text()).expect("an answer");
    assert!(chat.save(path).expect("it is saved") > 32);
    std::fs::read(path).expect("it is there")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise the target would test checksums alone.
    #[test]
    fn a_sound_file_is_sealed_as_it_is() {
        let file = seed();
        assert_eq!(sealed(&file), file);
        let (engine, path) = engine();
        std::fs::write(path, &file).expect("the scratch folder takes files");
        assert!(engine.restore(path).is_ok());
    }
}
