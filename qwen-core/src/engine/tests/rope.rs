//! Stages of RoPE: each sequence has the one that its length needs, from its first token to its last.

use std::sync::{Arc, Mutex};

use super::*;

/// Stages that reach up to 16, 32 and 64 positions.
fn staged(change: impl FnOnce(&mut ScriptedRunner)) -> Rig {
    Rig::new(limits(), |runner| {
        (runner.reads_slots, runner.rope_contexts) = (true, &[16, 32, 64]);
        change(runner);
    })
}

fn answer(rig: &mut Rig, request: Request) -> Found {
    let id = rig.add(request);
    rig.run().remove(&id).unwrap()
}

#[test]
fn the_longest_answer_that_may_come_decides() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let stages = seen.clone();
    let mut rig = staged(|runner| {
        runner.during = Box::new(move |batch| {
            stages.lock().unwrap().extend_from_slice(&batch.rope_stages);
            Ok(())
        });
    });
    for (prompt, new, stage) in [(10, 6, 0), (10, 7, 1), (16, 16, 1), (17, 16, 2), (1, 60, 2), (60, 60, 2)] {
        answer(&mut rig, request(&[1; 64][..prompt], new));
        assert!(seen.lock().unwrap().drain(..).all(|found| found == stage), "{prompt} + {new}");
    }
    let scored = |len: usize| Request::score(&[1; 64][..len], rig.intake.window(100));
    for (request, stage) in [(scored(16), 0), (scored(17), 1), (scored(64), 2)] {
        answer(&mut rig, request);
        assert!(seen.lock().unwrap().drain(..).all(|found| found == stage));
    }
}

#[test]
fn an_answer_without_a_bound_ends_with_its_stage() {
    let mut rig = Rig::new(Limits { max_model_len: 40_000, num_blocks: 20_000, ..limits() }, |runner| {
        runner.rope_contexts = &[8200, 16_400, 32_800];
    });
    let unbounded = |len: usize| {
        let mut request = endless(request(&[1; 16][..len], 1));
        if let Goal::Generate(params) = &mut request.goal {
            params.max_new_tokens = None;
        }
        request
    };
    // 8,192 tokens are expected.
    for (prompt, context) in [(8, 8200), (9, 16_400)] {
        let found = answer(&mut rig, unbounded(prompt));
        assert_eq!((found.tokens.len(), found.end.as_deref()), (context - prompt, Some("ContextFull")));
    }
}

#[test]
fn stages_share_no_kv() {
    let mut rig = staged(|_| {});
    let prompt = [3; 12];
    let [short, long] = [2, 20].map(|new| endless(request(&prompt, new)));
    let expected = [short, long].map(|request| answer(&mut staged(|_| {}), request));
    for _ in 0..2 {
        for (new, expected) in [2, 20].into_iter().zip(&expected) {
            assert_eq!(&answer(&mut rig, endless(request(&prompt, new))), expected);
        }
    }
    // Each found its own K/V the second time.
    assert_eq!(rig.intake.stats().cached_tokens, 2 * 11);
    assert_ne!(expected[0].tokens[..2], expected[1].tokens[..2]);
}

#[test]
fn unlike_stages_run_in_one_step() {
    let mut rig = staged(|_| {});
    let requests = || [(5, 4), (5, 20), (30, 30)].map(|(len, new)| endless(request(&[2; 32][..len], new)));
    let ids = requests().map(|request| rig.add(request));
    let found = rig.run();
    for (id, request) in ids.iter().zip(requests()) {
        assert_eq!(found[id], answer(&mut staged(|_| {}), request));
    }
}
