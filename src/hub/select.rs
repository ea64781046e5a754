//! Which files of a repository make up a checkpoint: from the names of its files alone, so that the same choice is made
//! from the hub's listing and from a folder of the cache. Names come from the network: one that could lead out of a folder
//! is never chosen.

use std::collections::BTreeMap;

use super::error::Error;
use crate::model_name::ModelName;

/// What is read beside the weights, where it exists.
const SMALL_FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "quantize_config.json",
];

/// What sentence-transformers adds: its modules, and the settings of the pooling, in a folder with a number.
const MODULES: &str = "modules.json";
const POOLING: &str = "_Pooling/config.json";

const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The most GGUF files that an error lists.
const MAX_SHOWN: usize = 12;

/// The files of a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// All that are known without reading one of them.
    pub(super) files: Vec<String>,
    /// What is opened.
    pub(super) opened: Opened,
}

/// What of the repository's folder is opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// The folder itself.
    Folder,
    /// The folder itself, with further files that the index among `files` names.
    Indexed,
    /// A file of it.
    File(String),
}

/// The checkpoint that `name` means, among these files of its repository.
pub(super) fn select(name: &ModelName, listing: &[String]) -> Result<Selection, Error> {
    let refused = |reason: String| Error::NoCheckpoint { name: name.to_string(), reason };
    let has = |file: &str| listing.iter().any(|found| found == file);
    let ggufs = ggufs(listing);
    if let Some(quantization) = name.quantization() {
        return gguf_of(quantization, &ggufs).map_err(refused);
    }
    let mut files: Vec<String> = SMALL_FILES.into_iter().filter(|file| has(file)).map(str::to_owned).collect();
    let of_embeddings = |file: &&String| *file == MODULES || (file.ends_with(POOLING) && is_safe(file));
    files.extend(listing.iter().filter(of_embeddings).cloned());
    let in_root = |file: &&String| file.ends_with(".safetensors") && !file.contains('/') && is_safe(file);
    let weights: Vec<&String> = listing.iter().filter(in_root).collect();
    let (weights, opened) = match weights.as_slice() {
        _ if !has("config.json") => (None, Opened::Folder),
        _ if has(SINGLE) => (Some(SINGLE), Opened::Folder),
        _ if has(INDEX) => (Some(INDEX), Opened::Indexed),
        [only] if !only.starts_with("adapter_model") => (Some(only.as_str()), Opened::Folder),
        _ => (None, Opened::Folder),
    };
    if let Some(weights) = weights {
        files.push(weights.to_owned());
        return Ok(Selection { files, opened });
    }
    match ggufs.len() {
        1 => gguf_of("", &ggufs).map_err(refused),
        0 => Err(refused("has neither config.json with *.safetensors, nor a *.gguf".into())),
        _ => Err(refused(format!("has several GGUF models: name one as {name}:QUANTIZATION; {}", shown(&ggufs)))),
    }
}

/// GGUF models by their names without part and extension, with their parts.
type Ggufs<'a> = BTreeMap<&'a str, Vec<(&'a str, Option<Part>)>>;

/// Which part of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    number: u32,
    count: u32,
}

fn ggufs(listing: &[String]) -> Ggufs<'_> {
    let mut found = Ggufs::new();
    for file in listing.iter().filter(|file| is_safe(file)) {
        let Some(stem) = file.strip_suffix(".gguf") else { continue };
        let base = stem.rsplit('/').next().unwrap_or(stem).to_ascii_lowercase();
        // Projectors of other models, and importances.
        if base.starts_with("mmproj") || base.contains("imatrix") {
            continue;
        }
        let (stem, part) = split_part(stem).map_or((stem, None), |(stem, part)| (stem, Some(part)));
        found.entry(stem).or_default().push((file, part));
    }
    found.values_mut().for_each(|files| files.sort_unstable_by_key(|(_, part)| *part));
    found
}

/// `NAME-00002-of-00003` as `NAME` and its part.
fn split_part(stem: &str) -> Option<(&str, Part)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((name, Part { number: parse(number)?, count: parse(count)? }))
}

/// The one model of this quantisation; the only one if that is empty.
fn gguf_of(quantization: &str, ggufs: &Ggufs<'_>) -> Result<Selection, String> {
    let wanted = quantization.to_ascii_lowercase();
    let is_wanted = |stem: &&str| {
        let base = stem.rsplit('/').next().unwrap_or(stem).to_ascii_lowercase();
        let before = base.strip_suffix(&wanted);
        wanted.is_empty() || before.is_some_and(|before| before.is_empty() || before.ends_with(['-', '.']))
    };
    let exact = |stem: &&str| stem.rsplit('/').next().is_some_and(|base| base.eq_ignore_ascii_case(quantization));
    let mut models: Vec<&str> = ggufs.keys().copied().filter(is_wanted).collect();
    if let Some(only) = models.iter().copied().find(|stem| exact(stem)) {
        models = vec![only];
    }
    let files = match models.as_slice() {
        [] if ggufs.is_empty() => return Err("has no *.gguf".into()),
        [] => return Err(format!("has no GGUF model of this quantization; {}", shown(ggufs))),
        [only] => ggufs.get(only).map(Vec::as_slice).unwrap_or_default(),
        _ => return Err(format!("has several GGUF models of this quantization; {}", shown(ggufs))),
    };
    let count = files.iter().find_map(|(_, part)| *part).map_or(1, |part| part.count);
    let is_whole = match files {
        [(_, None)] => true,
        files => {
            let expected = (1..=count).map(|number| Some(Part { number, count }));
            files.iter().map(|(_, part)| *part).eq(expected)
        }
    };
    match files.first() {
        Some((first, _)) if is_whole => Ok(Selection {
            files: files.iter().map(|(file, _)| (*file).to_owned()).collect(),
            opened: Opened::File((*first).to_owned()),
        }),
        _ => Err(format!("the parts of {} are not all there: {} of {count}", models.join(", "), files.len())),
    }
}

fn shown(ggufs: &Ggufs<'_>) -> String {
    let names: Vec<&str> = ggufs.keys().copied().take(MAX_SHOWN).collect();
    let more = if ggufs.len() > MAX_SHOWN { ", ..." } else { "" };
    format!("there are {}{more}", names.join(", "))
}

/// The files of weights that the text of an index names, which have to be in the listing.
pub(super) fn shards(name: &ModelName, index: &[u8], listing: &[String]) -> Result<Vec<String>, Error> {
    let refused = |reason: String| Error::NoCheckpoint { name: name.to_string(), reason: format!("{INDEX}: {reason}") };
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| refused(error.to_string()))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    for shard in &shards {
        if !is_safe(shard) || shard.contains('/') || !listing.contains(shard) {
            return Err(refused(format!("names {shard:?}, which is not there")));
        }
    }
    Ok(shards)
}

/// Whether a name stays within the folder that it is joined to, on every system.
pub(super) fn is_safe(file: &str) -> bool {
    let is_part = |part: &str| {
        let has_bad = part.contains(['\\', ':', '*', '?', '"', '<', '>', '|']) || part.chars().any(char::is_control);
        !part.is_empty() && part.len() <= 200 && !has_bad && !part.ends_with(['.', ' '])
    };
    file.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(name: &str, listing: &[&str]) -> Result<Selection, Error> {
        let listing: Vec<String> = listing.iter().map(|file| (*file).to_owned()).collect();
        select(&name.parse().expect("a name"), &listing)
    }

    fn gguf(quantization: &str, listing: &[&str]) -> Option<Vec<String>> {
        selected(&format!("a/b:{quantization}"), listing).ok().map(|selection| selection.files)
    }

    #[test]
    fn only_what_is_needed() {
        let listing = [
            ".gitattributes",
            "README.md",
            "config.json",
            "tokenizer.json",
            "pytorch_model.bin",
            "model.safetensors",
            "onnx/model.onnx",
            "original/config.json",
            "modules.json",
            "1_Pooling/config.json",
            "../2_Pooling/config.json",
        ];
        let selection = selected("a/b", &listing).expect("a checkpoint");
        assert_eq!(
            selection.files,
            ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"]
        );
        assert_eq!(selection.opened, Opened::Folder);
        let error = selected("a/b", &["config.json", "pytorch_model.bin"]).expect_err("no weights");
        assert!(error.to_string().starts_with("a/b: has neither"), "{error}");
        assert!(selected("a/b", &["model.safetensors"]).is_err());
        assert!(selected("a/b", &["config.json", "adapter_model.safetensors"]).is_err());
    }

    #[test]
    fn one_gguf_of_a_quantization() {
        let listing = [
            "qwen-q4_0.gguf",
            "qwen-q4_0_4_4.gguf",
            "qwen-IQ4_K_M.gguf",
            "qwen-q4_k_m.gguf",
            "mmproj-q8_0.gguf",
            "q8_0/qwen-q8_0-00002-of-00002.gguf",
            "q8_0/qwen-q8_0-00001-of-00002.gguf",
            "qwen-f16-00001-of-00002.gguf",
        ];
        assert_eq!(gguf("Q4_K_M", &listing).as_deref(), Some(&["qwen-q4_k_m.gguf".to_owned()][..]));
        assert_eq!(gguf("q4_0", &listing).as_deref(), Some(&["qwen-q4_0.gguf".to_owned()][..]));
        let parts = gguf("q8_0", &listing).expect("both parts");
        assert_eq!(parts, ["q8_0/qwen-q8_0-00001-of-00002.gguf", "q8_0/qwen-q8_0-00002-of-00002.gguf"]);
        assert_eq!(gguf("f16", &listing), None, "a part is missing");
        assert_eq!(gguf("k_m", &listing), None);
        assert_eq!(gguf("q4_0", &["x-q4_0.gguf", "y-q4_0.gguf"]), None, "there are two");
        assert_eq!(gguf("x-q4_0", &["x-q4_0.gguf", "y-x-q4_0.gguf"]).map(|files| files.len()), Some(1));
        let error = selected("a/b", &listing).expect_err("several").to_string();
        assert!(error.contains("a/b:QUANTIZATION") && error.contains("qwen-q4_k_m"), "{error}");
        assert_eq!(selected("a/b", &["x.gguf"]).expect("one").opened, Opened::File("x.gguf".into()));
    }

    #[test]
    fn names_that_lead_out_of_the_folder() {
        for file in [
            "../x-q4_0.gguf",
            "/x-q4_0.gguf",
            "a/../../x-q4_0.gguf",
            "..\\x-q4_0.gguf",
            "C:x-q4_0.gguf",
            "a//x-q4_0.gguf",
        ] {
            assert!(!is_safe(file), "{file}");
            assert_eq!(gguf("q4_0", &[file]), None, "{file}");
        }
        let name = "a/b".parse().expect("a name");
        let listing = ["../w.safetensors".to_owned(), "w.safetensors".to_owned()];
        let index = |shard: &str| format!(r#"{{"weight_map":{{"x":"{shard}","y":"{shard}"}}}}"#);
        assert_eq!(shards(&name, index("w.safetensors").as_bytes(), &listing).expect("safe"), ["w.safetensors"]);
        assert!(shards(&name, index("../w.safetensors").as_bytes(), &listing).is_err());
        assert!(shards(&name, index("absent.safetensors").as_bytes(), &listing).is_err());
        assert!(shards(&name, b"{}", &listing).is_err());
    }
}
