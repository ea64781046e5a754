//! Quantising rows: the error compared with llama.cpp's on the same rows; guarantees for single values; and refusals.

use proptest::prelude::*;
use qwen_core::numerics::encoding::k_quants::KBlock;
use qwen_core::numerics::encoding::legacy::Legacy;
use qwen_core::{Encoding, Error};

/// Encodings that rows can be converted to, except those that keep values unchanged.
const BLOCKS: [Encoding; 12] = [
    Encoding::Q4_0,
    Encoding::Q4_1,
    Encoding::Q5_0,
    Encoding::Q5_1,
    Encoding::Q8_0,
    Encoding::Q2K,
    Encoding::Q3K,
    Encoding::Q4K,
    Encoding::Q5K,
    Encoding::Q6K,
    Encoding::Iq4Nl,
    Encoding::Iq4Xs,
];

const COLS: usize = 1024;
const ROWS: usize = 64;

/// Uniform numbers within (0, 1).
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn gaussian(&mut self) -> f64 {
        let (radius, angle) = (self.next(), self.next());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// Student's t with 4 degrees of freedom: its tails fall with the fifth power.
    fn heavy(&mut self) -> f64 {
        let gaussian = self.gaussian();
        gaussian / (-0.5 * (self.next() * self.next()).ln()).sqrt()
    }
}

fn rows(value: impl Fn(&mut Uniform) -> f64) -> Vec<f32> {
    let mut uniform = Uniform(1);
    (0..ROWS * COLS).map(|_| (0.02 * value(&mut uniform)) as f32).collect()
}

/// One number per column, exponentially distributed.
fn importance() -> Vec<f32> {
    let mut uniform = Uniform(2);
    (0..COLS).map(|_| (0.01 - uniform.next().ln()) as f32).collect()
}

fn quantize(encoding: Encoding, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoding.quantize_row(row, importance, &mut bytes).unwrap();
    assert_eq!(Some(bytes.len()), encoding.row_bytes(row.len()), "{encoding}");
    bytes
}

fn decode(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let block = encoding.block();
    let mut values = vec![0.0; bytes.len() / block.bytes * block.values];
    encoding.decode_row(bytes, &mut values);
    values
}

/// The root of the weighted mean square error, relative to that of the values.
fn error(encoding: Encoding, rows: &[f32], importance: Option<&[f32]>) -> f64 {
    let (mut errors, mut values) = (0.0, 0.0);
    for row in rows.chunks(COLS) {
        let decoded = decode(encoding, &quantize(encoding, row, importance));
        for (i, (value, decoded)) in row.iter().zip(&decoded).enumerate() {
            let weight = importance.map_or(1.0, |importance| f64::from(importance[i]));
            errors += weight * f64::from(value - decoded).powi(2);
            values += weight * f64::from(*value).powi(2);
        }
    }
    (errors / values).sqrt()
}

/// Errors on the gaussian and on the heavy rows, each without importances and with them: ours, and those of llama.cpp
/// (its `ggml_quantize_chunk`, as packed in llama-cpp-python 0.3.36) on the same rows. The `gguf` package measures the
/// same as llama.cpp without importances in Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1, and has no other.
const ERRORS: [(Encoding, [f64; 4], [f64; 4]); 12] = [
    (Encoding::Q4_0, [0.08117, 0.07746, 0.11349, 0.11136], [0.08633, 0.07871, 0.11839, 0.11406]),
    (Encoding::Q4_1, [0.06946, 0.06391, 0.08397, 0.07920], [0.07824, 0.06516, 0.09487, 0.08118]),
    (Encoding::Q5_0, [0.04013, 0.03826, 0.05678, 0.05538], [0.04272, 0.03898, 0.05895, 0.05644]),
    (Encoding::Q5_1, [0.03379, 0.03134, 0.04084, 0.03870], [0.03792, 0.03160, 0.04565, 0.03927]),
    (Encoding::Q8_0, [0.00537, 0.00538, 0.00743, 0.00758], [0.00537, 0.00538, 0.00744, 0.00759]),
    (Encoding::Q2K, [0.26022, 0.23061, 0.28792, 0.26043], [0.29719, 0.24296, 0.34472, 0.28128]),
    (Encoding::Q3K, [0.14373, 0.13468, 0.17614, 0.16738], [0.15106, 0.13687, 0.18451, 0.17162]),
    (Encoding::Q4K, [0.07015, 0.06474, 0.08505, 0.08055], [0.07155, 0.06623, 0.08745, 0.08307]),
    (Encoding::Q5K, [0.03483, 0.03263, 0.04217, 0.04038], [0.03616, 0.03359, 0.04414, 0.04235]),
    (Encoding::Q6K, [0.01682, 0.01579, 0.02213, 0.02156], [0.01774, 0.01644, 0.02317, 0.02232]),
    (Encoding::Iq4Nl, [0.07360, 0.06922, 0.09153, 0.08818], [0.07624, 0.07150, 0.09460, 0.09055]),
    (Encoding::Iq4Xs, [0.07422, 0.06982, 0.09251, 0.08918], [0.07686, 0.07224, 0.09558, 0.09206]),
];

#[test]
fn rows_are_nearer_than_with_the_quantisers_of_llama_cpp() {
    let (gaussian, heavy, importance) = (rows(Uniform::gaussian), rows(Uniform::heavy), importance());
    let cases = [(&gaussian, None), (&gaussian, Some(&*importance)), (&heavy, None), (&heavy, Some(&*importance))];
    for (encoding, ours, theirs) in ERRORS {
        let found = cases.map(|(rows, importance)| error(encoding, rows, importance));
        println!("{encoding}: {found:.5?}, llama.cpp {theirs:.5?}");
        for i in 0..cases.len() {
            assert!(found[i] < 1.005 * ours[i], "{encoding}, case {i}: {} instead of {}", found[i], ours[i]);
            assert!(found[i] < theirs[i] + 1e-5, "{encoding}, case {i}: {} against {}", found[i], theirs[i]);
        }
    }
}

#[test]
fn zero_and_constant_rows_stay_so() {
    for encoding in BLOCKS {
        for importance in [None, Some(&[0.0; 512][..])] {
            assert!(decode(encoding, &quantize(encoding, &[0.0; 512], importance)).iter().all(|value| *value == 0.0));
            for value in [0.37_f32, -0.37, 65504.0, -65504.0, 0.05] {
                for decoded in decode(encoding, &quantize(encoding, &[value; 512], importance)) {
                    assert!((decoded - value).abs() <= 2e-3 * value.abs(), "{encoding}: {decoded} for {value}");
                }
            }
        }
        // Nothing overflows and no step is lost: the smallest F16 number is 6e-8.
        let mut uniform = Uniform(3);
        for magnitude in [1e-42_f32, 1e-30, 1e-9, 1e-7, 1e-5, 3e4] {
            let row: Vec<f32> = (0..512).map(|_| magnitude * (2.0 * uniform.next() - 1.0) as f32).collect();
            for (value, decoded) in row.iter().zip(decode(encoding, &quantize(encoding, &row, None))) {
                assert!((value - decoded).abs() <= 0.7 * magnitude + 1e-7, "{encoding}: {decoded} for {value}");
            }
        }
    }
}

#[test]
fn plain_types_round_to_nearest() {
    let row = [1.0, -1.0 - 2f32.powi(-12), 1.0 + 3.0 * 2f32.powi(-11), 65504.0, 6e-8, -0.0];
    let halves: Vec<u8> = row.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
    assert_eq!(quantize(Encoding::F16, &row, None), halves);
    assert_eq!(decode(Encoding::F16, &halves)[2], 1.0 + 2.0 * 2f32.powi(-10));
    let bf16: Vec<u8> = row.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
    assert_eq!(quantize(Encoding::Bf16, &row, None), bf16);
    assert_eq!(decode(Encoding::F32, &quantize(Encoding::F32, &row, None)), row);
}

#[test]
fn what_cannot_be_encoded_is_refused_and_nothing_is_written() {
    let refused = |encoding: Encoding, row: &[f32], importance: Option<&[f32]>| {
        let mut out = vec![7];
        let error = encoding.quantize_row(row, importance, &mut out).unwrap_err();
        assert_eq!(out, [7], "{encoding}");
        error
    };
    for encoding in Encoding::NAMED {
        if encoding.quantize_row(&[], None, &mut Vec::new()).is_err() {
            let error = refused(encoding, &[1.0], None);
            assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(&encoding.to_string()));
            continue;
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [0.5; 512];
            row[300] = bad;
            let error = refused(encoding, &row, None).to_string();
            assert!(error.contains("`values`") && error.contains("index 300"), "{encoding}: {error}");
        }
        for bad in [f32::NAN, f32::INFINITY, -1e-30] {
            let mut importance = [0.5; 512];
            importance[511] = bad;
            let error = refused(encoding, &[0.5; 512], Some(&importance)).to_string();
            assert!(error.contains("`importance`") && error.contains("index 511"), "{encoding}: {error}");
        }
        let error = refused(encoding, &[0.5; 512], Some(&[1.0; 511])).to_string();
        assert!(error.contains("511") && error.contains("512"), "{encoding}: {error}");
        if encoding.block().values > 1 {
            let error = refused(encoding, &[0.5; 257], None).to_string();
            assert!(error.contains("257") && error.contains(&encoding.to_string()), "{encoding}: {error}");
        }
        if !matches!(encoding, Encoding::F32 | Encoding::Bf16) {
            let mut row = [0.5; 512];
            row[299] = -65520.0;
            let error = refused(encoding, &row, None).to_string();
            assert!(error.contains("-65520 at index 299"), "{encoding}: {error}");
        }
    }
    let supported = Encoding::NAMED.iter().filter(|it| it.quantize_row(&[], None, &mut Vec::new()).is_ok()).count();
    assert_eq!(supported, BLOCKS.len() + 3);
}

/// Rows of 512 values of one magnitude with some outliers and zeros.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![8 => -1f32..1.0, 1 => -30f32..30.0, 1 => Just(0.0)];
    (prop::collection::vec(value, 512), -20i32..11).prop_map(|(row, exponent)| {
        let magnitude = 2f32.powi(exponent);
        row.into_iter().map(|value| magnitude * value).collect()
    })
}

/// Each value is within half a step of what it decodes to, unless its code is the lowest or the highest.
fn within_half_a_step(values: &[f32], decoded: &[f32], codes: &[u8], highest: u8, step: f32) {
    for ((value, decoded), code) in values.iter().zip(decoded).zip(codes) {
        let inside = *code > 0 && *code < highest;
        let error = (value - decoded).abs();
        assert!(!inside || error <= 0.5001 * step.abs() + 1e-6 * value.abs(), "{value} as {decoded}, step {step}");
    }
}

fn check_legacy<const BYTES: usize>(
    encoding: Encoding,
    row: &[f32],
    importance: Option<&[f32]>,
    unpack: fn(&[u8; BYTES]) -> Legacy,
) {
    let bytes = quantize(encoding, row, importance);
    let highest = if matches!(encoding, Encoding::Q4_0 | Encoding::Q4_1) { 15 } else { 31 };
    for ((block, values), decoded) in
        bytes.as_chunks().0.iter().zip(row.chunks(32)).zip(decode(encoding, &bytes).chunks(32))
    {
        let Legacy { scale, codes, .. } = unpack(block);
        within_half_a_step(values, decoded, &codes, highest, scale.to_f32());
    }
}

fn check_k<const GROUPS: usize, const BYTES: usize>(
    encoding: Encoding,
    row: &[f32],
    importance: Option<&[f32]>,
    highest: u8,
    unpack: fn(&[u8; BYTES]) -> KBlock<GROUPS>,
) {
    let bytes = quantize(encoding, row, importance);
    let decoded = decode(encoding, &bytes);
    for ((block, values), decoded) in bytes.as_chunks().0.iter().zip(row.chunks(256)).zip(decoded.chunks(256)) {
        let block = unpack(block);
        let size = 256 / GROUPS;
        for group in 0..GROUPS {
            let range = group * size..(group + 1) * size;
            // A scale of 0 is taken where that of 1 is no better.
            let step = block.d.to_f32() * f32::from(block.scales[group].unsigned_abs().max(1));
            let codes = &block.codes.as_flattened()[range.clone()];
            within_half_a_step(&values[range.clone()], &decoded[range], codes, highest, step);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_are_within_half_a_step(row in any_row(), weights in prop::collection::vec(0f32..9.0, 512), weighted: bool) {
        let importance = weighted.then_some(&weights[..]);
        check_legacy(Encoding::Q4_0, &row, importance, Legacy::from_q4_0);
        check_legacy(Encoding::Q4_1, &row, importance, Legacy::from_q4_1);
        check_legacy(Encoding::Q5_0, &row, importance, Legacy::from_q5_0);
        check_legacy(Encoding::Q5_1, &row, importance, Legacy::from_q5_1);
        check_k(Encoding::Q2K, &row, importance, 3, KBlock::from_q2_k);
        check_k(Encoding::Q3K, &row, importance, 7, KBlock::from_q3_k);
        check_k(Encoding::Q4K, &row, importance, 15, KBlock::from_q4_k);
        check_k(Encoding::Q5K, &row, importance, 31, KBlock::from_q5_k);
        check_k(Encoding::Q6K, &row, importance, 63, KBlock::from_q6_k);
        // Nothing is cut off in Q8_0.
        let decoded = decode(Encoding::Q8_0, &quantize(Encoding::Q8_0, &row, importance));
        for (values, decoded) in row.chunks(32).zip(decoded.chunks(32)) {
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            // The scale is the nearest F16, or the next one: of the smallest, one is the next's double.
            let step = (largest / 127.0) * 1.001 + 2f32.powi(-24);
            within_half_a_step(values, decoded, &[1; 32], 2, step);
        }
    }

    #[test]
    fn decoded_q8_0_rows_encode_to_the_same_bytes(row in any_row()) {
        for block in row.chunks(32).filter(|block| block.iter().any(|value| value.abs() >= 2f32.powi(-10))) {
            let bytes = quantize(Encoding::Q8_0, block, None);
            prop_assert_eq!(quantize(Encoding::Q8_0, &decode(Encoding::Q8_0, &bytes), None), bytes);
        }
    }

    #[test]
    fn only_the_proportions_of_importances_count(row in any_row(), weights in prop::collection::vec(0f32..9.0, 512)) {
        let scaled: Vec<f32> = weights.iter().map(|weight| weight * 2f32.powi(100)).collect();
        for encoding in BLOCKS {
            prop_assert_eq!(quantize(encoding, &row, Some(&weights)), quantize(encoding, &row, Some(&scaled)));
        }
    }
}
