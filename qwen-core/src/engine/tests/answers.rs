//! Answers, their ends, and what is refused.

use super::*;

#[test]
fn an_answer_ends_at_a_stop_token_or_at_its_length() {
    let mut rig = rig();
    let stop = rig.add(request(&[1, 2, 3], 20));
    let length = rig.add(request(&[4], 2));
    let found = rig.run();
    assert_eq!((found[&stop].tokens.as_slice(), found[&stop].end.as_deref()), (&[4, 5, 6, 7][..], Some("Stop")));
    assert_eq!((found[&length].tokens.as_slice(), found[&length].end.as_deref()), (&[5, 6][..], Some("Length")));
    assert_eq!((found[&stop].stop, found[&length].stop), (Some(0), None));
}

#[test]
fn a_full_context_is_a_reason_of_its_own() {
    let mut rig = rig();
    let prompt = [1; 50];
    // The context has 64 positions: 14 more tokens are what was asked for, a 15th does not fit.
    let asked = [Some(13), Some(14), Some(15), None];
    let ids = asked.map(|max_new_tokens| {
        let mut request = endless(request(&prompt, 1));
        if let Goal::Generate(params) = &mut request.goal {
            params.max_new_tokens = max_new_tokens;
        }
        rig.add(request)
    });
    let found = rig.run();
    let ends = ids.map(|id| (found[&id].tokens.len(), found[&id].end.as_deref().unwrap()));
    assert_eq!(ends, [(13, "Length"), (14, "Length"), (14, "ContextFull"), (14, "ContextFull")]);
    // A stop token in the last position stops.
    let stop = rig.add(request(&[&prompt[..], &[1; 6]].concat(), 50));
    let found = rig.run().remove(&stop).unwrap();
    assert_eq!((found.stop, found.end.as_deref()), (Some(0), Some("Stop")));
}

#[test]
fn long_prompts_come_in_chunks_and_never_hold_up_a_running_answer() {
    let mut rig = rig();
    let short = rig.add(request(&[1], 4));
    rig.step();
    let long = rig.add(request(&[2; 20], 1));
    let found = rig.run();
    assert_eq!(found[&short].tokens, [2, 3, 4, 5]);
    assert_eq!(found[&long].tokens, [3]);
    let steps: Vec<Vec<usize>> = rig.steps.try_iter().collect();
    assert_eq!(steps, [vec![1], vec![1, 7], vec![1, 7], vec![1, 6]]);
}

#[test]
fn requests_wait_for_free_blocks() {
    let mut rig = rig();
    let ids: Vec<SeqId> = (0..4).map(|_| rig.add(endless(request(&[1; 8], 50)))).collect();
    let found = rig.run();
    assert!(ids.iter().all(|id| found[id].tokens.len() == 50));
}

#[test]
fn padding_ids_are_never_chosen_and_seeds_are_the_requests_own() {
    let sampling = SamplingParams { temperature: 5.0, seed: 3, ..SamplingParams::default() };
    let seeded = endless(sampled(&[1], 12, sampling));
    // The scripted runner would damage its rows with this token.
    let alone = {
        let mut rig = rig();
        let id = rig.add(seeded.clone());
        rig.run().remove(&id).unwrap().tokens
    };
    let mut rig = rig();
    rig.add(request(&[5, 5, 5], 9));
    let id = rig.add(seeded);
    let together = rig.run().remove(&id).unwrap().tokens;
    assert_eq!(alone, together);
    assert!(!alone.is_empty() && alone.iter().all(|token| (*token as usize) < TOKEN_IDS), "{alone:?}");
}

#[test]
fn log_probabilities_come_with_each_token_and_change_none() {
    let hot = SamplingParams::new().temperature(2.0).seed(3).repetition_penalty(1.5).banned_token_ids([4]);
    for sampling in [SamplingParams::default(), hot] {
        let mut rig = rig();
        let plain = rig.add(sampled(&[1], 6, sampling.clone()));
        let mut scored = sampled(&[1], 6, sampling);
        if let Goal::Generate(params) = &mut scored.goal {
            params.logprobs = Some(2);
        }
        let scored = rig.add(scored);
        let found = rig.run();
        let (plain, scored) = (&found[&plain], &found[&scored]);
        assert_eq!((&plain.tokens, &plain.end), (&scored.tokens, &scored.end));
        assert!(plain.logprobs.is_empty());
        // The stop token has none. They are the model's: one logit of 5 among nine.
        let total = (5f64.exp() + 8.0).ln();
        let mut last = 1;
        assert_eq!(scored.logprobs.len(), scored.tokens.len());
        for (token, at) in scored.tokens.iter().zip(&scored.logprobs) {
            let best = (last + 1) % 8;
            assert_eq!((at.id, at.top.len(), at.top[0].id), (*token, 2, best));
            let expected = if *token == best { 5.0 - total } else { -total };
            assert!((at.logprob - expected).abs() < 1e-9, "{at:?}");
            last = *token;
        }
    }
}

#[test]
fn tokens_do_not_depend_on_the_threads_that_draw_them() {
    let answers = |threads: usize| {
        let limits =
            Limits { max_num_seqs: 32, max_num_logits: 32, max_num_batched_tokens: 64, num_blocks: 512, ..limits() };
        let mut rig = Rig::new(limits, |_| {});
        rig.core = rig.core.with_sampling_threads(threads);
        for seed in 0..25 {
            // Damaged ones, greedy ones, and ones that ask for more among them.
            let prompt = if seed % 7 == 3 { [1, BAD] } else { [1, seed as u32 % 8] };
            let temperature = if seed % 5 == 0 { 0.0 } else { 4.0 };
            let mut request = endless(sampled(&prompt, 12, SamplingParams::new().temperature(temperature).seed(seed)));
            if let Goal::Generate(params) = &mut request.goal {
                params.logprobs = (seed % 3 == 0).then_some(2);
            }
            rig.add(request);
        }
        rig.run()
    };
    let one = answers(1);
    assert!(one.values().filter(|found| found.tokens.len() == 12).count() > 5);
    for threads in [0, 2, 3, 100] {
        assert_eq!(answers(threads), one, "{threads}");
    }
}

#[test]
fn a_request_that_rules_out_every_token_ends_alone() {
    let mut rig = rig();
    let other = rig.add(request(&[1, 2, 3], 20));
    let nothing = SamplingParams::new().allowed_token_ids([5]).banned_token_ids([5]);
    let id = rig.add(sampled(&[1], 5, nothing));
    let found = rig.run();
    assert!(found[&id].end.as_deref().unwrap().starts_with("`sampling`: no token is left"), "{:?}", found[&id]);
    assert_eq!(found[&other].end.as_deref(), Some("Stop"));
}

#[test]
fn a_failed_step_ends_its_requests_and_the_engine_goes_on() {
    let mut rig = Rig::new(limits(), |runner| {
        runner.during = Box::new(|batch| match batch.positions.contains(&30) {
            true => Err(Error::argument("device", "unplugged")),
            false => Ok(()),
        });
    });
    let failed = [rig.add(request(&[2; 31], 4)), rig.add(request(&[3; 31], 4))];
    let found = rig.run();
    let ends = failed.map(|id| found[&id].end.clone().unwrap());
    assert_eq!(ends, ["`device`: unplugged", "a step failed: `device`: unplugged"]);
    let next = rig.add(request(&[1], 2));
    assert_eq!(rig.run()[&next].tokens, [2, 3]);
}

#[test]
fn a_step_without_the_wanted_rows_is_the_runners_failure() {
    let spoils: [fn(&mut StepOutput); 3] = [
        |output| output.argmax.clear(),
        |output| output.logits.truncate(3),
        |output| output.argmax.fill(Some(TOKEN_IDS as u32)),
    ];
    for spoil in spoils {
        let mut rig = Rig::new(limits(), |runner| runner.spoil = spoil);
        let id = rig.add(sampled(&[1], 3, SamplingParams { temperature: 1.0, ..SamplingParams::default() }));
        let end = rig.run().remove(&id).unwrap().end.unwrap();
        assert!(end.starts_with("the runner: execute: "), "{end}");
    }
}

#[test]
fn a_cancelled_step_that_nobody_cancelled_is_a_failure() {
    // Retrying it would go on forever.
    let mut rig = Rig::new(limits(), |runner| runner.during = Box::new(|_| Err(Error::Cancelled)));
    let id = rig.add(request(&[1], 3));
    let end = rig.run().remove(&id).unwrap().end.unwrap();
    assert_eq!(end, "a step failed: the runner cancelled a step that nobody cancelled");
}

#[test]
fn bad_requests_are_refused_with_figures() {
    let mut rig = rig();
    let mut refuse = |request: Request| rig.core.add(request, rig.intake.ticket().unwrap()).unwrap_err();
    assert!(matches!(refuse(request(&[], 1)), Error::EmptyPrompt));
    assert!(matches!(refuse(request(&[1; 64], 1)), Error::ContextLength { prompt: 64, limit: 63, context: 64 }));
    assert!(matches!(refuse(request(&[1, 10], 1)), Error::InvalidTokenId { id: 10, position: 1, vocab_size: 10 }));
    let mut many = request(&[1], 1);
    if let Goal::Generate(params) = &mut many.goal {
        params.logprobs = Some(101);
    }
    assert!(matches!(refuse(many), Error::InvalidArgument { name: "logprobs", .. }));
    let beyond = SamplingParams::new().banned_token_ids([TOKEN_IDS as u32]);
    assert!(matches!(refuse(sampled(&[1], 1, beyond)), Error::InvalidArgument { name: "banned_token_ids", .. }));
    let hot = SamplingParams { temperature: -1.0, ..SamplingParams::default() };
    assert!(matches!(refuse(sampled(&[1], 1, hot)), Error::InvalidArgument { name: "temperature", .. }));
}

#[test]
fn blocks_are_called_blocks() {
    let mut rig = Rig::new(Limits { num_blocks: 2, ..limits() }, |_| {});
    let error = rig.core.add(request(&[1; 8], 3), rig.intake.ticket().unwrap()).unwrap_err();
    assert!(matches!(error, Error::OutOfBlocks { needed: 3, available: 2, .. }));
    let text = error.to_string();
    assert!(text.starts_with("3 K/V blocks are needed, 2 are available: 11 positions are asked for"), "{text}");
}

#[test]
fn the_waiting_list_is_bounded() {
    let mut rig = rig();
    let intake = Intake::new(3);
    rig.core = EngineCore::new(
        Box::new(ScriptedRunner {
            limits: limits(),
            reads_slots: false,
            steps: mpsc::channel().0,
            during: Box::new(|_| Ok(())),
            spoil: |_| {},
            slots: HashMap::new(),
            refuses_copies: false,
            rope_contexts: &[],
        }),
        intake.clone(),
    );
    rig.intake = intake.clone();
    let ids: Vec<SeqId> = (0..3).map(|_| rig.add(request(&[1; 9], 3))).collect();
    let full = || intake.ticket().map(drop).unwrap_err().to_string();
    assert!(full().starts_with("3 requests are waiting, and at most 3 may"), "{}", full());
    // Running requests do not wait, nor do refused or cancelled ones.
    rig.step();
    let refused = rig.core.add(request(&[], 1), intake.ticket().unwrap());
    assert!(refused.is_err());
    let (cancelled, canceller) = rig.add_cancellable(request(&[1; 9], 3));
    let more: Vec<SeqId> = (0..2).map(|_| rig.add(request(&[1; 9], 3))).collect();
    full();
    // A cancel frees its place at once, and only once.
    canceller.cancel();
    canceller.cancel();
    let another = intake.ticket().unwrap();
    full();
    drop(another);
    rig.step();
    drop(intake.ticket().unwrap());
    let found = rig.run();
    assert_eq!(found[&cancelled].end.as_deref(), Some("Cancelled"));
    assert!(ids.iter().chain(&more).all(|id| found[id].tokens == [2, 3, 4]));
    let tickets: Vec<Ticket> = (0..3).map(|_| intake.ticket().unwrap()).collect();
    full();
    drop(tickets);
}
