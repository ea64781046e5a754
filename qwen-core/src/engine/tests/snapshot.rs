//! K/V that is read from one engine and written to another: what is found there, and that nobody else notices.

use proptest::prelude::*;

use super::*;

const SIZE: usize = 4;

fn digesting(num_blocks: usize) -> Rig {
    Rig::new(Limits { num_blocks, ..limits() }, |runner| runner.reads_slots = true)
}

fn prompt(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i + i / 7 + seed) % 7).collect()
}

/// The tokens that were computed since the last call.
fn computed(rig: &Rig) -> usize {
    rig.steps.try_iter().flatten().sum()
}

/// What an engine has of `ids`, as a file would hold it.
fn read(rig: &mut Rig, salt: &str, ids: &[u32]) -> Option<(SavedRoot, usize, Vec<u8>)> {
    let (root, len) = rig.core.find_kv(salt, ids).unwrap()?;
    let blocks = len.div_ceil(SIZE);
    let bytes = rig.core.read_kv(&root, &ids[..len], 0..blocks).unwrap();
    assert_eq!(bytes.len(), blocks * rig.core.saved_kv().unwrap().block_bytes());
    let root = SavedRoot::decode(&root.encode(), salt).unwrap();
    Some((root, len, bytes))
}

fn write(rig: &mut Rig, root: &SavedRoot, ids: &[u32], bytes: &[u8], part: usize) -> usize {
    let block = rig.core.saved_kv().unwrap().block_bytes();
    let mut done = 0;
    for part in bytes.chunks(part * block) {
        let found = rig.core.write_kv(root, ids, done, part).unwrap();
        done += part.len() / block;
        if found < done {
            return found;
        }
    }
    done
}

#[test]
fn what_is_written_elsewhere_is_not_computed_there() {
    let mut rig = digesting(32);
    let ids = prompt(18, 1);
    rig.add(endless(request(&ids, 5)));
    let answer = rig.run().pop_first().unwrap().1.tokens;
    let history = [&ids[..], &answer].concat();
    let (root, len, bytes) = read(&mut rig, "", &history).unwrap();
    // The last token of an answer is not computed.
    assert_eq!((len, bytes.len() / 32), (22, 6));
    assert!(read(&mut rig, "a salt", &history).is_none());
    let mut other = digesting(32);
    assert_eq!(write(&mut other, &root, &history[..len], &bytes, 4), 6);
    let stats = other.intake.stats();
    assert_eq!((stats.used_blocks, stats.cached_blocks, stats.free_blocks), (0, 6, 26));
    let next = [&history[..], &[3, 4, 5]].concat();
    let (id, before) = (other.add(endless(request(&next, 5))), rig.add(endless(request(&next, 5))));
    computed(&rig);
    assert_eq!(other.run()[&id].tokens, rig.run()[&before].tokens);
    assert_eq!((computed(&other), computed(&rig)), (26 - 22 + 4, 26 - 22 + 4));
    // Once more: it is there, whatever the bytes say now.
    let zeros = vec![0; bytes.len()];
    assert_eq!(write(&mut other, &root, &history[..len], &zeros, 2), 6);
    let id = other.add(endless(request(&next, 5)));
    assert_eq!(other.run().remove(&id).unwrap().end.as_deref(), Some("Length"));
    let (_, len, again) = read(&mut other, "", &history).unwrap();
    assert!(len >= 22 && again[..bytes.len() - 32] == bytes[..bytes.len() - 32]);
}

#[test]
fn most_of_a_text_may_be_behind_any_root_with_its_salt() {
    let mut rig = Rig::new(limits(), |runner| {
        (runner.reads_slots, runner.rope_contexts) = (true, &[16, 64]);
    });
    let ids = prompt(30, 2);
    for len in [9, 26, 14] {
        rig.add(request(&ids[..len], 1));
        rig.run();
    }
    let (root, len, _) = read(&mut rig, "", &ids).unwrap();
    assert_eq!((root.encode().as_str(), len), ("rope stage 1", 26));
    // An edited text is saved up to the edit.
    let mut edited = ids.clone();
    edited[11] = 9;
    assert_eq!(read(&mut rig, "", &edited).unwrap().1, 11);
    edited[0] = 9;
    assert!(read(&mut rig, "", &edited).is_none());
    for text in ["", "rope stage", "rope stage -1", "rope stage 99999999999", "another 1"] {
        assert_eq!(SavedRoot::decode(text, ""), None, "{text}");
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let mut rig = digesting(32);
    let ids = prompt(10, 3);
    let block = rig.core.saved_kv().unwrap().block_bytes();
    let root = SavedRoot::decode("rope stage 0", "").unwrap();
    for (first, len) in [(0, 1), (0, block + 1), (0, 4 * block), (3, block), (usize::MAX, block), (2, 2 * block)] {
        assert!(rig.core.write_kv(&root, &ids, first, &vec![0; len]).is_err(), "{first}, {len}");
    }
    // What comes before is not there: nothing is stored.
    assert_eq!(rig.core.write_kv(&root, &ids, 1, &vec![0; block]).unwrap(), 0);
    assert_eq!(rig.core.scheduler.pool.num_cached(), 0);
    rig.core = rig.core.with_prefix_cache(false);
    assert!(matches!(rig.core.find_kv("", &ids), Err(Error::Unsupported { .. })));
    assert!(matches!(rig.core.write_kv(&root, &ids, 0, &[]), Err(Error::Unsupported { .. })));
}

#[test]
fn a_device_that_fails_leaves_no_trace_but_room() {
    let mut rig = Rig::new(limits(), |runner| runner.refuses_copies = true);
    let root = SavedRoot::decode("rope stage 0", "").unwrap();
    let block = rig.core.saved_kv().unwrap().block_bytes();
    let error = rig.core.write_kv(&root, &prompt(10, 3), 0, &vec![1; 3 * block]).unwrap_err();
    assert_eq!(error.to_string(), "`device`: no copies");
    let pool = &rig.core.scheduler.pool;
    assert_eq!((pool.num_free(), pool.num_cached()), (pool.num_blocks(), 0));
}

proptest! {
    /// In a store of any size, beside sequences that run: they end as if nothing had been restored, blocks do not leak, and
    /// what is found has the right contents.
    #[test]
    fn restoring_beside_others_changes_nothing_for_them(
        num_blocks in 12usize..40,
        lens in proptest::collection::vec(1usize..20, 1..4),
        saved in 1usize..40,
        steps in 0usize..12,
        part in 1usize..6,
    ) {
        let ids = prompt(saved, 5);
        let mut source = digesting(64);
        source.add(request(&ids, 1));
        source.run();
        let (root, len, bytes) = read(&mut source, "", &ids).unwrap();
        let mut rig = digesting(num_blocks);
        let requests: Vec<_> = (0u32..).zip(&lens).map(|(seed, len)| endless(request(&prompt(*len, seed), 8))).collect();
        let added: Vec<SeqId> = requests.iter().map(|request| rig.add(request.clone())).collect();
        for _ in 0..steps {
            rig.step();
        }
        let free = rig.core.scheduler.pool.num_free();
        let restored = write(&mut rig, &root, &ids[..len], &bytes, part);
        prop_assert_eq!(rig.core.scheduler.pool.num_free(), free);
        prop_assert!(restored <= len.div_ceil(SIZE));
        let found = read(&mut rig, "", &ids).map_or(0, |(_, _, bytes)| bytes.len() / 32);
        prop_assert!(found >= restored);
        let next = rig.add(endless(request(&[&ids[..], &[1]].concat(), 4)));
        let mut found = rig.run();
        let mut alone = digesting(64);
        let id = alone.add(endless(request(&[&ids[..], &[1]].concat(), 4)));
        prop_assert_eq!(found.remove(&next).unwrap().tokens, alone.run().remove(&id).unwrap().tokens);
        for (request, id) in requests.into_iter().zip(added) {
            let mut alone = digesting(64);
            let lone = alone.add(request);
            prop_assert_eq!(found.remove(&id).unwrap().tokens, alone.run().remove(&lone).unwrap().tokens);
        }
    }
}
