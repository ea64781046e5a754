//! Few tokens per step for many sequences: all of them progress.

use proptest::prelude::*;

use std::time::{Duration, Instant};

use super::*;

/// The order in which requests end.
fn ends(rig: &mut Rig) -> Vec<SeqId> {
    let mut ends = Vec::new();
    while !rig.core.is_idle() {
        rig.step();
        let ended = rig.found.iter().filter(|(_, found)| found.end.is_some()).map(|(id, _)| *id);
        ends.extend(ended.filter(|id| !ends.contains(id)).collect::<Vec<_>>());
    }
    ends
}

#[test]
fn users_take_turns_however_many_requests_each_sends() {
    let mut rig = Rig::new(Limits { max_num_seqs: 1, ..limits() }, |_| {});
    let mut add = |user: &str| rig.add(request(&[1; 3], 2).user(user));
    let many: Vec<SeqId> = (0..4).map(|_| add("many")).collect();
    let few: Vec<SeqId> = (0..2).map(|_| add("few")).collect();
    assert_eq!(ends(&mut rig), [many[0], few[0], many[1], few[1], many[2], many[3]]);
}

#[test]
fn higher_priorities_run_first_and_give_way_last() {
    let mut rig = Rig::new(Limits { max_num_seqs: 1, ..limits() }, |_| {});
    let ids = [0, -1, 5, 5].map(|priority| rig.add(request(&[1; 3], 2).priority(priority)));
    assert_eq!(ends(&mut rig), [ids[2], ids[3], ids[0], ids[1]]);
    // The long answer has computed most, and gives way all the same.
    let mut rig = Rig::new(Limits { num_blocks: 8, ..limits() }, |_| {});
    let low = rig.add(endless(request(&[1; 12], 20)));
    rig.step();
    let high = rig.add(endless(request(&[2; 6], 20)).priority(1));
    assert_eq!(ends(&mut rig), [high, low]);
    assert!(rig.intake.stats().num_preemptions > 0);
    assert!(rig.found.values().all(|found| found.tokens.len() == 20));
}

#[test]
fn a_request_ends_when_its_time_is_over() {
    let mut rig = Rig::new(Limits { max_num_seqs: 1, ..limits() }, |_| {});
    let now = Instant::now();
    let runs = rig.add(endless(request(&[1], 20)).deadline(now + Duration::from_secs(3600)));
    rig.step();
    let waits = rig.add(request(&[1], 2).deadline(now));
    rig.step();
    assert!(rig.found[&waits].end.as_ref().unwrap().contains("with 0 tokens"), "{:?}", rig.found);
    let found = rig.run();
    assert_eq!((found[&runs].tokens.len(), found[&waits].tokens.len()), (20, 0));
}

#[test]
fn a_short_prompt_is_not_held_up_by_a_long_one() {
    let mut rig = Rig::new(Limits { max_num_batched_tokens: 16, ..limits() }, |_| {});
    let long = rig.add(request(&[2; 60], 1));
    rig.step();
    let short = rig.add(request(&[1; 4], 1));
    rig.step();
    assert_eq!(rig.found[&short].end.as_deref(), Some("Length"));
    assert_eq!(rig.run()[&long].tokens, [3]);
}

#[test]
fn a_prompt_beside_an_answer_comes_in_parts_of_the_allowed_time() {
    let mut rig = Rig::new(Limits { max_num_batched_tokens: 64, ..limits() }, |runner| {
        // Slow enough that only the fewest tokens fit in the time.
        runner.during = Box::new(|batch| {
            let started = Instant::now();
            while started.elapsed() < Duration::from_micros(50 * batch.num_tokens() as u64) {}
            Ok(())
        });
    });
    rig.core = rig.core.with_max_step_time(Duration::from_micros(10));
    rig.add(request(&[1; 60], 1));
    rig.run();
    rig.steps.try_iter().for_each(drop);
    let answer = rig.add(endless(request(&[2], 10)));
    rig.step();
    rig.add(request(&[3; 60], 1));
    rig.run();
    let steps: Vec<usize> = rig.steps.try_iter().map(|lens| lens.iter().sum()).collect();
    assert_eq!(steps[..5], [1, 16, 16, 16, 16], "{answer:?}");
}

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

#[test]
fn a_short_prompt_beside_a_long_one_is_complete_after_a_short_step() {
    let mut rig = Rig::new(Limits { max_num_batched_tokens: 32, ..limits() }, |_| {});
    rig.add(request(&[1; 60], 1));
    rig.step();
    let short = rig.add(endless(request(&[2; 4], 3)));
    rig.step();
    assert_eq!(rig.found[&short].tokens.len(), 1);
    rig.run();
    // The long one has its share of a step, behind the row that is wanted, and all the rest of the next one.
    assert_eq!(rig.steps.try_iter().collect::<Vec<_>>(), [vec![32], vec![4, 8], vec![20, 1], vec![1]]);
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

#[test]
fn a_deadline_wakes_an_engine_whose_readers_do_not_read() {
    let mut rig = rig();
    let window = rig.intake.window(1);
    let deadline = Instant::now() + Duration::from_millis(100);
    let id = rig.add(Request::score([1, 2, 3], window).deadline(deadline));
    // Later ones do not count.
    let later = rig.add(Request::score([1, 2, 3], rig.intake.window(1)).deadline(deadline + Duration::from_secs(3600)));
    while rig.step() {}
    let seen = rig.intake.signals();
    // If it slept on, another thread would wake it.
    let intake = rig.intake.clone();
    let (woken, wait) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if wait.recv_timeout(Duration::from_secs(20)).is_err() {
            intake.signal();
        }
    });
    rig.intake.wait(seen);
    assert_eq!(rig.intake.signals(), seen, "it slept until somebody woke it");
    assert!(Instant::now() >= deadline);
    assert!(!rig.step());
    assert!(rig.found[&id].end.as_ref().unwrap().contains("deadline"), "{:?}", rig.found[&id]);
    assert_eq!((rig.found[&id].rows.len(), &rig.found[&later].end), (1, &None));
    woken.send(()).unwrap();
    watchdog.join().unwrap();
}
