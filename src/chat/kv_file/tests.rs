use proptest::prelude::*;

use super::*;

/// A file of its own, removed when the test ends.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Place(std::env::temp_dir().join(format!("qwen-kv-file-{}-{name}", std::process::id())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn header() -> Header {
    let state = serde_json::from_str(r#"{"version": 1, "messages": [{"role": "user", "content": "Hé"}]}"#).unwrap();
    let facts = vec![("`head_dim`".into(), "64".into())];
    let kv = Some(SavedKv { facts, computed_by: "cpu".into(), root: String::new(), tokens: 1, salted: true });
    Header { state, kv }
}

const BLOCK: usize = 24;

fn write(place: &Path, parts: &[Vec<u8>]) {
    let mut writer = Writer::create(place, &header()).unwrap();
    for bytes in parts {
        writer.blocks(bytes.len() / BLOCK, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The parts of a file, if it is sound.
fn read(place: &Path, most: usize) -> Result<Vec<Vec<u8>>> {
    let (found, mut reader) = Reader::open(place)?;
    assert_eq!(found, header());
    let (mut parts, mut left) = (Vec::new(), most);
    while let Some((count, bytes)) = reader.blocks(BLOCK, left)? {
        assert_eq!(bytes.len(), count * BLOCK);
        left -= count;
        parts.push(bytes);
    }
    Ok(parts)
}

fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let part = (1usize..5).prop_flat_map(|blocks| proptest::collection::vec(any::<u8>(), blocks * BLOCK));
    proptest::collection::vec(part, 0..4)
}

proptest! {
    #[test]
    fn files_come_back_and_no_change_of_them_is_taken_for_what_was_written(
        parts in parts(),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
        cut in any::<prop::sample::Index>(),
        more in proptest::collection::vec(any::<u8>(), 1..20),
    ) {
        let place = Place::new("proptest");
        write(&place.0, &parts);
        let blocks: usize = parts.iter().map(|part| part.len() / BLOCK).sum();
        prop_assert_eq!(&read(&place.0, blocks).unwrap(), &parts);
        let good = std::fs::read(&place.0).unwrap();
        let mut flipped = good.clone();
        flipped[at.index(good.len())] ^= 1u8 << bit;
        let cut = good[..cut.index(good.len())].to_vec();
        for bad in [flipped, cut, [&good[..], &more].concat()] {
            std::fs::write(&place.0, bad).unwrap();
            let error = read(&place.0, blocks).unwrap_err();
            let is_damage = matches!(error, Error::DamagedSnapshot { .. });
            prop_assert!(is_damage, "{:?}", error);
        }
        if blocks > 0 {
            write(&place.0, &parts);
            let error = read(&place.0, blocks - 1).unwrap_err().to_string();
            prop_assert!(error.contains("where") && error.contains("may be"), "{}", error);
        }
    }

    #[test]
    fn any_bytes_behind_the_magic_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let place = Place::new("random");
        std::fs::write(&place.0, [&MAGIC[..], &1u32.to_le_bytes(), &bytes].concat()).unwrap();
        let is_refused = matches!(Reader::open(&place.0), Err(Error::DamagedSnapshot { .. }));
        prop_assert!(is_refused);
    }
}

#[test]
fn a_length_allocates_nothing_and_a_version_is_refused_by_name() {
    let place = Place::new("lengths");
    let open = |bytes: &[&[u8]]| {
        std::fs::write(&place.0, bytes.concat()).unwrap();
        Reader::open(&place.0).unwrap_err().to_string()
    };
    for (len, word) in [(u64::MAX, "at most"), (MAX_HEADER + 1, "at most"), (MAX_HEADER, "truncated")] {
        let text = open(&[MAGIC, &1u32.to_le_bytes(), &len.to_le_bytes(), b"{}"]);
        assert!(text.contains(word), "{text}");
    }
    let text = open(&[MAGIC, &7u32.to_le_bytes()]);
    assert!(text.contains("version 7: this version of qwen-rs reads 1"), "{text}");
    let text = open(&[b"{\"version\": 1}"]);
    assert!(text.contains("it is no saved conversation (`Chat::save` writes them)"), "{text}");
}

#[test]
fn an_unfinished_file_leaves_what_was_there() {
    let place = Place::new("unfinished");
    std::fs::write(&place.0, "before").unwrap();
    let mut writer = Writer::create(&place.0, &header()).unwrap();
    writer.blocks(1, &[1; BLOCK]).unwrap();
    let beside = writer.beside.clone();
    assert!(beside.exists() && beside.parent() == place.0.parent());
    // A second one meanwhile has a name of its own.
    write(&place.0, &[vec![2; BLOCK]]);
    drop(writer);
    assert!(!beside.exists());
    assert_eq!(read(&place.0, 1).unwrap(), [vec![2; BLOCK]]);
}
