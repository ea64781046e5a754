//! Few tokens per step for many sequences: all of them progress.

use proptest::prelude::*;

use super::*;

#[test]
fn answers_take_turns_where_a_step_has_fewer_tokens_than_sequences() {
    let mut rig = Rig::new(Limits { max_num_batched_tokens: 1, ..limits() }, |_| {});
    let ids: Vec<SeqId> = (0..4).map(|_| rig.add(endless(request(&[1], 12)))).collect();
    for _ in 0..4 * 5 {
        rig.step();
    }
    assert!(ids.iter().all(|id| rig.found[id].tokens.len() == 5), "{:?}", rig.found);
    rig.run();
}

proptest! {
    /// Each of `n` running sequences is served at least once in `n / max_num_batched_tokens` steps, rounded up.
    #[test]
    fn every_running_sequence_is_served_in_time(
        max_num_batched_tokens in 1usize..12,
        max_num_seqs in 1usize..8,
        max_num_logits in 1usize..8,
        arrivals in prop::collection::vec((0usize..4, 1usize..50, 1usize..10, any::<bool>()), 1..30),
    ) {
        let limits = Limits { max_num_batched_tokens, max_num_seqs, max_num_logits, num_blocks: 64, ..limits() };
        let mut rig = Rig::new(limits, |_| {});
        let mut arrivals = arrivals.into_iter().peekable();
        let mut pause = 0;
        let mut served: BTreeMap<SeqId, usize> = BTreeMap::new();
        for step in 0.. {
            while let Some((_, len, new, score)) = arrivals.next_if(|(after, ..)| *after <= pause) {
                let window = rig.intake.window(len);
                let goal = if score { Goal::Score(window) } else { endless(request(&[1], new)).goal };
                rig.add(Request { goal, ..request(&vec![1; len], 1) });
                pause = 0;
            }
            pause += 1;
            if rig.core.is_idle() && arrivals.peek().is_none() {
                break;
            }
            let computed = |rig: &Rig| -> BTreeMap<SeqId, usize> {
                rig.core.scheduler.running().map(|s| (s.id, s.num_computed_tokens)).collect()
            };
            let before = computed(&rig);
            rig.step();
            let after = computed(&rig);
            let allowed = max_num_seqs.min(max_num_logits).div_ceil(max_num_batched_tokens);
            for (id, count) in &after {
                let last = served.entry(*id).or_insert(step);
                if before.get(id).copied().unwrap_or(0) < *count {
                    *last = step + 1;
                }
                prop_assert!(step + 1 - *last < allowed + 1, "{id:?}: last in step {last}, now after {step}");
            }
        }
        prop_assert!(rig.found.values().all(|found| found.end.as_deref() == Some("Length")));
        rig.run();
    }
}
