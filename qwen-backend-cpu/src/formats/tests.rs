//! Packed blocks decode to what the format defines, bit for bit, in every group and lane.

use qwen_conformance::{Rng, random_blocks};
use qwen_core::Encoding;
use qwen_core::backend::{MatrixPart, WeightRole, WeightView};
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};

use super::group_bytes;
use crate::matrix::Matrix;

fn encodings() -> impl Iterator<Item = Encoding> {
    let blocks = Encoding::NAMED.into_iter().filter(|encoding| encoding.block().values > 1);
    let group = |bits, group_size| Encoding::Group(GroupEncoding { bits, group_size });
    let groups = [GroupBits::Four, GroupBits::Eight]
        .into_iter()
        .flat_map(move |bits| [32, 64, 128].map(|size| group(bits, size)));
    blocks.chain(groups)
}

#[test]
fn rows_decode_to_what_was_packed() {
    for encoding in encodings() {
        let (rows, cols) = (37, 3 * encoding.block().values);
        let bytes = random_blocks(&mut Rng::of(&[5]), encoding, rows, cols);
        let part = MatrixPart::whole(encoding, rows, cols, &bytes).unwrap();
        for role in [WeightRole::Embedding, WeightRole::GateUp] {
            let parts = vec![part.clone(); if role == WeightRole::GateUp { 2 } else { 1 }];
            let view = WeightView { name: "test", role, parts: &parts };
            let pack = |count, f: &(dyn Fn(usize) + Sync)| {
                (0..count).for_each(f);
                Ok(())
            };
            let matrix = Matrix::pack(&view, pack).unwrap();
            let (mut got, mut expected) = (vec![0.0; cols], vec![0.0; cols]);
            for row in 0..view.rows() {
                matrix.decode_row(row, &mut got);
                encoding.decode_row(&bytes[row % rows * encoding.bytes(cols)..], &mut expected);
                let same = got.iter().zip(&expected).all(|(a, b)| a == b);
                assert!(same, "{encoding}, row {row}:\n{got:?}\n{expected:?}");
            }
        }
    }
}

#[test]
fn packing_adds_nothing_but_padding() {
    for encoding in encodings() {
        // As wide as the narrowest projection of the model family that each format can encode.
        let cols = if encoding.block().values == 256 { 1536 } else { 896 };
        let (scales, codes) = group_bytes(encoding, cols).unwrap();
        let stored = 16 * encoding.bytes(cols);
        let ratio = (scales + codes) as f64 / stored as f64;
        assert!(ratio <= 1.02, "{encoding}: {scales} + {codes} bytes for {stored}");
    }
}
