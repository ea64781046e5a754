//! Random and mutated GGUF files: the result is a value or an error, accepted tensors are within the file, and memory
//! stays bounded.

mod common;

use std::path::Path;

use common::TempFolder;
use common::gguf::{Gguf, array, string};
use proptest::prelude::*;
use qwen_core::Checkpoint;
use qwen_core::checkpoint::gguf::Header;

/// The invariants of every accepted header.
fn check(file: &[u8]) -> Result<(), TestCaseError> {
    let Ok(header) = Header::parse(Path::new("m.gguf"), file) else { return Ok(()) };
    let mut end = 0;
    for tensor in &header.tensors {
        prop_assert!(tensor.range.start >= end && tensor.range.end <= file.len() as u64, "{tensor:?}");
        end = tensor.range.end.max(end);
        if let Some(encoding) = tensor.encoding() {
            let cols = tensor.shape.last().copied().unwrap_or(1);
            let rows = tensor.shape.iter().rev().skip(1).product();
            prop_assert_eq!(encoding.block().matrix_bytes(rows, cols), Some(tensor.bytes()));
        }
    }
    Ok(())
}

/// Numbers that break things.
fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 2, 31, 32, 33, 1 << 31, 1 << 32, 1 << 60, i64::MAX as u64, u64::MAX - 31, u64::MAX];
    prop_oneof![prop::sample::select(edges.to_vec()), 0_u64..100, any::<u64>()]
}

/// A value with its type: right, or of another length than it states.
fn value() -> impl Strategy<Value = (u32, Vec<u8>)> {
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        "[a-z]{0,9}".prop_map(|text| (8, string(&text))),
        any::<u32>().prop_map(|value| (4, value.to_le_bytes().to_vec())),
        (0_u32..14, number(), bytes.clone()).prop_map(|(kind, count, bytes)| (9, array(kind, count, &bytes))),
        (0_u32..14, bytes).prop_map(|(kind, bytes)| (kind, bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_an_error_or_a_header(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes)?;
        let counts: Vec<u8> = [&b"GGUF\x03\0\0\0"[..], &bytes].concat();
        check(&counts)?;
    }

    #[test]
    fn arbitrary_entries_are_an_error_or_metadata(values in prop::collection::vec(value(), 0..5)) {
        let mut file = Gguf::new();
        for (index, (kind, value)) in values.into_iter().enumerate() {
            file = file.raw(&format!("k{index}"), kind, value);
        }
        check(&file.bytes())?;
    }

    #[test]
    fn arbitrary_tensors_are_an_error_or_within_the_file(
        tensors in prop::collection::vec((0_u32..45, prop::collection::vec(number(), 0..6), number(), any::<bool>()), 0..5),
        alignment in number(),
    ) {
        let mut file = Gguf::new().u32("general.alignment", alignment as u32);
        for (index, (kind, dims, offset, stated)) in tensors.into_iter().enumerate() {
            file = file.with_data(&format!("t{index}"), &dims, kind, vec![0; 100]);
            if stated {
                file = file.offset(&format!("t{index}"), offset);
            }
        }
        check(&file.bytes())?;
    }

    #[test]
    fn mutated_models_are_an_error_or_readable(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut file = Gguf::model().bytes();
        for (at, byte) in changes {
            // Most of the file is data, of which every byte is right.
            let at = at.index(1800);
            file[at] = byte;
        }
        cut.iter().for_each(|at| file.truncate(at.index(file.len())));
        check(&file)?;
        let folder = TempFolder::new().with("m.gguf", &file);
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            prop_assert!(checkpoint.config().num_parameters() > 0);
            for info in checkpoint.tensors() {
                if let Ok(tensor) = checkpoint.tensor(&info.name) {
                    prop_assert_eq!(tensor.data.len() as u64, info.bytes());
                }
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_an_error_or_a_header() {
    let file = Gguf::model().bytes();
    let header = Header::parse(Path::new("m.gguf"), &file).expect("a header");
    for at in 0..header.tensors[0].range.start as usize {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << bit;
            check(&flipped).expect("within the file");
        }
    }
}
