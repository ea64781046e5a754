//! GGUF headers that are wrong in one place: each gives an error that names the file, the key or the tensor, and the
//! figure. Stated sizes are never allocated unchecked.

mod common;

use std::fs::File;
use std::path::Path;

use common::TempFolder;
use common::gguf::{F32, Gguf, Q8_0, array, string};
use qwen_core::checkpoint::gguf::{Array, Header, Value};
use qwen_core::{Checkpoint, Error};

fn parse(file: &[u8]) -> Result<Header, Error> {
    Header::parse(Path::new("m.gguf"), file)
}

/// The text of the error, which has these parts.
fn refused(file: &[u8], parts: &[&str]) -> String {
    let error = parse(file).expect_err("a wrong header");
    let text = error.to_string();
    let typed = matches!(error, Error::InvalidFile { .. } | Error::InvalidConfig { .. } | Error::Unsupported { .. });
    assert!(typed, "{error:?}");
    for part in ["m.gguf"].iter().chain(parts) {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    text
}

#[test]
fn a_header_is_read_as_it_was_written() {
    for version in [2, 3] {
        let file = Gguf { version, ..Gguf::model() };
        let header = parse(&file.bytes()).expect("a header");
        let metadata = &header.metadata;
        assert_eq!(metadata.iter().len(), file.entries.len());
        assert_eq!(metadata.get_str("general.architecture"), Some("qwen2"));
        assert_eq!(metadata.get_u32("qwen2.block_count"), Some(1));
        assert_eq!(metadata.get_f64("qwen2.rope.freq_base"), Some(1e6));
        assert_eq!(metadata.i32s("tokenizer.ggml.token_type"), Some(&[1, 1, 1, 3, 3, 3][..]));
        let tokens = metadata.strings("tokenizer.ggml.tokens").expect("strings");
        assert_eq!((tokens.len(), tokens.get(5)), (6, Some("<|im_end|>")));
        assert_eq!((metadata.get_str("qwen2.block_count"), metadata.get("absent")), (None, None));

        assert_eq!(header.tensors.len(), file.tensors.len());
        for (info, tensor) in header.tensors.iter().zip(&file.tensors) {
            assert_eq!(info.name, tensor.name);
            assert!(info.shape.iter().rev().map(|dim| *dim as u64).eq(tensor.dims.iter().copied()));
            assert_eq!(info.bytes(), tensor.data.len() as u64);
            assert!(info.range.start.is_multiple_of(32));
        }
    }
}

#[test]
fn every_type_of_value_is_read() {
    let numbers = |count: usize, width: usize| vec![1; count * width];
    let mut file = Gguf::new()
        .bool("bool", true)
        .str("string", "t\u{e9}xt\n")
        .raw("nested", 9, array(9, 2, &[array(5, 1, &7_i32.to_le_bytes()), array(8, 1, &string("x"))].concat()))
        .raw("empty", 9, array(6, 0, &[]))
        .raw("bools", 9, array(7, 2, &[0, 1]));
    let widths = [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (10, 8), (11, 8), (12, 8)];
    for (kind, width) in widths {
        file = file.raw(&format!("one.{kind}"), kind, numbers(1, width));
        file = file.raw(&format!("many.{kind}"), 9, array(kind, 3, &numbers(3, width)));
    }
    let metadata = parse(&file.bytes()).expect("a header").metadata;
    assert_eq!(metadata.get_bool("bool"), Some(true));
    assert_eq!(metadata.get_str("string"), Some("t\u{e9}xt\n"));
    assert_eq!(metadata.f32s("empty"), Some(&[][..]));
    assert_eq!(metadata.get("bools"), Some(&Value::Array(Array::Bool(vec![false, true]))));
    let nested = Array::Array(vec![Array::I32(vec![7]), Array::String(["x"].into_iter().collect())]);
    assert_eq!(metadata.get("nested"), Some(&Value::Array(nested)));
    let whole = [(0, 1), (1, 1), (2, 0x101), (3, 0x101), (4, 0x101_0101), (10, 0x101_0101_0101_0101)];
    for (kind, expected) in whole {
        assert_eq!(metadata.get_u64(&format!("one.{kind}")), Some(expected));
    }
    assert_eq!(metadata.get_f64("one.6"), Some(f32::from_le_bytes([1; 4]).into()));
    assert_eq!(metadata.get_f64("one.12"), Some(f64::from_le_bytes([1; 8])));
    for (kind, _) in widths {
        match metadata.get(&format!("many.{kind}")) {
            Some(Value::Array(array)) => assert_eq!(array.len(), 3),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn other_files_versions_and_byte_orders_are_named() {
    refused(b"", &["the beginning", "truncated"]);
    refused(b"PK\x03\x04 and more", &["not a GGUF file", "PK\\x03\\x04"]);
    let version = |version| Gguf { version, ..Gguf::model() }.bytes();
    refused(&version(1), &["GGUF version 1", "convert"]);
    refused(&version(4), &["version 4", "versions 2 and 3 are supported"]);
    refused(&version(0), &["version 0"]);
    for big in [2_u32, 3] {
        refused(&version(big.swap_bytes()), &["big-endian", "little-endian one"]);
    }
}

#[test]
fn counts_and_lengths_beyond_the_file_are_not_allocated() {
    for huge in [1 << 60, u64::MAX, 1 << 32] {
        let with = |counts| Gguf { counts, ..Gguf::model() }.bytes();
        refused(&with((Some(huge), None)), &["the number of tensors", "download it again"]);
        refused(&with((None, Some(huge))), &["the number of entries"]);
        refused(&Gguf::new().raw("k", 8, huge.to_le_bytes().into()).bytes(), &["key `k`", "download it again"]);
        for kind in [0, 4, 8, 9, 12] {
            refused(&Gguf::new().raw("k", 9, array(kind, huge, &[0; 64])).bytes(), &["key `k`"]);
        }
    }
    let past = Gguf::new().raw("k", 8, [&9_u64.to_le_bytes()[..], b"12345678"].concat()).bytes();
    refused(&past, &["key `k`", "needs 9 bytes at offset 45", "ends after 53"]);
}

#[test]
fn a_header_takes_a_bounded_memory_however_long_the_file_is() {
    // The counts are within the file, which is sparse.
    let file = |kind: u32, count: u64, value: &[u8]| Gguf::new().raw("k", kind, [&count.to_le_bytes(), value].concat());
    let cases = [
        file(8, 1 << 30, b""),
        Gguf::new().raw("k", 9, array(0, 1 << 30, &[])),
        Gguf::new().raw("k", 9, array(8, 1 << 30, &[])),
        Gguf::new().raw("k", 9, array(9, 1 << 30, &[])),
        Gguf { counts: (Some(1 << 30), None), ..Gguf::new() },
        Gguf { counts: (None, Some(1 << 30)), ..Gguf::new() },
    ];
    for case in cases {
        let folder = TempFolder::new().with("m.gguf", case.bytes());
        let path = folder.path().join("m.gguf");
        File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 36)).expect("a hole");
        let error = Checkpoint::open(&path).expect_err("too much").to_string();
        assert!(error.contains("takes more than 256 MiB"), "{error}");
    }
}

#[test]
fn lists_within_lists_are_bounded() {
    let nested = |depth| {
        let innermost = array(4, 1, &[0; 4]);
        let value = (1..depth).fold(innermost, |inner, _| array(9, 1, &inner));
        Gguf::new().raw("deep", 9, value).bytes()
    };
    assert!(parse(&nested(4)).is_ok());
    refused(&nested(5), &["key `deep`", "depth"]);
    refused(&nested(10_000), &["key `deep`", "depth"]);
}

#[test]
fn values_that_mean_nothing_are_refused() {
    refused(&Gguf::new().raw("flag", 7, vec![2]).bytes(), &["key `flag`", "2 is neither"]);
    refused(&Gguf::new().raw("k", 13, vec![0; 8]).bytes(), &["key `k`", "13 is not a type"]);
    refused(&Gguf::new().raw("k", 9, array(99, 1, &[0; 8])).bytes(), &["key `k`", "99 is not a type"]);
    refused(&Gguf::new().raw("k", 8, [&2_u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()).bytes(), &["not UTF-8"]);
    let key = "k".repeat(1 << 17);
    let text = refused(&Gguf::new().u32(&key, 1).bytes(), &["entry 0 of the metadata", "131072 bytes"]);
    assert!(text.len() < 200);
    let mut twice = Gguf::new().u32("k", 1).u32("l", 1);
    twice.entries[1].0 = "k".into();
    refused(&twice.bytes(), &["key `k`", "appears twice"]);
}

#[test]
fn alignments_are_powers_of_two() {
    for alignment in [0, 3, 33, u32::MAX] {
        let file = Gguf::model().u32("general.alignment", alignment).bytes();
        refused(&file, &["key `general.alignment`", "power of two", &alignment.to_string()]);
    }
    refused(&Gguf::model().str("general.alignment", "32").bytes(), &["general.alignment", "\"32\""]);
    refused(&Gguf::model().raw("general.alignment", 10, (1_u64 << 63).to_le_bytes().into()).bytes(), &["alignment"]);
    for alignment in [1, 8, 64, 4096] {
        let file = Gguf { alignment, ..Gguf::model() }.u32("general.alignment", alignment as u32);
        let header = parse(&file.bytes()).expect("a power of two");
        assert!(header.tensors.iter().all(|tensor| tensor.range.start.is_multiple_of(alignment as u64)));
    }
    // The data would begin beyond the end of the file.
    let far = Gguf::model().u32("general.alignment", 1 << 31).bytes();
    refused(&far, &["token_embd.weight", "beyond the file's end"]);
}

#[test]
fn tensors_lie_within_the_file_and_apart() {
    let model = Gguf::model;
    let tensor = "`blk.0.attn_q.weight`";
    let whole = model().bytes();
    refused(&whole[..whole.len() - 1], &["`output_norm.weight`", "beyond the file's end"]);
    refused(&model().offset("blk.0.attn_q.weight", 0).bytes(), &["within the bytes of", "token_embd.weight"]);
    refused(&model().offset("blk.0.attn_q.weight", 33).bytes(), &[tensor, "offset 33", "alignment 32"]);
    for offset in [1 << 40, 1 << 63, u64::MAX - 31] {
        refused(&model().offset("blk.0.attn_q.weight", offset).bytes(), &[tensor, "beyond the file's end"]);
    }
    let mut twice = model();
    twice.tensors[3].name = "blk.0.attn_q.weight".into();
    refused(&twice.bytes(), &[tensor, "appears twice"]);
    let dims = |dims: &[u64]| model().with_data("blk.0.attn_q.weight", dims, Q8_0, Vec::new()).bytes();
    for overflowing in [&[1 << 40, 1 << 40][..], &[32, 1 << 62], &[32, u64::MAX], &[32, 1 << 31, 1 << 31, 1 << 31]] {
        refused(&dims(overflowing), &[tensor]);
    }
    refused(&dims(&[64, 64]), &[tensor, "4.25 KiB", "beyond the file's end"]);
    refused(&dims(&[33, 64]), &[tensor, "rows of 33 values", "blocks of 32 in Q8_0"]);
    refused(&dims(&[1; 5]), &[tensor, "5 dimensions", "at most 4"]);
    let scalar = Gguf::new().with_data("s", &[], F32, vec![0; 4]).with_data("e", &[0, 7], F32, vec![]);
    let header = parse(&scalar.bytes()).expect("a scalar and a tensor without values");
    assert_eq!(header.tensors.iter().map(|tensor| tensor.bytes()).collect::<Vec<_>>(), [4, 0]);
}

#[test]
fn a_file_that_ends_anywhere_is_an_error() {
    let whole = Gguf::model().bytes();
    for len in 0..whole.len() {
        refused(&whole[..len], &["m.gguf"]);
    }
    let header = parse(&whole).expect("the whole file");
    let padded = [&whole[..], &[0; 100]].concat();
    assert_eq!(parse(&padded).expect("with bytes behind it"), header);
}
