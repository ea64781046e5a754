//! Which GGUF file a path refers to, and the other files of a split model.
//!
//! A split model's files are named `NAME-00001-of-00003.gguf`, and the metadata of each states its number and the
//! count; the first one has all other metadata, each has its own tensors.

use std::path::{Path, PathBuf};

use super::header::{Header, MAGIC};
use super::metadata::Metadata;
use crate::checkpoint::files::{invalid, open_regular};
use crate::checkpoint::folder::Folder;
use crate::checkpoint::shard::Shard;
use crate::error::{Error, Result};

/// The key of the number of files of a split model.
const COUNT: &str = "split.count";

/// A file of a model, open.
pub(super) struct Part {
    pub(super) shard: Shard,
    pub(super) header: Header,
}

/// The GGUF file that `path` refers to: itself, or the one in the folder; any part of a split model. `None` if the path
/// is a checkpoint of another kind, or does not exist.
pub(in crate::checkpoint) fn locate(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_dir() {
        let folder = Folder::list(path)?;
        let files = folder.with_extension("gguf");
        return match files.as_slice() {
            [] => Ok(None),
            _ if folder.has_whole_safetensors() => Ok(None),
            files => one_model(path, files).map(|file| Some(path.join(file))),
        };
    }
    let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    // Blob stores keep files without an extension.
    Ok((named || begins_as_gguf(path)).then(|| path.to_path_buf()))
}

fn begins_as_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = MAGIC.map(|_| 0);
    open_regular(path).is_ok_and(|(mut file, _)| file.read_exact(&mut magic).is_ok()) && magic == MAGIC
}

/// The first file of the model that `files` of `folder`, sorted by name, consist of.
fn one_model<'a>(folder: &Path, files: &[&'a str]) -> Result<&'a str> {
    let model = |file: &&'a str| Numbered::parse(file).map_or((*file, 0), |name| (name.stem, name.count));
    let mut models = Vec::new();
    for file in files {
        if models.last() != Some(&model(file)) {
            models.push(model(file));
        }
    }
    match (files, models.as_slice()) {
        ([first, ..], [_]) => Ok(first),
        (files, models) => {
            let shown: Vec<&str> = files.iter().copied().filter(|file| !is_later_part(file)).take(12).collect();
            let more = if models.len() > shown.len() { ", ..." } else { "" };
            let reason = format!(
                "holds {} GGUF models: give the path of the one to use, one of {}{more}",
                models.len(),
                shown.join(", ")
            );
            Err(invalid(folder, reason))
        }
    }
}

fn is_later_part(file: &str) -> bool {
    Numbered::parse(file).is_some_and(|numbered| numbered.number > 1)
}

/// The metadata of the GGUF model at `path`, which is a file or a folder as [`Checkpoint::open`] takes them, without
/// checking the tensors: for programs that only need the vocabulary. `None` if the path is not a GGUF model.
///
/// # Errors
/// As [`Checkpoint::open`] for the files and their headers.
///
/// [`Checkpoint::open`]: crate::Checkpoint::open
pub fn metadata(path: impl AsRef<Path>) -> Result<Option<Metadata>> {
    let Some(file) = locate(path.as_ref())? else { return Ok(None) };
    let first = open(&file)?.into_iter().next();
    Ok(first.map(|part| part.header.metadata))
}

/// Open `file` and the other parts of its model, in order.
pub(super) fn open(file: &Path) -> Result<Vec<Part>> {
    let given = Part::open(file)?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let numbered = Numbered::parse(name);
    let count = given.header.metadata.get_u64(COUNT).unwrap_or(1);
    if count <= 1 {
        if let Some(Numbered { number, count: 2.., .. }) = numbered {
            let reason = format!(
                "is named as part {number} of a model, but does not say so itself (key `{COUNT}`): rename it if it is \
                 whole, else download it again"
            );
            return Err(invalid(file, reason));
        }
        return Ok(vec![given]);
    }
    let own = given.number()?;
    let Some(numbered) = numbered.filter(|name| (name.number, name.count) == (own, count)) else {
        let reason = format!(
            "is part {own} of {count} of a model: its name has to end in `{}`, and those of the other parts accordingly",
            ending(own, count)
        );
        return Err(invalid(file, reason));
    };
    let (stem, mut parts, mut given) = (numbered.stem, Vec::new(), Some(given));
    for number in 1..=count {
        if number == own {
            parts.extend(given.take());
            continue;
        }
        let name = format!("{stem}{}", ending(number, count));
        let path = file.with_file_name(&name);
        if !path.exists() {
            let reason =
                format!("is part {own} of {count}, but part {number}, `{name}`, is not in its folder: download it");
            return Err(invalid(file, reason));
        }
        let part = Part::open(&path)?;
        if (part.number()?, part.header.metadata.get_u64(COUNT)) != (number, Some(count)) {
            let reason = format!("is not part {number} of {count}, as its name says: download it again");
            return Err(invalid(&path, reason));
        }
        parts.push(part);
    }
    check_total(file, &parts)?;
    Ok(parts)
}

/// Compare the number of tensors with the one that the first part states.
fn check_total(file: &Path, parts: &[Part]) -> Result<()> {
    let key = "split.tensors.count";
    let found: usize = parts.iter().map(|part| part.header.tensors.len()).sum();
    match parts.first().and_then(|first| first.header.metadata.get_u64(key)) {
        Some(stated) if stated != found as u64 => Err(Error::InvalidConfig {
            path: file.to_path_buf(),
            key: key.into(),
            reason: format!("is {stated}, the parts have {found} tensors: they belong to different models"),
        }),
        _ => Ok(()),
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let shard = Shard::open(path.to_path_buf())?;
        let header = Header::read(&shard)?;
        Ok(Part { shard, header })
    }

    /// The number of the part, from 1.
    fn number(&self) -> Result<u64> {
        let key = "split.no";
        self.header.metadata.get_u64(key).and_then(|number| number.checked_add(1)).ok_or_else(|| Error::InvalidConfig {
            path: self.shard.path().to_path_buf(),
            key: key.into(),
            reason: format!("expected the number of the part, from 0, beside `{COUNT}`: the file is damaged"),
        })
    }
}

/// The name of a part.
struct Numbered<'a> {
    /// The part of the name before the numbers.
    stem: &'a str,
    number: u64,
    count: u64,
}

impl<'a> Numbered<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        (name == format!("{stem}{}", ending(number, count))).then_some(Numbered { stem, number, count })
    }
}

/// How the name of part `number` ends.
fn ending(number: u64, count: u64) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}
