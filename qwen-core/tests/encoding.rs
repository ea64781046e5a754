//! Encodings, blocks, and stored matrices as rows of blocks: cuts at block boundaries, and sizes beyond any memory.

use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{
    Backend, KvSpec, Linear, MatrixPart, ReadBytes, RowReader, WeightRole, WeightShape, WeightView,
};
use qwen_core::model::source::WeightSource;
use qwen_core::model::spec::{Cut, ModelSpec, WeightSpec};
use qwen_core::numerics::encoding::Block;
use qwen_core::{Encoding, Error, Result};

const ENCODINGS: [Encoding; 4] = [Encoding::F32, Encoding::F16, Encoding::Bf16, Encoding::Q8_0];

/// Sizes whose products overflow.
const EXTREMES: [usize; 6] = [1 << 31, 1 << 32, 1 << 53, 1 << 60, usize::MAX - 1, usize::MAX];

/// The bytes of a row `row` of `cols` columns and its values: whole numbers where the encoding holds them exactly, else
/// what arbitrary bytes decode to.
fn encode(encoding: Encoding, row: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let values: Vec<f32> = (0..cols).map(|col| ((row * 31 + col * 7) % 200) as f32 - 100.0).collect();
    let bytes = match encoding {
        Encoding::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Encoding::F16 => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
        Encoding::Bf16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
        Encoding::Q8_0 => values
            .chunks(32)
            .flat_map(|block| {
                let scale = half::f16::from_f32(1.0).to_le_bytes();
                scale.into_iter().chain(block.iter().map(|value| *value as i8 as u8))
            })
            .collect(),
        other => {
            // Below the F16 numbers that are not finite.
            let bytes: Vec<u8> = (0..other.bytes(cols)).map(|i| ((row * 31 + i * 7) % 0x78) as u8).collect();
            let mut values = vec![0.0; cols];
            other.decode_row(&bytes, &mut values);
            return (bytes, values);
        }
    };
    (bytes, values)
}

/// A stored matrix that counts what is read of it.
#[derive(Debug)]
struct Stored(Vec<u8>, std::sync::atomic::AtomicUsize);

impl ReadBytes for Stored {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.0[offset as usize..][..out.len()]);
        self.1.fetch_add(out.len(), std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

fn range(size: usize) -> impl Strategy<Value = Range<usize>> {
    (0..=size, 0..=size).prop_map(|(a, b)| a.min(b)..a.max(b))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_whole_blocks_of_any_size(values in 1usize..300, bytes in 1usize..300, cols in range(1 << 20)) {
        let block = Block { values, bytes };
        let whole = cols.start % values == 0 && cols.end % values == 0;
        match block.byte_range(cols.clone()) {
            Some(range) => {
                prop_assert!(whole);
                prop_assert_eq!(range.len(), cols.len() / values * bytes);
                prop_assert_eq!(range.start, cols.start / values * bytes);
                prop_assert_eq!(block.row_bytes(cols.len()), Some(range.len()));
            }
            None => prop_assert!(!whole),
        }
    }

    #[test]
    fn any_size_is_counted_exactly_or_not_at_all(values in 1usize..300, bytes in 0usize.., rows in 0usize.., cols in 0usize..) {
        let block = Block { values, bytes };
        let exact = (cols % values == 0).then(|| (cols / values) as u128 * bytes as u128);
        prop_assert_eq!(block.row_bytes(cols).map(|n| n as u128), exact.filter(|n| *n <= usize::MAX as u128));
        let all = block.row_bytes(cols).map(|row| row as u128 * rows as u128);
        prop_assert_eq!(block.matrix_bytes(rows, cols).map(u128::from), all.filter(|n| *n <= u128::from(u64::MAX)));
    }

    #[test]
    fn a_cut_has_the_values_of_its_columns_and_reads_no_others(
        encoding in prop::sample::select(Encoding::NAMED.to_vec()),
        (rows, blocks) in (1usize..9, 1usize..5),
        picks in (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        // Blocks of one value are taken eight at a time, so that there is something to cut.
        let unit = encoding.block().values.max(8);
        let cols = unit * blocks;
        let ordered = |a: prop::sample::Index, b: prop::sample::Index, size: usize| {
            let (a, b) = (a.index(size + 1), b.index(size + 1));
            a.min(b)..a.max(b)
        };
        let (row_cut, col_cut) = (ordered(picks.0, picks.1, rows), ordered(picks.2, picks.3, cols));
        let stored: Vec<_> = (0..rows).map(|row| encode(encoding, row, cols)).collect();
        let bytes: Vec<u8> = stored.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let file = Stored(bytes.clone(), 0.into());
        let whole = [
            MatrixPart::whole(encoding, rows, cols, &bytes).unwrap(),
            MatrixPart::stored(encoding, rows, cols, &file).unwrap(),
        ];
        for whole in whole {
            let cut = whole.cut(row_cut.clone(), col_cut.clone());
            let at_borders = col_cut.start % encoding.block().values == 0 && col_cut.end % encoding.block().values == 0;
            prop_assert_eq!(cut.is_ok(), at_borders);
            let Ok(cut) = cut else {
                let error = cut.unwrap_err().to_string();
                let block = format!("{} values", encoding.block().values);
                prop_assert!(error.contains(&encoding.to_string()) && error.contains(&block), "{}", error);
                continue;
            };
            file.1.store(0, std::sync::atomic::Ordering::Relaxed);
            let mut buffer = vec![1, 2, 3];
            let read = cut.read(0..cut.rows, &mut buffer).unwrap().to_vec();
            prop_assert_eq!(read.len(), encoding.row_bytes(col_cut.len()).unwrap() * row_cut.len());
            let asked = file.1.load(std::sync::atomic::Ordering::Relaxed);
            prop_assert!(asked == 0 || asked == read.len(), "{} of {} bytes", asked, read.len());
            let mut decoded = vec![0.0; col_cut.len() * row_cut.len()];
            encoding.decode_row(&read, &mut decoded);
            let expected: Vec<f32> =
                stored[row_cut.clone()].iter().flat_map(|(_, values)| values[col_cut.clone()].to_vec()).collect();
            prop_assert_eq!(&decoded, &expected);
            // The same rows one by one, and cut once more.
            let mut reader = RowReader::new(&cut);
            for row in (0..cut.rows).rev() {
                let bytes = read.len() / cut.rows;
                prop_assert_eq!(reader.row(row).unwrap(), &read[row * bytes..][..bytes]);
            }
            prop_assert!(reader.row(cut.rows).is_err());
            let again = cut.cut(0..cut.rows, 0..cut.cols).unwrap();
            prop_assert_eq!(again.read(0..cut.rows, &mut buffer).unwrap(), &read[..]);
        }
    }

    #[test]
    fn no_shape_reads_beyond_its_data(rows in 0usize..40, cols in 0usize..40, row_bytes in 0usize..100, len in 0usize..4000) {
        let data = vec![7; len];
        let needed = if rows == 0 { 0 } else { (rows - 1) * row_bytes + 4 * cols };
        match MatrixPart::strided(Encoding::F32, rows, cols, row_bytes, &data) {
            Ok(part) => {
                prop_assert!(needed <= len);
                let mut buffer = Vec::new();
                prop_assert_eq!(part.read(0..rows, &mut buffer).unwrap().len(), 4 * rows * cols);
            }
            Err(_) => prop_assert!(needed > len),
        }
    }
}

#[test]
fn sizes_that_no_memory_has_are_typed_errors() {
    for encoding in ENCODINGS {
        for rows in EXTREMES {
            for cols in EXTREMES {
                assert!(MatrixPart::whole(encoding, rows, cols, &[0; 64]).is_err(), "{encoding} {rows} x {cols}");
                let shape = WeightShape { role: WeightRole::Linear, parts: vec![(encoding, rows); 3], cols };
                if let Ok(bytes) = shape.stored_bytes() {
                    assert!(u128::from(bytes) >= rows as u128 * cols as u128, "{encoding} {rows} x {cols}");
                }
                assert!(shape.rows() >= rows);
            }
        }
    }
    let data = [0; 64];
    let part = MatrixPart::whole(Encoding::F32, 4, 4, &data).unwrap();
    let mut buffer = Vec::new();
    for extreme in EXTREMES {
        for (rows, cols) in [(extreme..extreme, 0..4), (0..extreme, 0..4), (0..4, extreme..extreme), (0..4, 0..extreme)]
        {
            assert!(matches!(part.cut(rows, cols), Err(Error::InvalidArgument { .. })));
        }
        assert!(part.read(0..extreme, &mut buffer).is_err() && part.read(extreme..extreme, &mut buffer).is_err());
        assert!(RowReader::new(&part).row(extreme).is_err());
        // A row stride that was set by hand.
        let mut far = part.clone();
        far.row_bytes = extreme;
        assert!(far.read(0..4, &mut buffer).is_err() && far.read(3..4, &mut buffer).is_err());
        assert!(MatrixPart::strided(Encoding::F32, 4, 4, extreme, &data).is_err());
        let zeros = MatrixPart::strided(Encoding::F32, extreme, 4, 0, &data).unwrap();
        assert_eq!(zeros.read(extreme - 1..extreme, &mut buffer).unwrap(), [0; 16]);
    }
    let spec = |num_blocks| KvSpec {
        key_encodings: vec![Encoding::F32; 24],
        value_encoding: Encoding::F16,
        num_blocks,
        block_size: 16,
        num_key_value_heads: 2,
        head_dim: 64,
    };
    assert_eq!(spec(3).stored_bytes(), 24 * 3 * 16 * 2 * 64 * 6);
    for extreme in EXTREMES {
        let bytes = u128::from(spec(extreme).stored_bytes());
        assert!(bytes == u128::from(u64::MAX) || bytes == extreme as u128 * 24 * 16 * 2 * 64 * 6, "{extreme}: {bytes}");
    }
}

#[test]
fn the_reference_multiplies_blocks_and_mixed_parts() {
    let mut b = Reference::new();
    let (rows, cols) = (5, 96);
    let stored: Vec<_> = ENCODINGS
        .iter()
        .map(|encoding| {
            let rows: Vec<_> = (0..rows).map(|row| encode(*encoding, row, cols)).collect();
            rows.iter().flat_map(|(bytes, _)| bytes.clone()).collect::<Vec<u8>>()
        })
        .collect();
    // The middle block of each.
    let parts: Vec<_> = ENCODINGS
        .iter()
        .zip(&stored)
        .map(|(encoding, bytes)| MatrixPart::whole(*encoding, rows, cols, bytes)?.cut(1..4, 32..64))
        .collect::<Result<_>>()
        .unwrap();
    let w = b.load(&WeightView { name: "mixed", role: WeightRole::Linear, parts: &parts }).unwrap();
    let mut x = b.alloc(32).unwrap();
    b.write(&mut x, &[1.0; 32]).unwrap();
    let mut out = b.alloc(12).unwrap();
    b.linear(Linear { x: &x, w: &w, bias: None, out: &mut out, rows: 1 }).unwrap();
    let mut sums = [0.0; 12];
    b.read(&out, &mut sums).unwrap();
    let expected: Vec<f32> = (1..4).map(|row| encode(Encoding::F32, row, cols).1[32..64].iter().sum()).collect();
    for part in sums.chunks(3) {
        assert_eq!(part, expected);
    }
    let uneven = [parts[0].clone(), parts[1].cut(0..3, 0..16).unwrap()];
    let error = b.load(&WeightView { name: "uneven", role: WeightRole::Linear, parts: &uneven }).unwrap_err();
    assert!(error.to_string().contains("`uneven`"), "{error}");
}

/// Headers of a checkpoint in blocks of 32.
struct Blocks;

impl WeightSource for Blocks {
    fn matrix(&self, _: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        MatrixPart::whole(Encoding::Q8_0, rows, cols, &[])
    }

    fn vector(&self, _: &str, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn encoding(&self, _: &str) -> Result<Encoding> {
        Ok(Encoding::Q8_0)
    }
}

#[test]
fn ranks_share_whole_blocks_or_are_refused_by_name() {
    let config = qwen_core::Config::from_json(Path::new("config.json"), include_str!("data/config-0.5b-instruct.json"));
    let spec = ModelSpec::new(&config.unwrap());
    let whole: Vec<WeightSpec> = spec.weights();
    for weight in &whole {
        let shape = weight.shape(&Blocks).unwrap();
        assert_eq!(shape.stored_bytes().unwrap(), (shape.rows() * shape.cols / 32 * 34) as u64);
    }
    // 4864 columns over 2 ranks are 76 blocks each.
    let shard =
        |ranks| spec.clone().shard(qwen_core::backend::collective::Shard { rank: 1, world_size: ranks }).unwrap();
    assert!(shard(2).down_proj(0).shape(&Blocks).is_ok());
    let Cut { tensor, cols, .. } = spec.down_proj(3).cuts.remove(0);
    let within = WeightSpec {
        cuts: vec![Cut { tensor, shape: (896, cols.end), rows: 0..896, cols: 16..cols.end }],
        ..spec.down_proj(3)
    };
    match within.shape(&Blocks) {
        Err(Error::Unsupported { what, reason }) => {
            assert!(
                what.contains("layers.3.mlp.down_proj") && what.contains("16..4864") && what.contains("Q8_0"),
                "{what}"
            );
            assert!(reason.contains("32"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
