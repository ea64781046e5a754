//! Cancels: which requests they end, and what they cost others.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

/// Cancellers that a step calls in its middle.
type Cancellers = Arc<Mutex<Vec<Canceller>>>;

fn cancelled_during_steps(limits: Limits) -> (Rig, Cancellers) {
    let cancellers = Cancellers::default();
    let handle = cancellers.clone();
    let rig = Rig::new(limits, |runner| {
        runner.during = Box::new(move |_| {
            handle.lock().unwrap().drain(..).for_each(|canceller| canceller.cancel());
            Ok(())
        });
    });
    (rig, cancellers)
}

#[test]
fn a_cancel_ends_a_step_that_computes_nothing_else() {
    let (mut rig, cancellers) = cancelled_during_steps(limits());
    let (id, canceller) = rig.add_cancellable(request(&[2; 40], 4));
    rig.step();
    cancellers.lock().unwrap().push(canceller);
    rig.step();
    assert!(rig.core.is_idle());
    assert_eq!(rig.run()[&id].end.as_deref(), Some("Cancelled"));
    let Work { steps, tokens, lost_steps, lost_tokens } = rig.intake.stats().work;
    assert_eq!((steps, tokens, lost_steps, lost_tokens), (1, 8, 0, 0));
}

#[test]
fn a_cancel_inside_a_prompt_ends_that_request_only() {
    let (mut rig, cancellers) = cancelled_during_steps(limits());
    let other = rig.add(request(&[1], 4));
    let (cancelled, canceller) = rig.add_cancellable(request(&[2; 20], 4));
    rig.step();
    cancellers.lock().unwrap().push(canceller);
    let found = rig.run();
    assert_eq!(found[&cancelled], Found { end: Some("Cancelled".into()), ..Found::default() });
    assert_eq!(found[&other].tokens, [2, 3, 4, 5]);
}

#[test]
fn cancels_of_what_is_not_in_the_step_cost_nothing() {
    let (mut rig, cancellers) = cancelled_during_steps(Limits { max_num_seqs: 1, ..limits() });
    let (ended, stale) = rig.add_cancellable(request(&[1], 1));
    rig.run();
    let running = rig.add(request(&[2; 40], 4));
    let (queued, waiting) = rig.add_cancellable(request(&[2; 40], 4));
    let foreign = Intake::default().ticket().unwrap().canceller();
    let unused = rig.intake.ticket().unwrap().canceller();
    while rig.found.get(&running).is_none_or(|found| found.end.is_none()) {
        let again = [&stale, &waiting, &foreign, &unused].map(Clone::clone);
        cancellers.lock().unwrap().extend(again);
        rig.step();
    }
    let found = rig.run();
    assert_eq!(found[&queued].end.as_deref(), Some("Cancelled"));
    assert_eq!(found[&running].tokens, [3, 4, 5, 6]);
    assert!(!found.contains_key(&ended));
    assert_eq!(rig.intake.stats().work.lost_steps, 0);
    // 40 tokens in steps of 8, and three tokens of the answer: no step ran twice.
    assert_eq!(rig.steps.try_iter().count(), 1 + 5 + 3);
}

#[test]
fn a_cancel_before_or_after_a_step_does_not_end_the_next_one() {
    let (mut rig, _) = cancelled_during_steps(limits());
    let (_, first) = rig.add_cancellable(request(&[2; 8], 4));
    rig.add(request(&[3; 8], 4));
    first.cancel();
    rig.run();
    first.cancel();
    let (_, second) = rig.add_cancellable(request(&[2; 8], 2));
    rig.run();
    second.cancel();
    rig.add(request(&[3; 8], 4));
    rig.run();
    assert_eq!(rig.intake.stats().work.lost_steps, 0);
}

/// While a prompt of `victim` tokens runs, each step gets a request of `noise` tokens that is cancelled in the middle
/// of the step. Returns the work done when the victim has its first token.
fn storm(max_num_batched_tokens: usize, victim: usize, noise: usize) -> (Work, u64) {
    let limits = Limits { max_num_batched_tokens, max_model_len: 4096, num_blocks: 4096, ..limits() };
    let (mut rig, cancellers) = cancelled_during_steps(limits);
    let victim = rig.add(request(&vec![2; victim], 1));
    while rig.found.get(&victim).is_none_or(|found| found.end.is_none()) {
        let (_, canceller) = rig.add_cancellable(request(&vec![2; noise], 4));
        cancellers.lock().unwrap().push(canceller);
        rig.step();
        let Work { steps, tokens, lost_steps, lost_tokens } = rig.intake.stats().work;
        assert!(lost_steps * 10 <= steps && lost_tokens * 10 <= tokens, "{:?}", rig.intake.stats().work);
    }
    assert_eq!(rig.found[&victim].tokens, [3]);
    (rig.intake.stats().work, rig.steps.try_iter().count() as u64)
}

#[test]
fn a_storm_of_cancels_costs_others_a_tenth_at_most() {
    // First a prompt of 900 tokens that used to make no progress; then cases where the others have most of a step, half
    // of it, or little.
    for (step, victim, noise) in [(512, 900, 8), (64, 4000, 1), (64, 4000, 32), (64, 4000, 4000), (8, 2000, 3)] {
        let (work, executed) = storm(step, victim, noise);
        println!("{victim} tokens by {step}, each step cancelled by {noise}: {work:?}, {executed} steps executed");
        assert!(executed <= work.steps + work.steps / 10 + 1);
    }
}

proptest! {
    /// With any cancels in any steps, the others lose at most a tenth, and ten steps complete between two losses.
    #[test]
    fn what_cancels_cost_is_bounded(
        max_num_batched_tokens in 1usize..40,
        lens in prop::collection::vec((1usize..60, any::<bool>()), 1..60),
        when in prop::collection::vec(0usize..4, 400),
    ) {
        let limits = Limits { max_num_batched_tokens, ..limits() };
        let (mut rig, cancellers) = cancelled_during_steps(limits);
        let mut handles = Vec::new();
        let mut lens = lens.into_iter();
        let mut since_loss = u64::MAX;
        let mut before = Work::default();
        for count in when {
            if let Some((len, cancellable)) = lens.next() {
                let (_, canceller) = rig.add_cancellable(request(&vec![1; len], 3));
                handles.extend(cancellable.then_some(canceller));
            }
            let drawn = handles.len().min(count);
            cancellers.lock().unwrap().extend(handles.drain(..drawn));
            rig.step();
            let work = rig.intake.stats().work;
            prop_assert!(work.lost_steps * 10 <= work.steps && work.lost_tokens * 10 <= work.tokens);
            since_loss = since_loss.saturating_add(work.steps - before.steps);
            if work.lost_steps > before.lost_steps {
                prop_assert!(since_loss >= 10);
                since_loss = 0;
            }
            before = work;
        }
        rig.run();
    }
}

#[test]
fn cancels_from_many_threads_end_their_own_requests() {
    let mut rig = Rig::new(Limits { max_num_seqs: 4, ..limits() }, |_| {});
    let kept: Vec<SeqId> = (0..20).map(|_| rig.add(request(&[2; 30], 4))).collect();
    let mut threads = Vec::new();
    let mut cancelled = Vec::new();
    for _ in 0..20 {
        let (id, canceller) = rig.add_cancellable(request(&[2; 30], 4));
        cancelled.push(id);
        threads.push(std::thread::spawn(move || (0..100).for_each(|_| canceller.cancel())));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let found = rig.run();
    assert!(kept.iter().all(|id| found[id].tokens == [3, 4, 5, 6]));
    assert!(cancelled.iter().all(|id| found[id].end.as_deref() == Some("Cancelled")));
}
