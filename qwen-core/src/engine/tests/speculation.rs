//! Guesses change the steps of an answer, never its tokens.

use proptest::prelude::*;

use super::*;

fn rig_with(limits: Limits, reads_slots: bool) -> Rig {
    Rig::new(limits, |runner| runner.reads_slots = reads_slots)
}

/// The answer with and without speculation, and the steps that each took.
fn both(request: &Request, reads_slots: bool) -> [(Found, usize); 2] {
    [Speculation::Off, Speculation::PromptLookup].map(|speculation| {
        let mut rig = rig_with(limits(), reads_slots);
        let id = rig.add(speculating(request.clone(), speculation));
        let found = rig.run().remove(&id).unwrap();
        (found, rig.steps.try_iter().count())
    })
}

#[test]
fn an_answer_that_repeats_itself_takes_fewer_steps() {
    // The scripted runner counts modulo 8, so its answer repeats itself.
    let [(plain, steps), (guessed, fewer)] = both(&endless(request(&[1, 2, 3], 60)), false);
    assert_eq!(plain, guessed);
    assert!(fewer < steps * 2 / 3, "{fewer} of {steps} steps");
}

#[test]
fn a_stop_token_among_the_guesses_ends_the_answer_there() {
    let prompt: Vec<u32> = (0..3).flat_map(|_| 1..8).chain([0]).flat_map(|id| [id]).collect();
    let prompt = [prompt.as_slice(), &[1, 2, 3]].concat();
    let [(plain, _), (guessed, _)] = both(&request(&prompt, 30), false);
    assert_eq!((plain.tokens.as_slice(), plain.end.as_deref()), (&[4, 5, 6, 7][..], Some("Stop")));
    assert_eq!(plain, guessed);
}

#[test]
fn damage_behind_the_guesses_ends_the_answer_where_it_would_without() {
    // An answer that is steered into damage: the forced token is the bad one.
    let forced_token_ids = [2, 3, 4, 5, 6, 7, 0, 1].repeat(3).into_iter().chain([BAD, 1]).collect();
    let sampling = SamplingParams { forced_token_ids, ..SamplingParams::default() };
    let [(plain, _), (guessed, _)] = both(&endless(sampled(&[1], 40, sampling)), false);
    assert_eq!(plain.tokens.len(), 25);
    assert!(plain.end.as_ref().unwrap().contains("non-finite"), "{plain:?}");
    assert_eq!(plain, guessed);
}

#[test]
fn the_engine_counts_guesses_and_those_that_were_right() {
    let mut rig = rig_with(limits(), false);
    rig.add(speculating(endless(request(&[1, 2, 3], 60)), Speculation::PromptLookup));
    rig.run();
    let stats = rig.intake.stats();
    assert!(stats.accepted_tokens > 20 && stats.accepted_tokens <= stats.drafted_tokens, "{stats:?}");
}

proptest! {
    /// Greedy and sampled, with penalties, log-probabilities and stops: the same tokens, beside other requests too.
    #[test]
    fn the_tokens_are_those_of_plain_decoding(
        stem in prop::collection::vec(0u32..8, 1..12),
        repeats in 1usize..4,
        new in 1usize..40,
        temperature in prop_oneof![Just(0.0f32), 0.2f32..2.0],
        repetition_penalty in prop_oneof![Just(1.0f32), 1.0f32..1.6],
        seed in any::<u64>(),
        logprobs in any::<bool>(),
        reads_slots in any::<bool>(),
        stops in any::<bool>(),
    ) {
        let prompt = stem.repeat(repeats);
        let new = new.min(63 - prompt.len());
        let sampling =
            SamplingParams { temperature, repetition_penalty, seed, ..SamplingParams::default() };
        let mut asked = sampled(&prompt, new, sampling);
        if !stops {
            asked = endless(asked);
        }
        if let Goal::Generate(params) = &mut asked.goal {
            params.logprobs = logprobs.then_some(2);
        }
        let [(plain, _), (guessed, _)] = both(&asked, reads_slots);
        prop_assert_eq!(&plain, &guessed);
        let mut crowd = rig_with(Limits { num_blocks: 16, ..limits() }, reads_slots);
        let id = crowd.add(speculating(asked, Speculation::PromptLookup));
        crowd.add(speculating(endless(request(&[3, 1, 3, 1, 3, 1], 30)), Speculation::PromptLookup));
        prop_assert_eq!(&plain, &crowd.run()[&id]);
    }
}
