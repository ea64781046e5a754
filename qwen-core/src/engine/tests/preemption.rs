//! Too few blocks for all: sequences give way and go on, and nothing of an answer changes.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

fn digesting(limits: Limits) -> Rig {
    Rig::new(limits, |runner| runner.reads_slots = true)
}

/// The answer to a request that has the engine to itself, without the prefix cache.
fn alone(request: Request) -> Vec<u32> {
    let mut rig = digesting(limits());
    rig.core = rig.core.with_prefix_cache(false);
    let id = rig.add(request);
    rig.run().remove(&id).unwrap().tokens
}

#[test]
fn endless_requests_run_together_while_they_are_short() {
    // Each may grow to the whole pool.
    let mut rig = digesting(Limits { num_blocks: 16, ..limits() });
    let ids: Vec<SeqId> = (0..4).map(|i| rig.add(endless(request(&[i, 1, 2], 61)))).collect();
    for _ in 0..8 {
        rig.step();
    }
    assert!(ids.iter().all(|id| rig.found[id].tokens.len() >= 5), "{:?}", rig.found);
    let found = rig.run();
    for (id, first) in ids.iter().zip(0..) {
        assert_eq!(found[id].tokens, alone(endless(request(&[first, 1, 2], 61))));
    }
    let stats = rig.intake.stats();
    assert!(stats.num_preemptions > 0 && stats.preempted == 0 && stats.used_blocks == 0, "{stats:?}");
}

#[test]
fn the_one_that_has_computed_least_gives_way_and_its_blocks_are_its_cache() {
    let mut rig = digesting(Limits { num_blocks: 8, ..limits() });
    let long = rig.add(endless(request(&[1; 18], 6)));
    for _ in 0..3 {
        rig.step();
    }
    let short = rig.add(endless(request(&[2; 6], 9)));
    while rig.intake.stats().num_preemptions == 0 {
        rig.step();
    }
    // The long one goes on; the short one has kept its place and its tokens.
    assert_eq!(rig.intake.stats().preempted, 1);
    let tokens = rig.found[&short].tokens.len();
    assert!(tokens > 0);
    let found = rig.run();
    assert_eq!(found[&long].tokens, alone(endless(request(&[1; 18], 6))));
    assert_eq!(found[&short].tokens, alone(endless(request(&[2; 6], 9))));
    assert!(rig.intake.stats().cached_tokens > 0, "{:?}", rig.intake.stats());
}

#[test]
fn those_that_gave_way_go_on_before_later_arrivals() {
    let mut rig = digesting(Limits { num_blocks: 8, ..limits() });
    let first = rig.add(endless(request(&[1; 10], 20)));
    let second = rig.add(endless(request(&[2; 6], 20)));
    while rig.intake.stats().num_preemptions == 0 {
        rig.step();
    }
    let third = rig.add(endless(request(&[3; 6], 20)));
    let mut ends = Vec::new();
    while !rig.core.is_idle() {
        rig.step();
        for id in [first, second, third] {
            if rig.found.get(&id).is_some_and(|found| found.end.is_some()) && !ends.contains(&id) {
                ends.push(id);
            }
        }
    }
    assert_eq!(ends, [first, second, third]);
}

#[test]
fn prompts_report_progress_once() {
    let mut rig = digesting(Limits { num_blocks: 8, ..limits() });
    let mut progress: BTreeMap<SeqId, Vec<usize>> = BTreeMap::new();
    for first in 0..3 {
        let ticket = rig.intake.ticket().unwrap();
        rig.core.add(endless(request(&[first; 9], 20)), ticket).unwrap();
    }
    while !rig.core.is_idle() {
        rig.core.step(|id, event| {
            if let Event::Prompt { done, .. } = event {
                progress.entry(id).or_default().push(done);
            }
        });
    }
    assert!(rig.intake.stats().num_preemptions > 0);
    assert_eq!(progress.len(), 3);
    assert!(progress.values().all(|done| done.is_sorted_by(|a, b| a < b) && done.last() == Some(&9)), "{progress:?}");
}

/// What happens to a request of the soak.
#[derive(Debug, Clone)]
struct Job {
    /// Steps before it arrives.
    after: usize,
    /// How it begins: jobs with the same number share a beginning.
    stem: u32,
    len: usize,
    new: usize,
    seed: u64,
    temperature: f32,
    /// Cancelled after this many steps.
    cancel: Option<usize>,
    score: bool,
    speculation: Speculation,
}

fn job() -> impl Strategy<Value = Job> {
    let cancel = prop_oneof![3 => Just(None), 1 => (0usize..12).prop_map(Some)];
    (0usize..4, 0u32..3, 1usize..40, 1usize..24, any::<u64>(), 0u32..2, cancel, 0u32..5).prop_map(
        |(after, stem, len, new, seed, hot, cancel, score)| Job {
            after,
            stem,
            len,
            new,
            seed,
            temperature: hot as f32,
            cancel,
            score: score == 0,
            speculation: if score % 2 == 0 { Speculation::Off } else { Speculation::PromptLookup },
        },
    )
}

impl Job {
    fn prompt(&self) -> Vec<u32> {
        // Stems part ways late, so that prefixes are shared.
        (0..self.len as u32).map(|i| (i * i + if i > 9 { self.stem } else { 0 }) % 7).collect()
    }

    fn request(&self, intake: &Intake) -> Request {
        let sampling = SamplingParams { temperature: self.temperature, seed: self.seed, ..SamplingParams::default() };
        match self.score {
            true => Request::score(self.prompt(), intake.window(100)),
            false => speculating(endless(sampled(&self.prompt(), self.new, sampling)), self.speculation),
        }
    }
}

/// Run jobs in company. Every block comes back, and every answer that was not cancelled, and did not fail with a
/// device, equals that of its request alone.
fn soak(jobs: &[Job], num_blocks: usize, max_num_batched_tokens: usize, faults: &[usize]) -> EngineStats {
    let step = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (now, faults) = (step.clone(), faults.to_vec());
    let limits = Limits { num_blocks, max_num_batched_tokens, ..limits() };
    let mut rig = Rig::new(limits, |runner| {
        runner.reads_slots = true;
        runner.during = Box::new(move |_| match faults.contains(&now.load(std::sync::atomic::Ordering::SeqCst)) {
            true => Err(Error::argument("device", "unplugged")),
            false => Ok(()),
        });
    });
    let mut arrivals = jobs.iter().peekable();
    let mut running: Vec<(SeqId, &Job)> = Vec::new();
    let mut cancels: Vec<(usize, Canceller)> = Vec::new();
    let mut pause = 0;
    for now in 0.. {
        step.store(now, std::sync::atomic::Ordering::SeqCst);
        let has_place = |rig: &Rig| rig.intake.stats().waiting < Intake::MAX_WAITING;
        while let Some(job) = arrivals.next_if(|job| job.after <= pause && has_place(&rig)) {
            let (id, canceller) = rig.add_cancellable(job.request(&rig.intake));
            running.push((id, job));
            cancels.extend(job.cancel.map(|after| (now + after, canceller)));
            pause = 0;
        }
        pause += 1;
        cancels.iter().filter(|(when, _)| *when == now).for_each(|(_, canceller)| canceller.cancel());
        rig.step();
        if rig.core.is_idle() && arrivals.peek().is_none() {
            break;
        }
    }
    let stats = rig.intake.stats();
    let found = rig.run();
    for (id, job) in running {
        let found = &found[&id];
        match found.end.as_deref() {
            Some("Length") => {
                let mut lone = digesting(Limits { num_blocks: 32, ..self::limits() });
                lone.core = lone.core.with_prefix_cache(false);
                let id = lone.add(job.request(&lone.intake));
                let expected = lone.run().remove(&id).unwrap();
                assert_eq!((&found.tokens, found.rows.len()), (&expected.tokens, expected.rows.len()), "{job:?}");
                let same = |a: &Vec<f32>, b: &Vec<f32>| a[..TOKEN_IDS] == b[..TOKEN_IDS];
                assert!(found.rows.iter().zip(&expected.rows).all(|(a, b)| same(a, b)), "{job:?}");
            }
            Some("Cancelled") => assert!(job.cancel.is_some()),
            Some(text) => assert!(text.contains("unplugged"), "{text}"),
            None => panic!("{job:?} did not end"),
        }
    }
    assert_eq!((stats.running, stats.preempted, stats.waiting), (0, 0, 0), "{stats:?}");
    stats
}

proptest! {
    /// Company, cancels, preemptions, cached prefixes and failures of the device change no answer.
    #[test]
    fn answers_are_those_of_a_lone_request(
        jobs in prop::collection::vec(job(), 1..40),
        num_blocks in 16usize..32,
        max_num_batched_tokens in 1usize..20,
        faults in prop::collection::vec(0usize..60, 0..3),
    ) {
        soak(&jobs, num_blocks, max_num_batched_tokens, &faults);
    }
}

#[test]
fn ten_thousand_mixed_requests_leave_nothing_behind() {
    // The short form; `SOAK_REQUESTS=10000` is the long one.
    let requests = std::env::var("SOAK_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let jobs = prop::collection::vec(job(), requests).new_tree(&mut runner).unwrap().current();
    let stats = soak(&jobs, 16, 8, &[100, 1000, 1001]);
    println!("{requests} requests: {stats:?}");
    assert!(stats.num_preemptions > 0 && stats.cached_tokens > 0, "{stats:?}");
}
