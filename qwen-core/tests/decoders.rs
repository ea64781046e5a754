//! The scalar decoders of block formats: bit-equal to the golden blocks, and to blocks of the formats with grids that
//! the `gguf` package decoded (`tools/grid-blocks.py`).

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qwen_core::checkpoint::Header;
use qwen_core::numerics::encoding::grids;
use qwen_core::numerics::encoding::k_quants::KBlock;
use qwen_core::numerics::encoding::legacy::Legacy;
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding, iq4};
use qwen_core::{Encoding, Error};

/// The encodings whose points are looked up in a grid.
const GRIDS: [Encoding; 5] = [Encoding::Iq2Xxs, Encoding::Iq2Xs, Encoding::Iq2S, Encoding::Iq3Xxs, Encoding::Iq3S];

fn tensors(path: &Path) -> HashMap<String, Vec<u8>> {
    let file = std::fs::read(path).expect("a file of blocks");
    let header = Header::parse(path, &file).expect("a header");
    let data = |range: &std::ops::Range<u64>| file[range.start as usize..range.end as usize].to_vec();
    header.tensors.iter().map(|tensor| (tensor.name.to_string(), data(&tensor.range))).collect()
}

fn grid_blocks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/grid-blocks.safetensors")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn decode(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let block = encoding.block();
    let mut values = vec![0.0; bytes.len() / block.bytes * block.values];
    encoding.decode_row(bytes, &mut values);
    values
}

#[test]
fn blocks_decode_to_the_bits_of_the_golden_ones() {
    let Some(golden) = common::golden() else { return };
    let tensors = tensors(&golden.join("blocks.safetensors"));
    let mut checked = 0;
    for encoding in Encoding::NAMED {
        let name = encoding.to_string().to_lowercase();
        let (Some(bytes), Some(values)) =
            (tensors.get(&format!("{name}.bytes")), tensors.get(&format!("{name}.values")))
        else {
            continue;
        };
        assert_eq!(bits(&decode(encoding, bytes)), bits(&floats(values)), "{encoding}");
        checked += 1;
        println!("{encoding}: {} values", values.len() / 4);
    }
    assert_eq!(checked, 12);
}

#[test]
fn every_point_of_every_grid_decodes_to_the_bits_of_the_gguf_package() {
    let tensors = tensors(&grid_blocks());
    for encoding in GRIDS {
        let name = encoding.to_string().to_lowercase();
        let values = decode(encoding, &tensors[&format!("{name}.bytes")]);
        let expected = floats(&tensors[&format!("{name}.values")]);
        assert_eq!(bits(&values[..expected.len()]), bits(&expected), "{encoding}");
        let digests =
            tensors[&format!("{name}.digests")].as_chunks().0.iter().map(|digest| u64::from_le_bytes(*digest));
        let fnv1a = |block: &[f32]| {
            let bytes = block.iter().flat_map(|value| value.to_le_bytes());
            bytes.fold(0xcbf2_9ce4_8422_2325, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        };
        assert_eq!(values.chunks(256).map(fnv1a).collect::<Vec<u64>>(), digests.collect::<Vec<_>>(), "{encoding}");
    }
}

#[test]
fn grids_have_no_point_twice_and_signs_are_even() {
    fn distinct<const DIMS: usize>(grid: &[[u8; DIMS]]) -> bool {
        grid.iter().collect::<std::collections::HashSet<_>>().len() == grid.len()
    }
    assert!(distinct(&grids::IQ2_XXS) && distinct(&grids::IQ2_XS) && distinct(&grids::IQ2_S));
    assert!(distinct(&grids::IQ3_XXS) && distinct(&grids::IQ3_S));
    for bits in 0..=255 {
        let signs = grids::signs(bits);
        assert!(signs & 0x7f == bits & 0x7f && signs.count_ones().is_multiple_of(2));
    }
    assert!(iq4::LEVELS.is_sorted());
}

#[test]
fn incomplete_blocks_are_left_alone() {
    let group = Encoding::Group(GroupEncoding { bits: GroupBits::Four, group_size: 128 });
    for encoding in Encoding::NAMED.into_iter().chain([group]) {
        let block = encoding.block();
        let bytes = vec![0x11; 3 * block.bytes - 1];
        let mut values = vec![f32::INFINITY; 4 * block.values];
        encoding.decode_row(&bytes, &mut values);
        assert!(values[..2 * block.values].iter().all(|value| value.is_finite()), "{encoding}");
        assert!(values[2 * block.values..].iter().all(|value| value.is_infinite()), "{encoding}");
        let mut values = vec![f32::INFINITY; 2 * block.values - 1];
        encoding.decode_row(&bytes, &mut values);
        assert!(values[..block.values].iter().all(|value| value.is_finite()), "{encoding}");
        assert!(values[block.values..].iter().all(|value| value.is_infinite()), "{encoding}");
        encoding.decode_row(&[], &mut []);
    }
}

#[test]
fn groups_decode_by_scale_and_zero_point() {
    let head = |scale: f32, zero: u16| [half::f16::from_f32(scale).to_le_bytes(), zero.to_le_bytes()].concat();
    let four = Encoding::Group(GroupEncoding { bits: GroupBits::Four, group_size: 32 });
    let codes: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let values: Vec<f32> = (0..16).flat_map(|i| [0.5 * (i as f32 - 7.0), 0.5 * (8.0 - i as f32)]).collect();
    assert_eq!(decode(four, &[head(0.5, 7), codes].concat()), values);
    let eight = Encoding::Group(GroupEncoding { bits: GroupBits::Eight, group_size: 32 });
    let codes: Vec<u8> = (0..32).map(|i| 8 * i).collect();
    // The first version of GPTQ stores one less than the zero point, so that 256 occurs.
    let values: Vec<f32> = (0..32).map(|i| 0.25 * (8 * i - 256) as f32).collect();
    assert_eq!(decode(eight, &[head(0.25, 256), codes].concat()), values);
}

#[test]
fn names_are_read_in_capitals_or_not() {
    for encoding in Encoding::NAMED {
        let name = encoding.to_string();
        assert_eq!(name.parse::<Encoding>().unwrap(), encoding);
        assert_eq!(name.to_lowercase().parse::<Encoding>().unwrap(), encoding);
    }
    for name in ["", "Q4_K_M", "INT4 in groups of 128", "q4k", " Q4_K"] {
        match name.parse::<Encoding>() {
            Err(Error::InvalidArgument { name: "encoding", reason }) => {
                assert!(reason.contains(&format!("`{name}`")) && reason.contains("BF16, Q4_0, "), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_taken_apart_are_put_together_to_the_same_bytes(bytes in prop::collection::vec(any::<u8>(), 210)) {
        prop_assert_eq!(&Legacy::from_q4_0(bytes.first_chunk().unwrap()).to_q4_0(), &bytes[..18]);
        prop_assert_eq!(&Legacy::from_q4_1(bytes.first_chunk().unwrap()).to_q4_1(), &bytes[..20]);
        prop_assert_eq!(&Legacy::from_q5_0(bytes.first_chunk().unwrap()).to_q5_0(), &bytes[..22]);
        prop_assert_eq!(&Legacy::from_q5_1(bytes.first_chunk().unwrap()).to_q5_1(), &bytes[..24]);
        prop_assert_eq!(&KBlock::from_q2_k(bytes.first_chunk().unwrap()).to_q2_k(), &bytes[..84]);
        prop_assert_eq!(&KBlock::from_q3_k(bytes.first_chunk().unwrap()).to_q3_k(), &bytes[..110]);
        prop_assert_eq!(&KBlock::from_q4_k(bytes.first_chunk().unwrap()).to_q4_k(), &bytes[..144]);
        prop_assert_eq!(&KBlock::from_q5_k(bytes.first_chunk().unwrap()).to_q5_k(), &bytes[..176]);
        prop_assert_eq!(&KBlock::from_q6_k(bytes.first_chunk().unwrap()).to_q6_k(), &bytes[..210]);
    }
}
