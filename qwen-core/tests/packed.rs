//! GPTQ and AWQ matrices: read as rows of blocks, with the values that the formats define, in any shape and column
//! order, from any number of threads.

mod common;

use std::fs;

use common::packer::{Matrix, Method, config};
use common::{TempFolder, safetensors_of};
use half::f16;
use proptest::prelude::*;
use qwen_core::backend::{MatrixPart, RowReader};
use qwen_core::checkpoint::Header;
use qwen_core::{Checkpoint, Encoding, Error};

const METHODS: [(Method, usize); 5] =
    [(Method::GptqV1, 4), (Method::GptqV1, 8), (Method::GptqV2, 4), (Method::GptqV2, 8), (Method::Awq, 4)];

/// A checkpoint whose only module is `m`.
fn folder(matrix: &Matrix) -> TempFolder {
    TempFolder::new()
        .with("config.json", config(&matrix.quantization()))
        .with("model.safetensors", safetensors_of(&matrix.tensors("m")))
}

/// All values of a part, its columns in the order of the input features.
fn decode(part: &MatrixPart<'_>) -> Vec<f32> {
    let mut buffer = Vec::new();
    let bytes = part.read(0..part.rows, &mut buffer).expect("the rows");
    let mut stored = vec![0.0; part.rows * part.cols];
    part.encoding.decode_row(bytes, &mut stored);
    let Some(order) = &part.column_order else { return stored };
    let mut values = vec![0.0; stored.len()];
    for (values, stored) in values.chunks_mut(part.cols).zip(stored.chunks(part.cols)) {
        order.iter().zip(stored).for_each(|(&col, value)| values[col as usize] = *value);
    }
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_golden_blocks_decode_to_their_values() {
    let Some(golden) = common::golden() else { return };
    let path = golden.join("blocks.safetensors");
    let file = fs::read(&path).expect("the golden blocks");
    let header = Header::parse(&path, &file).expect("a header");
    let gptq = |bits: usize, format: &str| {
        serde_json::json!({
            "quant_method": "gptq", "bits": bits, "group_size": 128, "checkpoint_format": format,
        })
    };
    let awq = serde_json::json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "GEMM"});
    for (name, quantization, ordered) in [
        ("gptq4", gptq(4, "gptq"), false),
        ("gptq4-asym-desc-act", gptq(4, "gptq"), true),
        ("gptq4-v2", gptq(4, "gptq_v2"), false),
        ("gptq8", gptq(8, "gptq"), false),
        ("gptq8-asym", gptq(8, "gptq"), false),
        ("awq4", awq, false),
    ] {
        let tensors: Vec<_> = header
            .tensors
            .iter()
            .filter_map(|tensor| Some((tensor, tensor.name.strip_prefix(name)?.strip_prefix('.')?)))
            .map(|(tensor, part)| {
                let data = file[tensor.range.start as usize..tensor.range.end as usize].to_vec();
                let dtype = ["I32", "F16", "F32"].into_iter().find(|dtype| *dtype == tensor.dtype).expect("a type");
                (format!("m.{part}"), dtype, tensor.shape.clone(), data)
            })
            .collect();
        let folder = TempFolder::new()
            .with("config.json", config(&quantization))
            .with("model.safetensors", safetensors_of(&tensors));
        let checkpoint = Checkpoint::open(folder.path()).expect(name);
        let part = checkpoint.matrix("m.weight", 48, 256).expect(name);
        assert_eq!(part.column_order.is_some(), ordered, "{name}");
        assert_eq!(part.encoding, checkpoint.encoding("m.weight").expect(name));
        let expected = checkpoint.tensor_of_shape("m.values", &[48, 256]).expect(name).to_f32();
        let same = decode(&part).iter().zip(&expected).all(|(value, expected)| value.to_bits() == expected.to_bits());
        assert!(same, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_matrix_decodes_to_the_formula(
        (method, bits_of_code) in prop::sample::select(METHODS.to_vec()),
        (octets, units, group_units) in (1usize..40, 1usize..6, prop::sample::select(vec![1usize, 2, 3, 4, 5, 8])),
        (seed, shuffled) in (any::<u64>(), any::<bool>()),
        rows in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        groups in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        // Widths that are multiples of the group only, as in models whose intermediate size was padded to it.
        let shape = [8 * octets, 32 * group_units * units, 32 * group_units];
        let mut matrix = Matrix::random(method, bits_of_code, shape, seed);
        if shuffled && method != Method::Awq {
            let mut state = seed | 1;
            for col in (1..matrix.cols).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                matrix.g_idx.swap(col, (state >> 33) as usize % (col + 1));
            }
        }
        let folder = folder(&matrix);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let part = checkpoint.matrix("m.weight", matrix.rows, matrix.cols).unwrap();
        prop_assert!(matches!(part.encoding, Encoding::Group(group) if group.group_size as usize == matrix.group_size));
        let expected = matrix.values();
        prop_assert_eq!(bits(&decode(&part)), bits(&expected));

        // The same, one row after the other.
        let mut reader = RowReader::new(&part);
        let mut buffer = Vec::new();
        let all = part.read(0..part.rows, &mut buffer).unwrap();
        for (row, bytes) in all.chunks_exact(part.row_bytes).enumerate() {
            prop_assert_eq!(reader.row(row).unwrap(), bytes);
        }

        // A rectangle.
        let ordered = |(a, b): (prop::sample::Index, prop::sample::Index), size: usize| {
            let (a, b) = (a.index(size + 1), b.index(size + 1));
            a.min(b)..a.max(b)
        };
        let (row_cut, groups) = (ordered(rows, matrix.rows), ordered(groups, matrix.groups()));
        let col_cut = groups.start * matrix.group_size..groups.end * matrix.group_size;
        match part.cut(row_cut.clone(), col_cut.clone()) {
            Ok(cut) => {
                let rows = expected.chunks(matrix.cols).take(row_cut.end).skip(row_cut.start);
                let expected: Vec<f32> = rows.flat_map(|row| row[col_cut.clone()].to_vec()).collect();
                prop_assert_eq!(bits(&decode(&cut)), bits(&expected));
                let again = cut.cut(0..cut.rows, 0..cut.cols).unwrap();
                prop_assert_eq!(bits(&decode(&again)), bits(&expected));
            }
            Err(error) => {
                prop_assert!(part.column_order.is_some(), "{}", error);
                prop_assert!(error.to_string().contains("another order"), "{}", error);
            }
        }
    }
}

#[test]
fn columns_are_cut_at_the_borders_of_groups() {
    let matrix = Matrix::random(Method::GptqV1, 4, [16, 256, 64], 1);
    let folder = folder(&matrix);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let part = checkpoint.matrix("m.weight", 16, 256).unwrap();
    assert!(part.cut(3..9, 64..192).is_ok());
    let error = part.cut(0..16, 32..256).unwrap_err().to_string();
    assert!(
        error.contains("INT4 in groups of 64") && error.contains("32..256") && error.contains("64 values"),
        "{error}"
    );
}

#[test]
fn rows_are_read_from_several_threads() {
    for (method, bits_of_code) in METHODS {
        let mut matrix = Matrix::random(method, bits_of_code, [264, 1536, 32], 7);
        if method == Method::GptqV2 {
            matrix.g_idx.reverse();
        }
        let folder = folder(&matrix);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let part = checkpoint.matrix("m.weight", matrix.rows, matrix.cols).unwrap();
        let mut buffer = Vec::new();
        let expected = {
            let part = checkpoint.matrix("m.weight", matrix.rows, matrix.cols).unwrap();
            part.read(0..part.rows, &mut buffer).unwrap().to_vec()
        };
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (part, expected) = (&part, &expected);
                scope.spawn(move || {
                    let mut buffer = Vec::new();
                    for i in 0..part.rows / 8 {
                        let first = (i + thread * 5) % (part.rows / 8) * 8;
                        let rows = part.read(first..first + 8, &mut buffer).unwrap();
                        assert_eq!(rows, &expected[first * part.row_bytes..][..rows.len()], "{method:?}");
                    }
                });
            }
        });
    }
}

#[test]
fn columns_in_order_need_no_order() {
    let mut matrix = Matrix::random(Method::GptqV1, 4, [8, 128, 32], 3);
    let folder_of = |matrix: &Matrix| folder(matrix);
    let in_order = folder_of(&matrix);
    let checkpoint = Checkpoint::open(in_order.path()).unwrap();
    assert_eq!(checkpoint.matrix("m.weight", 8, 128).unwrap().column_order, None);
    assert_eq!(checkpoint.column_order("m.weight").unwrap(), None);
    // Whole groups in another order.
    matrix.g_idx = (0..128).map(|col| 3 - col / 32).collect();
    let reversed = folder_of(&matrix);
    let checkpoint = Checkpoint::open(reversed.path()).unwrap();
    let part = checkpoint.matrix("m.weight", 8, 128).unwrap();
    let expected: Vec<u32> = (0..4).rev().flat_map(|group| 32 * group..32 * (group + 1)).collect();
    assert_eq!(part.column_order.as_deref(), Some(expected.as_slice()));
    assert_eq!(checkpoint.column_order("m.weight").unwrap(), part.column_order);
    assert_eq!(bits(&decode(&part)), bits(&matrix.values()));
}

#[test]
fn scales_of_other_types_are_read_where_f16_holds_them() {
    let matrix =
        Matrix { scales: vec![f16::from_f32(0.125); 16 * 2], ..Matrix::random(Method::Awq, 4, [16, 64, 32], 5) };
    let retyped = |dtype: &'static str, change: Option<f32>| {
        let mut tensors = matrix.tensors("m");
        let scales = tensors.iter_mut().find(|tensor| tensor.0 == "m.scales").unwrap();
        let mut values: Vec<f32> =
            scales.3.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect();
        values[17] = change.unwrap_or(values[17]);
        scales.1 = dtype;
        scales.3 = match dtype {
            "BF16" => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        folder(&matrix).with("model.safetensors", safetensors_of(&tensors))
    };
    for dtype in ["BF16", "F32"] {
        let folder = retyped(dtype, None);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let part = checkpoint.matrix("m.weight", 16, 64).unwrap();
        assert_eq!(bits(&decode(&part)), bits(&matrix.values()));

        let folder = retyped(dtype, Some(1.0 / (1 << 30) as f32));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let part = checkpoint.matrix("m.weight", 16, 64).unwrap();
        match part.read(0..16, &mut Vec::new()) {
            Err(Error::InvalidTensor { name, path, expected, found }) => {
                assert_eq!(name, "m.scales");
                assert!(path.ends_with("model.safetensors") && expected.contains("F16"), "{expected}");
                // Row 1 of the tensor, [2, 16].
                assert!(found.contains(dtype) && found.contains("group 1 of output feature 1"), "{found}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn older_files_say_beside_the_configuration_how_they_are_packed() {
    let matrix = Matrix::random(Method::GptqV1, 4, [8, 64, 32], 9);
    let plain = include_str!("data/config-0.5b-instruct.json");
    let weights =
        || TempFolder::new().with("config.json", plain).with("model.safetensors", safetensors_of(&matrix.tensors("m")));
    let beside = r#"{"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": false, "sym": true,
        "true_sequential": true, "model_name_or_path": null, "model_file_base_name": null}"#;
    let folder = weights().with("quantize_config.json", beside);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.config().quantization.is_some());
    assert_eq!(bits(&decode(&checkpoint.matrix("m.weight", 8, 64).unwrap())), bits(&matrix.values()));

    let folder = weights();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    match checkpoint.encoding("m.weight") {
        Err(Error::InvalidConfig { path, key, reason }) => {
            assert!(path.ends_with("config.json") && key == "quantization_config");
            assert!(reason.contains("`m.qweight`") && reason.contains("quantize_config.json"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // A checkpoint of plain weights does not ask for it.
    let folder = common::safetensors(r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#, 4);
    let folder = TempFolder::new()
        .with("config.json", plain)
        .with("model.safetensors", folder)
        .with("quantize_config.json", "{");
    assert_eq!(Checkpoint::open(folder.path()).unwrap().config().quantization, None);
}
