//! Damaged and contradictory parts of packed matrices: typed errors that name the tensor, its file, the figures and
//! what to do.

mod common;

use common::packer::{Matrix, Method, Tensor, config};
use common::{TempFolder, safetensors_of};
use qwen_core::{Checkpoint, Error};
use serde_json::{Value, json};

const ROWS: usize = 16;
const COLS: usize = 128;

fn matrix(method: Method) -> Matrix {
    Matrix::random(method, 4, [ROWS, COLS, 32], 11)
}

/// The error of reading module `m` after a change of its tensors and its `quantization_config`.
fn refuse(matrix: &Matrix, tensors: impl Fn(&mut Vec<Tensor>), quantization: Value) -> Error {
    let mut changed = matrix.tensors("m");
    tensors(&mut changed);
    let mut settings = matrix.quantization();
    settings.as_object_mut().unwrap().extend(quantization.as_object().unwrap().clone());
    let folder =
        TempFolder::new().with("config.json", config(&settings)).with("model.safetensors", safetensors_of(&changed));
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let read = checkpoint.matrix("m.weight", matrix.rows, matrix.cols).and_then(|part| {
        part.read(0..part.rows, &mut Vec::new())?;
        Ok(())
    });
    match read {
        Ok(()) => panic!("was read: {quantization}"),
        Err(error) => {
            // Planning reads headers only, and a part of a matrix is never returned as a tensor.
            let _ = checkpoint.encoding("m.weight");
            assert!(checkpoint.tensor("m.weight").is_err());
            error
        }
    }
}

fn part<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|tensor| tensor.0 == format!("m.{name}")).expect(name)
}

/// Give a part another shape, and as many bytes.
fn reshaped(name: &'static str, shape: &'static [usize]) -> impl Fn(&mut Vec<Tensor>) {
    move |tensors| {
        let tensor = part(tensors, name);
        tensor.2 = shape.to_vec();
        tensor.3.resize(shape.iter().product::<usize>() * if tensor.1 == "F16" { 2 } else { 4 }, 0);
    }
}

#[track_caller]
fn invalid(error: &Error, named: &str, expects: &[&str], finds: &str) {
    match error {
        Error::InvalidTensor { name, path, expected, found } => {
            assert_eq!(name, &format!("m.{named}"));
            assert!(path.ends_with("model.safetensors"), "{path:?}");
            assert!(expects.iter().all(|expects| expected.contains(expects)), "{expected}");
            assert!(found.contains(finds), "{found}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn parts_of_other_shapes_are_told_with_both() {
    let gptq = matrix(Method::GptqV1);
    for (name, shape, expects, finds) in [
        ("qzeros", &[4, 3][..], "[4, 2]", "I32 [4, 3]"),
        ("qzeros", &[2, 2], "[4, 2]", "I32 [2, 2]"),
        ("qzeros", &[8], "[4, 2]", "I32 [8]"),
        ("scales", &[4, 8], "[4, 16]", "F16 [4, 8]"),
        ("scales", &[3, 16], "[4, 16]", "F16 [3, 16]"),
        ("scales", &[16, 4], "[4, 16]", "F16 [16, 4]"),
        ("g_idx", &[64], "[128]", "I32 [64]"),
        ("g_idx", &[4, 32], "[128]", "I32 [4, 32]"),
    ] {
        invalid(
            &refuse(&gptq, reshaped(name, shape), json!({})),
            name,
            &[expects, "groups of 32", "config.json"],
            finds,
        );
    }
    for shape in [&[16][..], &[2, 2, 4], &[], &[0, 16], &[16, 0]] {
        invalid(&refuse(&gptq, reshaped("qweight", shape), json!({})), "qweight", &["input features / 8"], "I32");
    }
    // Another number of output or input features than config.json says.
    let narrow = |tensors: &mut Vec<Tensor>| {
        for (name, shape) in [("qweight", vec![16, 8]), ("qzeros", vec![4, 1]), ("scales", vec![4, 8])] {
            let tensor = part(tensors, name);
            tensor.3.truncate(tensor.3.len() / 2);
            tensor.2 = shape;
        }
    };
    invalid(&refuse(&gptq, narrow, json!({})), "qweight", &["[16, 16]", "16 x 128"], "[16, 8]");
    // Seven output features do not fill an integer of zero points.
    invalid(&refuse(&gptq, reshaped("qweight", &[16, 7]), json!({})), "qweight", &["multiples of 8"], "[16, 7]");

    let awq = matrix(Method::Awq);
    invalid(&refuse(&awq, reshaped("qweight", &[128, 3]), json!({})), "qzeros", &["[4, 3]"], "[4, 2]");
}

#[test]
fn parts_of_other_types_are_told() {
    let gptq = matrix(Method::GptqV1);
    for (name, dtype, shape) in
        [("qweight", "F32", &[16, 16][..]), ("qzeros", "F32", &[4, 2]), ("g_idx", "U32", &[128])]
    {
        let retyped = |tensors: &mut Vec<Tensor>| {
            let tensor = part(tensors, name);
            tensor.1 = dtype;
            assert_eq!(tensor.2, shape);
        };
        invalid(&refuse(&gptq, retyped, json!({})), name, &["I32"], dtype);
    }
    let scales = |tensors: &mut Vec<Tensor>| part(tensors, "scales").1 = "I16";
    invalid(&refuse(&gptq, scales, json!({})), "scales", &["F16 or BF16 or F32"], "I16");
    let codes = |tensors: &mut Vec<Tensor>| {
        let tensor = part(tensors, "qweight");
        (tensor.1, tensor.2) = ("I16", vec![16, 32]);
    };
    invalid(&refuse(&gptq, codes, json!({})), "qweight", &["I32"], "I16 [16, 32]");
}

#[test]
fn missing_parts_are_named() {
    for (method, name) in [
        (Method::GptqV1, "qzeros"),
        (Method::GptqV1, "scales"),
        (Method::GptqV1, "g_idx"),
        (Method::Awq, "qzeros"),
        (Method::Awq, "scales"),
    ] {
        let without = |tensors: &mut Vec<Tensor>| tensors.retain(|tensor| tensor.0 != format!("m.{name}"));
        match refuse(&matrix(method), without, json!({})) {
            Error::MissingTensor { name: named, .. } => assert_eq!(named, format!("m.{name}")),
            other => panic!("{other:?}"),
        }
    }
    let without = |tensors: &mut Vec<Tensor>| tensors.retain(|tensor| tensor.0 != "m.qweight");
    let error = refuse(&matrix(Method::GptqV1), without, json!({}));
    assert!(matches!(error, Error::MissingTensor { name, .. } if name == "m.weight"));
}

#[test]
fn settings_that_contradict_the_tensors_are_told() {
    let gptq = matrix(Method::GptqV1);
    let none = |_: &mut Vec<Tensor>| {};
    invalid(&refuse(&gptq, none, json!({"bits": 8})), "qzeros", &["[2, 4]", "8-bit codes of 16 x 64"], "[4, 2]");
    invalid(&refuse(&gptq, none, json!({"group_size": 64})), "qzeros", &["[2, 2]", "groups of 64"], "[4, 2]");
    invalid(&refuse(&gptq, none, json!({"group_size": -1})), "qzeros", &["[1, 2]", "groups of 128"], "[4, 2]");
    // Read as the other method, whose integers run along the other dimension.
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "checkpoint_format": null});
    match refuse(&gptq, none, awq) {
        Error::Unsupported { what, reason } => {
            assert!(what.contains("16 columns in groups of 32") && what.contains("`m.qweight`"), "{what}");
            assert!(reason.contains("use the GGUF"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    for group_size in [96, 256, 1 << 20] {
        let error = refuse(&gptq, none, json!({"group_size": group_size})).to_string();
        assert!(
            error.contains(&format!("128 columns in groups of {group_size}")) && error.contains("`m.qweight`"),
            "{error}"
        );
    }
    // A whole row as one group, of a width that no block has.
    let odd = Matrix::random(Method::Awq, 4, [ROWS, 40, 40], 1);
    let error = refuse(&odd, none, json!({})).to_string();
    assert!(error.contains("40 columns") && error.contains("a multiple of 32"), "{error}");
}

#[test]
fn groups_that_there_are_not_are_told_with_their_column() {
    let damaged = |groups: Vec<i32>| {
        let tensors = move |tensors: &mut Vec<Tensor>| {
            part(tensors, "g_idx").3 = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
        };
        refuse(&matrix(Method::GptqV1), tensors, json!({}))
    };
    let groups = |change: fn(usize) -> i32| (0..COLS).map(change).collect::<Vec<_>>();
    for (group, change) in [
        (4, (|col| if col == 9 { 4 } else { col as i32 / 32 }) as fn(usize) -> i32),
        (-1, |col| if col == 9 { -1 } else { col as i32 / 32 }),
        (i32::MAX, |col| if col == 9 { i32::MAX } else { col as i32 / 32 }),
        (i32::MIN, |col| if col == 9 { i32::MIN } else { col as i32 / 32 }),
    ] {
        let found = format!("group {group} for column 9");
        invalid(&damaged(groups(change)), "g_idx", &["groups 0 to 3"], &found);
    }
    for change in [(|_| 2) as fn(usize) -> i32, |col| if col == 127 { 0 } else { col as i32 / 32 }] {
        match damaged(groups(change)) {
            Error::Unsupported { what, reason } => {
                assert!(
                    what.contains("unequal") && what.contains("`m.g_idx`") && what.contains(".safetensors"),
                    "{what}"
                );
                assert!(reason.contains("more than 32 columns") && reason.contains("use"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_packed_matrix_is_no_tensor() {
    let matrix = matrix(Method::GptqV1);
    let folder = TempFolder::new()
        .with("config.json", config(&matrix.quantization()))
        .with("model.safetensors", safetensors_of(&matrix.tensors("m")));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for error in
        [checkpoint.tensor("m.weight").unwrap_err(), checkpoint.tensor_of_shape("m.weight", &[16, 128]).unwrap_err()]
    {
        let error = error.to_string();
        assert!(
            error.contains("`m.weight`") && error.contains("`m.qweight`") && error.contains("as a matrix"),
            "{error}"
        );
    }
    // Its parts are ordinary tensors, if their types are supported.
    assert!(checkpoint.tensor("m.scales").is_ok());
    assert!(matches!(checkpoint.tensor("m.qweight"), Err(Error::InvalidTensor { .. })));
    assert!(checkpoint.has("m.qweight") && !checkpoint.has("m.weight"));
}

#[test]
fn a_file_that_was_cut_short_meanwhile_is_an_error_for_each_reader() {
    let matrix = Matrix::random(Method::Awq, 4, [64, 512, 64], 2);
    let folder = TempFolder::new()
        .with("config.json", config(&matrix.quantization()))
        .with("model.safetensors", safetensors_of(&matrix.tensors("m")));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let part = checkpoint.matrix("m.weight", 64, 512).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_len(9000).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| match part.read(0..64, &mut Vec::new()) {
                Err(Error::Io { path, error }) => {
                    assert!(path.ends_with("model.safetensors"));
                    assert!(error.to_string().contains("tensor `m."), "{error}");
                }
                other => panic!("{other:?}"),
            });
        }
    });
}
