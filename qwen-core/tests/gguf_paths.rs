//! What a path to a GGUF model may be: a file, any part of a split one, or a folder that holds one model.

mod common;

use std::path::Path;

use common::TempFolder;
use common::gguf::{F32, Gguf, Q8_0};
use qwen_core::{Checkpoint, Error, checkpoint::gguf};

const CONFIG: &str = include_str!("data/config-0.5b-instruct.json");

/// The text of the error, which has these parts.
fn refused(path: &Path, parts: &[&str]) {
    let error = Checkpoint::open(path).expect_err("no model, or more than one");
    assert!(matches!(error, Error::InvalidFile { .. } | Error::InvalidConfig { .. } | Error::Io { .. }), "{error:?}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn opens(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// The bytes of three parts of one model.
fn parts() -> [Gguf; 3] {
    let whole = Gguf::model();
    let part = |number: u16, from: usize, to: usize| {
        let entries = if number == 0 { whole.entries.clone() } else { Vec::new() };
        Gguf { entries, tensors: whole.tensors[from..to].to_vec(), ..Gguf::new() }
            .raw("split.no", 2, number.to_le_bytes().into())
            .raw("split.count", 2, 3_u16.to_le_bytes().into())
            .raw("split.tensors.count", 5, (whole.tensors.len() as i32).to_le_bytes().into())
    };
    [part(0, 0, 5), part(1, 5, 11), part(2, 11, whole.tensors.len())]
}

const NAMES: [&str; 3] = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];

fn split() -> TempFolder {
    NAMES.iter().zip(parts()).fold(TempFolder::new(), |folder, (name, part)| folder.with(name, part.bytes()))
}

#[test]
fn a_file_or_its_folder() {
    let folder = TempFolder::new().with("m-q8_0.gguf", Gguf::model().bytes()).with("README.md", "text");
    let file = folder.path().join("m-q8_0.gguf");
    assert_eq!(opens(&file).path(), file);
    assert_eq!(opens(folder.path()).path(), folder.path());
    assert_eq!(opens(&file).tensors().len(), 14);
    // Blobs of a store have no extension.
    let blob = TempFolder::new().with("sha256-0123", Gguf::model().bytes());
    assert!(opens(&blob.path().join("sha256-0123")).gguf_metadata().is_some());
    refused(&folder.path().join("README.md"), &["README.md", "give a .gguf"]);
    refused(&folder.path().join("absent.gguf"), &["absent.gguf"]);
    refused(&TempFolder::new().with("m.gguf", "GGUF").path().join("m.gguf"), &["m.gguf", "truncated"]);
    let folder = TempFolder::new();
    std::fs::create_dir(folder.path().join("m.gguf")).expect("a folder");
    refused(folder.path(), &["m.gguf", "regular file"]);
}

#[test]
fn of_several_models_one_has_to_be_named() {
    let folder = split().with("b-q4_0.gguf", "").with("a-q8_0.gguf", "");
    refused(
        folder.path(),
        &["holds 3 GGUF models", "a-q8_0.gguf, b-q4_0.gguf, m-00001-of-00003.gguf", "give the path"],
    );
    let many = (0..20).fold(TempFolder::new(), |folder, number| folder.with(&format!("{number:02}.gguf"), ""));
    refused(many.path(), &["holds 20", "00.gguf", "11.gguf, ..."]);
    assert!(opens(&split().with("other.gguf", "").path().join(NAMES[0])).has("model.norm.weight"));
}

#[test]
fn safetensors_come_first_where_they_are_whole() {
    let gguf = || TempFolder::new().with("m.gguf", Gguf::model().bytes());
    let is_gguf = |folder: &TempFolder| opens(folder.path()).gguf_metadata().is_some();
    let shard = common::safetensors(r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#, 8);
    let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
    assert!(is_gguf(&gguf().with("config.json", CONFIG)));
    assert!(is_gguf(&gguf().with("model.safetensors", &shard)), "no config.json");
    assert!(!is_gguf(&gguf().with("config.json", CONFIG).with("model.safetensors", &shard)));
    let indexed = gguf().with("config.json", CONFIG).with("model.safetensors.index.json", index);
    assert!(is_gguf(&indexed), "a shard is missing");
    assert!(!is_gguf(&indexed.with("model-1.safetensors", &shard)));
    // The path of the file works whatever else is in the folder.
    let both = gguf().with("config.json", CONFIG).with("model.safetensors", &shard);
    assert!(opens(&both.path().join("m.gguf")).gguf_metadata().is_some());
}

#[test]
fn a_split_model_is_opened_by_any_part() {
    let folder = split();
    let whole = TempFolder::new().with("m.gguf", Gguf::model().bytes());
    let whole = opens(whole.path());
    for path in NAMES.map(|name| folder.path().join(name)).iter().chain([&folder.path().to_path_buf()]) {
        let checkpoint = opens(path);
        assert_eq!(checkpoint.config(), whole.config());
        assert_eq!(checkpoint.tensors().len(), whole.tensors().len());
        for info in whole.tensors() {
            let same = checkpoint.tensor(&info.name).expect("a tensor").data;
            assert_eq!(same, whole.tensor(&info.name).expect("a tensor").data, "{}", info.name);
        }
        assert_eq!(gguf::metadata(path).expect("metadata").as_ref(), checkpoint.gguf_metadata());
    }
}

#[test]
fn missing_and_foreign_parts_are_named() {
    for (missing, name) in NAMES.iter().enumerate() {
        let folder = split();
        std::fs::remove_file(folder.path().join(name)).expect("a part");
        let rest = NAMES.iter().filter(|other| *other != name);
        for path in rest.map(|name| folder.path().join(name)).chain([folder.path().into()]) {
            refused(&path, &[&format!("part {}, `{name}`, is not in its folder", missing + 1), "download it"]);
        }
    }
    let [first, second, third] = parts();
    let swapped = split().with(NAMES[1], third.bytes()).with(NAMES[2], second.bytes());
    refused(&swapped.path().join(NAMES[0]), &[NAMES[1], "is not part 2 of 3"]);
    let renamed = TempFolder::new().with("first.gguf", first.bytes());
    refused(renamed.path(), &["first.gguf", "part 1 of 3", "`-00001-of-00003.gguf`"]);
    let whole = TempFolder::new().with(NAMES[0], Gguf::model().bytes());
    refused(whole.path(), &["named as part 1", "`split.count`"]);
    let alone = TempFolder::new().with("m-00001-of-00001.gguf", Gguf::model().bytes());
    assert!(opens(alone.path()).gguf_metadata().is_some());

    let short = Gguf { tensors: third.tensors[1..].to_vec(), ..third.clone() };
    refused(split().with(NAMES[2], short.bytes()).path(), &["split.tensors.count", "is 14, the parts have 13"]);
    let twice = Gguf { tensors: third.tensors[1..].to_vec(), ..third }.tensor("token_embd.weight", &[64, 8], Q8_0);
    refused(split().with(NAMES[2], twice.bytes()).path(), &["`token_embd.weight` is in another part"]);
    let unnumbered = Gguf::new().u32("split.count", 3).tensor("output_norm.weight", &[64], F32);
    refused(&split().with(NAMES[1], unnumbered.bytes()).path().join(NAMES[1]), &["key `split.no`"]);
    let endless = first.raw("split.count", 10, u64::MAX.to_le_bytes().into());
    let name = "m-00001-of-18446744073709551615.gguf";
    refused(&TempFolder::new().with(name, endless.bytes()).path().join(name), &["part 2", "is not in its folder"]);
}

#[test]
fn metadata_is_read_without_a_model() {
    let vocabulary = Gguf { tensors: Vec::new(), ..Gguf::model() }.without("qwen2.embedding_length");
    let folder = TempFolder::new().with("vocab.gguf", vocabulary.bytes());
    let metadata = gguf::metadata(folder.path()).expect("a header").expect("a GGUF file");
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").map(gguf::Strings::len), Some(6));
    assert_eq!(gguf::metadata(TempFolder::new().path()).expect("a folder"), None);
}
