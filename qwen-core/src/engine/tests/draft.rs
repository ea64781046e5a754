//! A draft model changes the steps of an answer, never its tokens, whatever it guesses and however it fails.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// How a draft model differs from the large one.
#[derive(Debug, Clone, Copy)]
enum Draft {
    Same,
    /// Guesses something else where the large model has an odd id.
    Half,
    /// Always guesses something else.
    Wrong,
    /// Every row is damaged.
    Damaged,
    /// Its device fails in this step.
    Fails(usize),
    /// Rows are missing.
    Short,
    /// So many blocks of four positions.
    Blocks(usize),
    /// A shorter context.
    Context(usize),
    /// A smaller vocabulary.
    Vocabulary(usize),
}

fn shift(output: &mut StepOutput, is_shifted: fn(u32) -> bool) {
    output.argmax.iter_mut().flatten().filter(|id| is_shifted(**id)).for_each(|id| *id = (*id + 1) % 8);
    for row in output.logits.chunks_exact_mut(VOCAB) {
        let largest = (0..8).find(|id| row[*id as usize] == 5.0);
        if let Some(id) = largest.filter(|id| is_shifted(*id)) {
            row.swap(id as usize, (id as usize + 1) % 8);
        }
    }
}

/// The next token depends on all tokens, and on the stage of RoPE, which depends on the longest answer.
fn read_slots(runner: &mut ScriptedRunner, reads_slots: bool) {
    runner.reads_slots = reads_slots;
    runner.rope_contexts = if reads_slots { &[16, 32, 64] } else { &[] };
}

fn draft_model(draft: Draft, reads_slots: bool) -> ScriptedRunner {
    let mut limits = limits();
    match draft {
        Draft::Blocks(blocks) => limits.num_blocks = blocks,
        Draft::Context(context) => limits.max_model_len = context,
        Draft::Vocabulary(ids) => (limits.vocab_size, limits.num_token_ids) = (ids, ids),
        _ => {}
    }
    let change = |runner: &mut ScriptedRunner| {
        read_slots(runner, reads_slots);
        match draft {
            Draft::Half => runner.spoil = |output| shift(output, |id| id % 2 == 1),
            Draft::Wrong => runner.spoil = |output| shift(output, |_| true),
            Draft::Damaged => {
                runner.spoil = |output| {
                    output.argmax.fill(None);
                    output.logits.fill(f32::NAN);
                }
            }
            Draft::Short => {
                runner.spoil = |output| {
                    output.argmax.pop();
                    output.logits.clear();
                }
            }
            Draft::Fails(at) => {
                let mut steps = 0;
                runner.during = Box::new(move |_| {
                    steps += 1;
                    let failure = || Error::Device { device: "d".into(), op: "o".into(), reason: "lost".into() };
                    if steps > at { Err(failure()) } else { Ok(()) }
                });
            }
            _ => {}
        }
    };
    ScriptedRunner::new(limits, change).0
}

fn rig_with(draft: Option<Draft>, limits: Limits, reads_slots: bool) -> Rig {
    let rig = Rig::new(limits, |runner| read_slots(runner, reads_slots));
    match draft {
        Some(draft) => rig.with_draft(draft_model(draft, reads_slots)),
        None => rig,
    }
}

/// Room for guesses beside each other.
fn roomy() -> Limits {
    Limits { max_num_batched_tokens: 32, max_num_logits: 24, ..limits() }
}

/// The answer with and without a draft model, the steps that each took, and the figures of the former.
fn both(request: &Request, draft: Draft, reads_slots: bool) -> ([(Found, usize); 2], EngineStats, Intake) {
    let answer = |mut rig: Rig, request: Request| {
        let id = rig.add(request);
        let found = rig.run().remove(&id).unwrap();
        ((found, rig.steps.try_iter().count()), rig.intake.clone())
    };
    let (plain, _) = answer(rig_with(None, roomy(), reads_slots), request.clone());
    let guessing = speculating(request.clone(), Speculation::Draft);
    let (guessed, intake) = answer(rig_with(Some(draft), roomy(), reads_slots), guessing);
    ([plain, guessed], intake.stats(), intake)
}

#[test]
fn a_draft_model_that_agrees_saves_most_steps_of_any_answer() {
    for temperature in [0.0, 1.5] {
        let sampling = SamplingParams { temperature, seed: 4, ..SamplingParams::default() };
        let asked = endless(sampled(&[1, 2, 3, 1], 50, sampling));
        let ([(plain, steps), (guessed, fewer)], stats, _) = both(&asked, Draft::Same, true);
        assert_eq!(plain, guessed);
        assert!(fewer * 3 < steps, "{fewer} of {steps} steps");
        assert_eq!(stats.accepted_tokens, stats.drafted_tokens, "{stats:?}");
        assert!(stats.draft_time > Duration::ZERO && stats.draft_time < stats.step_time);
    }
}

#[test]
fn a_draft_model_that_is_always_wrong_is_hardly_asked() {
    let ([(plain, steps), (guessed, as_many)], stats, _) = both(&endless(request(&[1, 2, 3], 60)), Draft::Wrong, true);
    assert_eq!((plain, steps), (guessed, as_many));
    assert!(stats.accepted_tokens == 0 && (1..30).contains(&stats.drafted_tokens), "{stats:?}");
}

#[test]
fn a_draft_model_that_fails_ends_no_answer_and_says_so() {
    for draft in [Draft::Fails(0), Draft::Fails(5), Draft::Short] {
        let ([(plain, _), (guessed, _)], _, intake) = both(&endless(request(&[1, 2, 3], 40)), draft, true);
        assert_eq!(plain, guessed);
        let reason = intake.draft_error().expect("it failed");
        assert!(reason.contains("lost") || reason.contains("ids are wanted"), "{reason}");
    }
    let ([(plain, _), (guessed, _)], stats, intake) = both(&endless(request(&[1, 2, 3], 40)), Draft::Damaged, true);
    assert_eq!((plain, stats.drafted_tokens, intake.draft_error()), (guessed, 0, None));
}

#[test]
fn an_engine_without_a_draft_model_refuses_it_by_name() {
    let mut rig = rig();
    let asked = speculating(request(&[1], 3), Speculation::Draft);
    let refused = rig.core.add(asked, rig.intake.ticket().unwrap());
    assert_eq!(refused.unwrap_err().to_string(), "`speculation`: the engine has no draft model");
}

#[test]
fn ids_that_the_draft_model_lacks_are_neither_given_to_it_nor_proposed() {
    // It counts to 5 and lacks 6 and 7: what comes after them is not guessed.
    let asked = endless(request(&[1, 2, 3], 20));
    let ([(plain, steps), (guessed, fewer)], stats, intake) = both(&asked, Draft::Vocabulary(6), false);
    assert_eq!((plain, intake.draft_error()), (guessed, None));
    assert!(fewer < steps && stats.accepted_tokens > 0, "{stats:?}");
    // A prompt that it cannot read.
    let ([_, (_, steps)], stats, _) = both(&endless(request(&[7, 1], 20)), Draft::Vocabulary(6), false);
    assert_eq!((steps, stats.drafted_tokens), (20, 0));
}

#[test]
fn a_long_prompt_is_computed_in_parts_and_found_by_the_next_request() {
    let (runner, parts) = ScriptedRunner::new(limits(), |runner| read_slots(runner, true));
    let mut rig = rig_with(None, roomy(), true).with_draft(runner);
    let prompt: Vec<u32> = (0..30).map(|index| index % 7).collect();
    rig.add(speculating(endless(request(&prompt, 20)), Speculation::Draft));
    rig.run();
    // Eight tokens at most; meanwhile the answer goes on.
    let first: Vec<usize> = parts.try_iter().map(|lens| lens[0]).collect();
    assert_eq!(first[..4], [8; 4]);
    assert!(first[5..].iter().all(|tokens| *tokens <= 2), "{first:?}");
    rig.add(speculating(endless(request(&prompt, 20)), Speculation::Draft));
    rig.run();
    let again: Vec<usize> = parts.try_iter().map(|lens| lens[0]).collect();
    assert!(again[0] <= 4 && again.iter().sum::<usize>() + 25 < first.iter().sum(), "{again:?} after {first:?}");
}

#[test]
fn a_full_pool_gives_no_guesses_to_some_and_all_answers_end() {
    let answers = |draft: Option<Draft>| {
        let mut rig = rig_with(draft, Limits { num_blocks: 64, ..roomy() }, true);
        for first in 0..4 {
            let asked = endless(request(&[first, 1, 2, 3, 4, 5, 6], 40));
            rig.add(if draft.is_some() { speculating(asked, Speculation::Draft) } else { asked });
        }
        (rig.run(), rig.intake.stats())
    };
    let (plain, _) = answers(None);
    for blocks in [1, 3, 9, 20] {
        let (guessed, stats) = answers(Some(Draft::Blocks(blocks)));
        assert_eq!(plain, guessed);
        assert_eq!(stats.drafted_tokens > 0, blocks > 1, "{blocks} blocks: {stats:?}");
    }
}

fn drafts() -> impl Strategy<Value = Draft> {
    prop_oneof![
        Just(Draft::Same),
        Just(Draft::Half),
        Just(Draft::Wrong),
        Just(Draft::Damaged),
        Just(Draft::Short),
        (0usize..20).prop_map(Draft::Fails),
        (1usize..16).prop_map(Draft::Blocks),
        (1usize..40).prop_map(Draft::Context),
        (1usize..VOCAB).prop_map(Draft::Vocabulary),
    ]
}

/// A request of the tests in company.
#[derive(Debug, Clone)]
struct Asked {
    prompt: Vec<u32>,
    new: usize,
    temperature: f32,
    repetition_penalty: f32,
    seed: u64,
    logprobs: bool,
    stops: bool,
    speculation: Speculation,
    /// It is cancelled, or its time is over, after so many steps.
    cancelled_after: Option<usize>,
}

impl Asked {
    fn request(&self) -> Request {
        let Asked { temperature, repetition_penalty, seed, .. } = *self;
        let sampling = SamplingParams { temperature, repetition_penalty, seed, ..SamplingParams::default() };
        let asked = sampled(&self.prompt, self.new, sampling);
        let mut asked = if self.stops { asked } else { endless(asked) };
        if let Goal::Generate(params) = &mut asked.goal {
            params.logprobs = self.logprobs.then_some(2);
        }
        asked
    }
}

fn requests() -> impl Strategy<Value = Asked> {
    let sampling = (
        prop_oneof![Just(0.0f32), 0.2f32..2.0],
        prop_oneof![Just(1.0f32), 1.0f32..1.6],
        any::<u64>(),
        any::<bool>(),
        any::<bool>(),
    );
    let speculation = prop_oneof![
        3 => Just(Speculation::Draft),
        1 => Just(Speculation::PromptLookup),
        1 => Just(Speculation::Off),
    ];
    let text = (prop::collection::vec(0u32..8, 1..24), 1usize..36);
    (text, sampling, speculation, prop::option::weighted(0.3, 0usize..12)).prop_map(
        |((prompt, new), (temperature, repetition_penalty, seed, logprobs, stops), speculation, cancelled_after)| {
            Asked { prompt, new, temperature, repetition_penalty, seed, logprobs, stops, speculation, cancelled_after }
        },
    )
}

proptest! {
    /// Alone and in company, where blocks run out and requests are cancelled: each answer is that of plain decoding, as
    /// far as it goes.
    #[test]
    fn the_tokens_are_those_of_plain_decoding(
        draft in drafts(),
        asked in prop::collection::vec(requests(), 1..6),
        num_blocks in 15usize..40,
        is_tight in any::<bool>(),
        reads_slots in any::<bool>(),
    ) {
        let limits = Limits { num_blocks, ..if is_tight { limits() } else { roomy() } };
        let mut company = rig_with(Some(draft), limits, reads_slots);
        let mut ids = Vec::new();
        for asked in &asked {
            ids.push(company.add_cancellable(speculating(asked.request(), asked.speculation)));
        }
        for step in 0..12 {
            for ((_, canceller), asked) in ids.iter().zip(&asked) {
                if asked.cancelled_after == Some(step) {
                    canceller.cancel();
                }
            }
            company.step();
        }
        let mut found = company.run();
        for ((id, _), asked) in ids.iter().zip(&asked) {
            let mut alone = rig_with(None, roomy(), reads_slots);
            let own = alone.add(asked.request());
            let (mut plain, mut found) = (alone.run().remove(&own).unwrap(), found.remove(id).unwrap());
            // An error names its sequence, and what was computed since it was preempted.
            for end in [&mut plain.end, &mut found.end].into_iter().flatten().filter(|end| end.contains("non-finite")) {
                *end = "damaged".into();
            }
            match found.end.as_deref() {
                Some("Cancelled") => prop_assert!(plain.tokens.starts_with(&found.tokens)),
                _ => prop_assert_eq!(plain, found),
            }
        }
    }
}
