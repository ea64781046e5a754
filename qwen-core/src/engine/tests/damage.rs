//! Non-finite values: whose answers they end.

use super::*;

fn end_of(found: &Found) -> &str {
    found.end.as_deref().unwrap()
}

#[test]
fn damage_ends_its_own_sequence_and_names_it() {
    let hot = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    for (guilty, sampling) in
        [(0, SamplingParams::default()), (1, SamplingParams::default()), (0, hot.clone()), (1, hot)]
    {
        let mut rig = rig();
        let prompts: [&[u32]; 2] = if guilty == 0 { [&[1, BAD], &[1, 2]] } else { [&[1, 2], &[1, BAD]] };
        let ids = prompts.map(|prompt| rig.add(endless(sampled(prompt, 6, sampling.clone()))));
        let found = rig.run();
        let text = format!("sequence {}: non-finite values first appear in layer 3", ids[guilty].0);
        assert!(end_of(&found[&ids[guilty]]).starts_with(&text), "{:?}", found[&ids[guilty]]);
        let innocent = &found[&ids[1 - guilty]];
        assert_eq!((innocent.tokens.len(), end_of(innocent)), (6, "Length"), "{innocent:?}");
    }
}

#[test]
fn damage_in_an_earlier_chunk_ends_its_own_sequence() {
    let mut rig = rig();
    let prompt: Vec<u32> = [BAD].into_iter().chain([1; 29]).collect();
    let (guilty, innocent) = (rig.add(request(&prompt, 6)), rig.add(request(&[1; 30], 6)));
    let found = rig.run();
    assert!(end_of(&found[&guilty]).contains("layer 3, or before it in an earlier part"), "{found:?}");
    assert_eq!(found[&innocent].tokens, [2, 3, 4, 5, 6, 7]);
}

#[test]
fn blocks_of_a_damaged_sequence_serve_the_next_one() {
    let mut rig = Rig::new(Limits { num_blocks: 8, ..limits() }, |_| {});
    for _ in 0..3 {
        let guilty = rig.add(request(&[BAD; 20], 6));
        assert!(end_of(&rig.run()[&guilty]).contains("non-finite"));
        let innocent = rig.add(request(&[1; 20], 6));
        assert_eq!(rig.run()[&innocent].tokens, [2, 3, 4, 5, 6, 7]);
    }
}
