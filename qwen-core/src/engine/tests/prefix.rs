//! K/V of common prefixes: what is not computed twice, and that nobody gets another's.

use super::*;

/// A rig whose answers depend on everything that is stored.
fn digesting(limits: Limits) -> Rig {
    Rig::new(limits, |runner| runner.reads_slots = true)
}

/// The tokens that were computed since the last call.
fn computed(rig: &Rig) -> usize {
    rig.steps.try_iter().flatten().sum()
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let mut rig = digesting(limits());
    let prompt: Vec<u32> = (0..18).map(|i| i % 7).collect();
    let first = rig.add(endless(request(&prompt, 7)));
    let answer = rig.run().remove(&first).unwrap().tokens;
    assert_eq!(computed(&rig), 18 + 6);
    let history: Vec<u32> = prompt.iter().chain(&answer).copied().chain([3, 4, 5]).collect();
    let second = rig.add(endless(request(&history, 5)));
    let again = rig.run().remove(&second).unwrap().tokens;
    // 24 of 28 tokens are in six full blocks.
    assert_eq!(computed(&rig), 4 + 4);
    let stats = rig.intake.stats();
    assert_eq!((stats.cached_tokens, stats.computed_tokens, stats.hit_rate()), (24, 24 + 8, Some(24.0 / 56.0)));
    let mut alone = digesting(limits());
    let id = alone.add(endless(request(&history, 5)));
    assert_eq!(alone.run()[&id].tokens, again);
}

#[test]
fn an_edited_history_shares_what_comes_before_the_edit() {
    let mut rig = digesting(limits());
    let mut prompt: Vec<u32> = (0..20).map(|i| i % 7).collect();
    rig.add(request(&prompt, 1));
    rig.run();
    computed(&rig);
    prompt[9] = 5;
    rig.add(request(&prompt, 1));
    rig.run();
    // Two full blocks, and the beginning of the third one.
    assert_eq!(computed(&rig), 20 - 9);
}

#[test]
fn a_prompt_that_is_there_computes_its_last_token() {
    let mut rig = digesting(limits());
    for (len, expected) in [(8, 8), (8, 1), (9, 1), (8, 1), (6, 1)] {
        rig.add(request(&[1; 9][..len], 1));
        rig.run();
        assert_eq!(computed(&rig), expected);
    }
}

#[test]
fn equal_prompts_that_arrive_together_are_computed_once() {
    let mut rig = digesting(limits());
    let prompt: Vec<u32> = (0..40).map(|i| i * i % 7).collect();
    let ids: Vec<SeqId> = (0..4).map(|_| rig.add(endless(request(&prompt, 6)))).collect();
    let found = rig.run();
    assert!(ids.iter().all(|id| found[id].tokens == found[&ids[0]].tokens));
    // 40 tokens once, what each computed while the others were ahead, the last blocks and the answers.
    let tokens = computed(&rig);
    assert!(tokens < 40 + 4 * (8 + 4 + 6), "{tokens}");
    assert_eq!(rig.intake.stats().used_blocks, 0);
}

#[test]
fn salts_keep_tenants_apart() {
    let mut rig = digesting(limits());
    for (salt, expected) in [("", 20), ("a", 20), ("b", 20), ("a", 1), ("", 1)] {
        rig.add(request(&[3; 20], 1).cache_salt(salt));
        rig.run();
        assert_eq!(computed(&rig), expected, "{salt}");
    }
}

#[test]
fn without_the_cache_everything_is_computed() {
    let mut rig = digesting(limits());
    rig.core = rig.core.with_prefix_cache(false);
    for _ in 0..2 {
        rig.add(request(&[3; 20], 1));
        rig.run();
        assert_eq!(computed(&rig), 20);
    }
    assert_eq!((rig.intake.stats().cached_tokens, rig.intake.stats().cached_blocks), (0, 0));
}

#[test]
fn what_was_used_least_recently_goes_first_and_ends_before_beginnings() {
    // Ten blocks: two prompts of four blocks stay.
    let mut rig = digesting(Limits { num_blocks: 10, ..limits() });
    for prompt in [[1; 13], [2; 13], [1; 13]] {
        rig.add(request(&prompt, 1));
        rig.run();
    }
    computed(&rig);
    // Two blocks hold nothing, so two of the second prompt's have to go: its last ones.
    rig.add(request(&[4; 13], 1));
    rig.run();
    computed(&rig);
    rig.add(request(&[1; 13], 1));
    rig.run();
    assert_eq!(computed(&rig), 1);
    rig.add(request(&[2; 13], 1));
    rig.run();
    assert_eq!(computed(&rig), 13 - 8);
}

#[test]
fn nobody_gets_what_is_damaged() {
    let mut rig = rig();
    // The first chunk is damaged by a fault that does not last.
    let faults = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let handle = faults.clone();
    rig.core = {
        let (sender, steps) = mpsc::channel();
        rig.steps = steps;
        let runner = ScriptedRunner {
            limits: limits(),
            reads_slots: false,
            steps: sender,
            during: Box::new(move |_| match handle.swap(false, std::sync::atomic::Ordering::SeqCst) {
                true => Err(Error::argument("device", "unplugged")),
                false => Ok(()),
            }),
            spoil: |_| {},
            slots: HashMap::new(),
            refuses_copies: false,
            rope_contexts: &[],
        };
        EngineCore::new(Box::new(runner), rig.intake.clone())
    };
    let failed = rig.add(request(&[2; 20], 1));
    assert!(rig.run()[&failed].end.as_ref().unwrap().contains("unplugged"));
    computed(&rig);
    let next = rig.add(request(&[2; 20], 1));
    assert_eq!(rig.run()[&next].tokens, [3]);
    assert_eq!(computed(&rig), 20);
    // One whose K/V is damaged takes it along.
    let bad = rig.add(request(&[[2; 8].as_slice(), &[BAD; 12]].concat(), 1));
    assert!(rig.run()[&bad].end.as_ref().unwrap().contains("non-finite"));
    assert_eq!(rig.core.scheduler.pool.find(&kv::Prefix::default(), &[2; 4]), None);
}

#[test]
fn scores_have_all_their_rows_and_leave_their_blocks_to_answers() {
    let mut rig = digesting(limits());
    let prompt: Vec<u32> = (0..20).map(|i| i % 7).collect();
    for _ in 0..2 {
        let id = rig.add(Request::score(prompt.as_slice(), rig.intake.window(100)));
        assert_eq!(rig.run()[&id].rows.len(), 20);
        assert_eq!(computed(&rig), 20);
    }
    rig.add(request(&prompt, 1));
    rig.run();
    assert_eq!(computed(&rig), 1);
}

#[test]
fn an_answer_of_no_tokens_leaves_the_prompt_to_others() {
    let mut rig = digesting(limits());
    let prompt: Vec<u32> = (0..20).map(|i| i % 7).collect();
    // The last token is computed, also where all others are there; with full blocks and without.
    for (len, expected) in [(20, 20), (20, 1), (18, 1), (7, 1)] {
        let id = rig.add(sampled(&prompt[..len], 0, SamplingParams::new().temperature(1.0)));
        let found = rig.run().remove(&id).unwrap();
        assert_eq!(found, Found { end: Some("Length".into()), ..Found::default() });
        assert_eq!(computed(&rig), expected, "{len}");
    }
    let id = rig.add(endless(request(&prompt, 5)));
    assert_eq!(rig.run()[&id].tokens, alone(endless(request(&prompt, 5))));
    assert_eq!(computed(&rig), 1 + 4);
    // Without a cache it is of no use, but it ends.
    let mut rig = digesting(limits());
    rig.core.scheduler.prefix_cache = false;
    let id = rig.add(request(&prompt, 0));
    assert_eq!(rig.run()[&id].end.as_deref(), Some("Length"));
}

/// The answer in an engine that has computed nothing else.
fn alone(request: Request) -> Vec<u32> {
    let mut rig = digesting(limits());
    let id = rig.add(request);
    rig.run().remove(&id).unwrap().tokens
}

#[test]
fn the_next_turn_begins_behind_the_last_token_of_the_answer() {
    let mut rig = digesting(limits());
    let prompt: Vec<u32> = (0..17).map(|i| i % 7).collect();
    let first = rig.add(endless(request(&prompt, 6)));
    let answer = rig.run().remove(&first).unwrap().tokens;
    computed(&rig);
    // 22 of 23 tokens are computed, in five full blocks and two places of a sixth.
    let history = [prompt, answer, vec![3, 4]].concat();
    let second = rig.add(endless(request(&history, 5)));
    assert_eq!(rig.run()[&second].tokens, alone(endless(request(&history, 5))));
    assert_eq!(computed(&rig), 3 + 4);
}

#[test]
fn answers_to_one_prompt_share_what_no_full_block_holds() {
    let mut rig = digesting(limits());
    let prompt = [1, 2, 3, 4, 5, 6, 7];
    rig.add(endless(request(&prompt, 9)));
    rig.step();
    computed(&rig);
    // The first one goes on in the block that others copy.
    let ids: Vec<SeqId> = (0..3).map(|_| rig.add(endless(request(&prompt, 9)))).collect();
    rig.step();
    assert_eq!(computed(&rig), 4);
    let found = rig.run();
    assert!(ids.iter().all(|id| found[id].tokens == alone(endless(request(&prompt, 9)))));
}

#[test]
fn a_copy_that_fails_ends_the_requests_of_its_step_and_leaks_nothing() {
    let mut rig = Rig::new(limits(), |runner| (runner.reads_slots, runner.refuses_copies) = (true, true));
    rig.add(request(&[1; 6], 1));
    rig.run();
    let id = rig.add(request(&[1; 6], 1));
    let found = rig.run();
    assert!(found[&id].end.as_ref().unwrap().contains("no copies"), "{found:?}");
    // Requests that copy nothing go on.
    let id = rig.add(request(&[2; 6], 1));
    assert_eq!(rig.run()[&id].tokens.len(), 1);
}

#[test]
fn a_prompt_that_needs_the_whole_pool_does_not_wait_for_a_copy() {
    let mut rig = digesting(Limits { num_blocks: 4, ..limits() });
    for _ in 0..3 {
        // The first prompt leaves a block that the second one could copy.
        for prompt in [[1; 14], [2; 14]] {
            rig.add(endless(request(&prompt[..6], 1)));
            rig.run();
            let id = rig.add(endless(request(&prompt, 2)));
            assert_eq!(rig.run()[&id].tokens, alone(endless(request(&prompt, 2))));
        }
    }
}

#[test]
fn what_a_longer_content_covers_is_not_kept() {
    let mut rig = digesting(limits());
    for len in 4..=10 {
        rig.add(request(&[1; 10][..len], 1));
        rig.run();
    }
    let stats = rig.intake.stats();
    assert_eq!(stats.cached_blocks, 3, "{stats:?}");
}
