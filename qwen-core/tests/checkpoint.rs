//! Opening checkpoints: the golden ones, small ones generated on the fly, and every kind of damage to a file.

mod common;

use std::fs;
use std::path::Path;

use common::{TempFolder, safetensors};
use qwen_core::{Checkpoint, Encoding, Error, HumanBytes, RopeScaling, Warning};

const CONFIG: &str = include_str!("data/config-0.5b-instruct.json");

/// Two tensors, `a` of F32 [2, 3] and `b` of BF16 [4]: 32 bytes of data.
const TWO: &str = r#"{"__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}"#;

fn folder() -> TempFolder {
    TempFolder::new().with("config.json", CONFIG)
}

fn single(header: &str, data: usize) -> TempFolder {
    folder().with("model.safetensors", safetensors(header, data))
}

fn refuse(folder: &TempFolder) -> Error {
    match Checkpoint::open(folder.path()) {
        Ok(checkpoint) => panic!("was opened: {checkpoint:?}"),
        Err(error) => error,
    }
}

/// The reason of an [`Error::InvalidFile`] about the file of this name.
#[track_caller]
fn invalid_file(folder: &TempFolder, name: &str) -> String {
    match refuse(folder) {
        Error::InvalidFile { path, reason } if path == folder.path().join(name) => reason,
        error => panic!("{error:?}"),
    }
}

#[test]
fn tensors_are_found_by_name() {
    let folder = single(TWO, 32);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    assert_eq!(checkpoint.path(), folder.path());
    assert_eq!(checkpoint.config().hidden_size, 896);
    assert_eq!(*checkpoint.generation_config(), qwen_core::GenerationConfig::default());
    assert_eq!(checkpoint.total_bytes(), 32);
    assert!(checkpoint.has("a") && !checkpoint.has("c") && !checkpoint.has("__metadata__"));
    let listed: Vec<_> = checkpoint.tensors().map(|info| (info.name.as_str(), info.bytes(), info.encoding())).collect();
    assert_eq!(listed, [("a", 24, Some(Encoding::F32)), ("b", 8, Some(Encoding::Bf16))]);

    let b = checkpoint.tensor("b").expect("b");
    assert_eq!((b.name, b.encoding, b.shape), ("b", Encoding::Bf16, &[4][..]));
    assert_eq!(b.file, folder.path().join("model.safetensors"));
    assert_eq!(b.data, [24, 25, 26, 27, 28, 29, 30, 31]);
    assert_eq!(b.to_f32().len(), 4);
    assert_eq!(b.to_f32()[0], half::bf16::from_le_bytes([24, 25]).to_f32());
    assert!(checkpoint.tensor_of_shape("a", &[2, 3]).is_ok());
    assert_eq!(checkpoint.encoding("b").ok(), Some(Encoding::Bf16));
    let a = checkpoint.matrix("a", 2, 3).expect("a");
    let mut buffer = Vec::new();
    assert_eq!(a.read(1..2, &mut buffer).expect("a row"), [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]);
    assert_eq!(
        a.cut(0..2, 2..3).expect("a column").read(0..2, &mut buffer).expect("its rows"),
        [8, 9, 10, 11, 20, 21, 22, 23]
    );
}

#[test]
fn a_tensor_that_will_not_do_is_named_with_its_file() {
    let header = r#"{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "i": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]},
        "x": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [28, 31]}}"#;
    let folder = single(header, 31);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    assert!(checkpoint.has("i") && checkpoint.has("x"), "listed, if not usable");
    let missing = checkpoint.tensor("c").expect_err("there is none");
    assert!(matches!(missing, Error::MissingTensor { name, path, .. } if name == "c" && path == folder.path()));
    for (name, shape, wanted, have) in [
        ("a", &[3, 2][..], "[3, 2]", "F32 [2, 3]"),
        ("a", &[6], "[6]", "F32 [2, 3]"),
        ("i", &[4], "F32, F16 or BF16", "I8 [4]"),
        ("x", &[3], "F32, F16 or BF16", "F8_E4M3 [3]"),
    ] {
        match checkpoint.tensor_of_shape(name, shape) {
            Err(Error::InvalidTensor { name: named, path, expected, found }) => {
                assert_eq!((named.as_str(), found.as_str()), (name, have));
                assert!(expected.contains(wanted), "{expected}");
                assert_eq!(path, folder.path().join("model.safetensors"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(checkpoint.tensor("i"), Err(Error::InvalidTensor { .. })));
}

#[test]
fn damaged_headers_name_the_tensor() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}"#)
    };
    let a = entry("F32", "[2]", "[0, 8]");
    for (header, data, expected) in [
        ("", 0, "malformed"),
        ("[]", 0, "malformed"),
        ("{", 0, "malformed"),
        (r#"{"a": 1}"#, 0, "`a`"),
        (r#"{"a": {"shape": [2], "data_offsets": [0, 8]}}"#, 8, "`a`: missing field `dtype`"),
        (r#"{"a": {"dtype": "F32", "data_offsets": [0, 8]}}"#, 8, "`a`: missing field `shape`"),
        (r#"{"a": {"dtype": "F32", "shape": [2]}}"#, 8, "`a`: missing field `data_offsets`"),
        (&format!(r#"{{"a": {}}}"#, entry("F32", "[-2]", "[0, 8]")), 8, "`a`: invalid value"),
        (&format!(r#"{{"a": {}}}"#, entry("F32", "[2]", "[0, 8, 16]")), 8, "`a`"),
        (&format!(r#"{{"a": {a}, "a": {a}}}"#), 8, "`a` appears twice"),
        (
            &format!(r#"{{"a": {a}}}"#),
            7,
            "`a`: bytes 0 to 8 of the data lie beyond its end at 7: the file is truncated",
        ),
        (&format!(r#"{{"a": {a}}}"#), 9, "ends with 1 byte that"),
        (
            &format!(r#"{{"a": {a}, "b": {}}}"#, entry("F32", "[2]", "[4, 12]")),
            12,
            "`b`: bytes 4 to 12 of the data overlap with those of `a`",
        ),
        (&format!(r#"{{"a": {a}, "b": {a}}}"#), 8, "overlap with those of `a`"),
        (
            &format!(r#"{{"a": {a}, "b": {}}}"#, entry("F32", "[2]", "[12, 20]")),
            20,
            "`b`: bytes 12 to 20 of the data leave a hole of 4 bytes",
        ),
        (
            &format!(r#"{{"a": {}}}"#, entry("F32", "[2]", "[8, 0]")),
            8,
            "`a`: bytes 8 to 0 of the data end before they begin",
        ),
        (
            &format!(r#"{{"a": {}}}"#, entry("F32", "[3]", "[0, 8]")),
            8,
            "`a`: bytes 0 to 8 of the data are not the 12 of a F32 of shape [3]",
        ),
        (&format!(r#"{{"a": {}}}"#, entry("BF16", "[2]", "[0, 8]")), 8, "are not the 4 of a BF16"),
        (&format!(r#"{{"a": {}}}"#, entry("F4", "[3]", "[0, 2]")), 2, "`a`: bytes 0 to 2 of the data cannot hold a F4"),
        (&format!(r#"{{"a": {}}}"#, entry("INT3", "[7]", "[0, 3]")), 3, "`a`: unknown variant `INT3`"),
        (
            &format!(r#"{{"a": {}}}"#, entry("U8", "[1,1,1,1,1,1,1,1,3]", "[0, 3]")),
            3,
            "`a`: bytes 0 to 3 of the data have 9 dimensions",
        ),
        (
            &format!(r#"{{"a": {}}}"#, entry("F32", "[9223372036854775807, 9223372036854775807]", "[0, 8]")),
            8,
            "size overflows",
        ),
        (&format!(r#"{{"a": {}}}"#, entry("F32", "[2]", "[0, 18446744073709551615]")), 8, "truncated"),
        (&format!(r#"{{"a": {}}}"#, entry("F32", "[2]", "[0, 18446744073709551616]")), 8, "`a`"),
    ] {
        let reason = invalid_file(&single(header, data), "model.safetensors");
        assert!(reason.contains(expected), "{header}\n gave {reason}\n not {expected}");
    }
}

#[test]
fn files_that_are_too_short_say_so() {
    let whole = safetensors(TWO, 32);
    for length in [0, 1, 7] {
        let reason = invalid_file(&folder().with("model.safetensors", &whole[..length]), "model.safetensors");
        assert!(reason.contains(&format!("has {length} bytes")), "{reason}");
    }
    for length in 8..whole.len() {
        let reason = invalid_file(&folder().with("model.safetensors", &whole[..length]), "model.safetensors");
        assert!(reason.contains("truncated"), "{length}: {reason}");
    }
    for header_length in [(16 << 20) + 1, 1 << 53, 1 << 60, u64::MAX - 7, u64::MAX] {
        let reason =
            invalid_file(&folder().with("model.safetensors", header_length.to_le_bytes()), "model.safetensors");
        let [stated, most] = HumanBytes::compared(header_length, 16 << 20);
        assert!(reason.contains(&format!("a header of {stated}, at most {most}")), "{reason}");
    }
}

/// The bytes of a shard with one F32 tensor of 4 elements.
fn shard(tensor: &str) -> Vec<u8> {
    safetensors(&format!(r#"{{"{tensor}": {{"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}}}"#), 16)
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn shards_are_one_checkpoint() {
    let folder = folder()
        .with("one.safetensors", shard("a"))
        .with("two.safetensors", shard("b"))
        .with("unrelated.safetensors", "not even one")
        .with(
            INDEX,
            r#"{"metadata": {"total_size": 32}, "weight_map": {"b": "two.safetensors", "a": "one.safetensors"}}"#,
        );
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    assert_eq!(checkpoint.tensor("a").expect("a").file, folder.path().join("one.safetensors"));
    assert_eq!(checkpoint.tensor("b").expect("b").file, folder.path().join("two.safetensors"));
    assert_eq!(checkpoint.total_bytes(), 32);
}

#[test]
fn an_index_that_does_not_hold_is_refused() {
    let shards = || folder().with("one.safetensors", shard("a")).with("two.safetensors", shard("b"));
    for (index, expected) in [
        ("", "not an index"),
        ("[]", "not an index"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map": {}}"#, "empty"),
        (r#"{"weight_map": {"a": 3}}"#, "`a`"),
        (r#"{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}"#, "`a` appears twice"),
        (
            r#"{"weight_map": {"a": "one.safetensors", "model.norm.weight": "three.safetensors"}}"#,
            "`three.safetensors`",
        ),
    ] {
        let reason = invalid_file(&shards().with(INDEX, index), INDEX);
        assert!(reason.contains(expected), "{index}: {reason}");
    }
}

#[test]
fn an_index_that_says_too_much_is_taken_as_far_as_it_is_needed() {
    let shards = || folder().with("one.safetensors", shard("a")).with("two.safetensors", shard("b"));
    // The head of a tied model and a computed table, listed in a file that lacks them or does not exist.
    for (index, warns) in [
        (r#"{"weight_map": {"a": "one.safetensors", "lm_head.weight": "one.safetensors"}}"#, false),
        (
            r#"{"weight_map": {"a": "one.safetensors", "model.layers.0.self_attn.rotary_emb.inv_freq": "one.safetensors"}}"#,
            false,
        ),
        (r#"{"weight_map": {"a": "one.safetensors", "lm_head.weight": "head.safetensors"}}"#, true),
        (r#"{"weight_map": {"a": "./one.safetensors", "b": "./two.safetensors"}}"#, false),
        // In another file than the index says.
        (r#"{"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}"#, false),
    ] {
        let folder = shards().with(INDEX, index);
        let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|error| panic!("{index}: {error}"));
        assert!(checkpoint.tensor("a").is_ok(), "{index}");
        let missing =
            |warning: &&Warning| matches!(warning, Warning::MissingShard { shard, .. } if shard == "head.safetensors");
        assert_eq!(checkpoint.warnings().iter().any(|warning| missing(&warning)), warns, "{index}");
    }
    // A needed tensor is reported missing when it is requested, with the file that should have it.
    let folder = shards().with(INDEX, r#"{"weight_map": {"a": "one.safetensors", "norm.weight": "two.safetensors"}}"#);
    let error = Checkpoint::open(folder.path()).expect("headers").tensor("model.norm.weight").expect_err("none");
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "model.norm.weight"), "{error}");
    assert!(error.to_string().contains("`two.safetensors`"), "{error}");
}

#[test]
fn of_a_tensor_in_two_files_the_index_chooses_one() {
    let valued =
        |name: &str, value: f32| common::safetensors_of(&[(name.into(), "F32", vec![1], value.to_le_bytes().to_vec())]);
    let both = || folder().with("one.safetensors", valued("a", 1.0)).with("two.safetensors", valued("a", 2.0));
    for (index, expected) in [
        (r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#, 1.0),
        (r#"{"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}"#, 2.0),
        (r#"{"weight_map": {"b": "one.safetensors", "c": "two.safetensors"}}"#, 2.0),
    ] {
        let folder = both().with(INDEX, index);
        let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|error| panic!("{index}: {error}"));
        assert_eq!(checkpoint.tensor("a").expect("a").to_f32(), [expected], "{index}");
        assert_eq!(checkpoint.tensors().len(), 1, "{index}");
        let twice = |warning: &Warning| matches!(warning, Warning::DuplicateTensors { names, .. } if names == &["a"]);
        assert!(checkpoint.warnings().iter().any(twice), "{index}");
    }
}

#[test]
fn an_index_cannot_reach_out_of_its_folder() {
    let outside = TempFolder::new().with("out.safetensors", shard("a"));
    let outside = outside.path().join("out.safetensors");
    let absolute = outside.to_str().expect("UTF-8").replace('\\', "\\\\");
    for name in [
        "../out.safetensors",
        "..",
        ".",
        "",
        "/",
        "a/b.safetensors",
        "././one.safetensors",
        "./../one.safetensors",
        "one.safetensors/",
        "a\\\\b",
        "C:x",
        "x\\u0000y",
        &absolute,
    ] {
        let folder = folder().with("one.safetensors", shard("a"));
        let folder = folder.with(INDEX, format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#));
        match refuse(&folder) {
            Error::InvalidConfig { path, key, .. } => {
                assert_eq!((path, key.as_str()), (folder.path().join(INDEX), "weight_map.a"), "{name}");
            }
            error => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn folders_that_are_no_checkpoint_say_what_was_looked_for() {
    let empty = invalid_file(&TempFolder::new(), "");
    assert!(empty.contains("config.json") && empty.contains("empty"), "{empty}");
    let other = invalid_file(&TempFolder::new().with("README.md", ""), "");
    assert!(other.contains("config.json") && other.contains("README.md"), "{other}");
    let bare = invalid_file(&folder().with("pytorch_model.bin", ""), "");
    assert!(bare.contains("model.safetensors") && bare.contains("pytorch_model.bin"), "{bare}");
    let several = invalid_file(&folder().with("a.safetensors", "").with("b.safetensors", ""), "");
    assert!(several.contains("2 *.safetensors"), "{several}");
    let only = folder().with("qwen.safetensors", shard("a"));
    assert!(Checkpoint::open(only.path()).expect("the only one is taken").has("a"));

    let missing = Checkpoint::open("no/such/folder").expect_err("there is none");
    assert!(matches!(&missing, Error::Io { path, .. } if path == Path::new("no/such/folder")), "{missing}");
    let file = only.path().join("qwen.safetensors");
    let error = Checkpoint::open(&file).expect_err("a file");
    assert!(matches!(&error, Error::InvalidFile { path, .. } if *path == file), "{error}");
    let directory = folder();
    fs::create_dir(directory.path().join("model.safetensors")).expect("a folder");
    assert!(invalid_file(&directory, "model.safetensors").contains("regular file"));
}

#[test]
fn damaged_companions_are_named() {
    let file = "generation_config.json";
    let bad_key = single(TWO, 32).with(file, r#"{"top_p": 7}"#);
    let checkpoint = Checkpoint::open(bad_key.path()).expect("only sampling is concerned");
    assert!(
        matches!(&checkpoint.warnings()[0], Warning::InvalidValue { key, path, .. } if key == "top_p" && path.ends_with(file))
    );
    for content in ["{", "", "Entry not found", "<!DOCTYPE html>"] {
        let folder = single(TWO, 32).with(file, content);
        let checkpoint = Checkpoint::open(folder.path()).expect("only sampling is concerned");
        let unreadable =
            |warning: &&Warning| matches!(warning, Warning::UnreadableFile { path, .. } if path.ends_with(file));
        assert_eq!(checkpoint.warnings().iter().filter(unreadable).count(), 1, "{content}");
        for field in ["do_sample", "temperature", "eos_token_id", "max_new_tokens"] {
            let error = checkpoint.generation_config().check(field).expect_err("it would be from the file");
            assert!(matches!(&error, Error::InvalidFile { path, .. } if path.ends_with(file)), "{error}");
        }
    }
    let folder = bad_key.with("config.json", "{");
    assert!(invalid_file(&folder, "config.json").contains("not JSON"));
}

#[test]
fn every_golden_checkpoint_opens() {
    let Some(golden) = common::golden() else { return };
    let mut opened = 0;
    let mut entries: Vec<_> =
        fs::read_dir(&golden).expect("the suite").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries.into_iter().filter(|path| path.join("config.json").exists()) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        match checkpoint.config().quantization {
            // `packed.rs` tests how their matrices decode, the conformance suite what they compute.
            Some(_) => {
                let module = "model.layers.1.mlp.down_proj";
                assert!(checkpoint.has(&format!("{module}.qweight")), "{name}");
                let encoding = checkpoint.encoding(&format!("{module}.weight"));
                assert!(matches!(encoding, Ok(Encoding::Group(group)) if group.group_size == 128), "{name}");
            }
            None => {
                check_golden(&name, &checkpoint);
                opened += 1;
            }
        }
    }
    assert!(opened >= 10, "{opened} opened");
}

fn check_golden(name: &str, checkpoint: &Checkpoint) {
    let config = checkpoint.config();
    let expected = common::tensors_of(config);
    assert_eq!(checkpoint.tensors().len(), expected.len(), "{name}");
    for (tensor, shape) in &expected {
        let view = checkpoint.tensor_of_shape(tensor, shape).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(Some(view.encoding), config.torch_dtype, "{name}: {tensor}");
        assert_eq!(Some(view.data.len()), view.encoding.row_bytes(shape.iter().product()), "{name}: {tensor}");
        assert!(view.to_f32().iter().all(|value| value.is_finite()), "{name}: {tensor}");
    }
    let elements: usize = expected.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(config.num_parameters(), elements as u64, "{name}");

    assert_eq!(matches!(config.rope_scaling, RopeScaling::Yarn(_)), name.starts_with("yarn"), "{name}");
    assert_eq!(config.max_context(), if name.starts_with("yarn") { 4096 } else { 32768 }, "{name}");
    assert_eq!(config.eos_token_id, [322], "{name}");
    assert_eq!(checkpoint.generation_config().eos_token_id, [322, 320], "{name}");
    assert_eq!(checkpoint.generation_config().repetition_penalty, 1.05, "{name}");
}
