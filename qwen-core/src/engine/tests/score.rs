//! Rows of logits of a whole prompt, alongside running answers.

use super::*;

impl Rig {
    fn add_score(&mut self, prompt: &[u32], rows: usize) -> (SeqId, Canceller, RowWindow) {
        let window = self.intake.window(rows);
        let request = Request::score(prompt, window.clone());
        let (id, canceller) = self.add_cancellable(request);
        (id, canceller, window)
    }
}

/// The id with the largest logit of each row.
fn largest(found: &Found) -> Vec<usize> {
    let best = |row: &Vec<f32>| row[..TOKEN_IDS].iter().position(|logit| *logit == 5.0).unwrap();
    found.rows.iter().map(best).collect()
}

#[test]
fn every_token_has_its_row_beside_running_answers() {
    let mut rig = rig();
    let answer = rig.add(endless(request(&[1], 20)));
    rig.step();
    let prompt: Vec<u32> = (0..40).map(|i| i % 7).collect();
    let (score, _, _) = rig.add_score(&prompt, 1000);
    let found = rig.run();
    assert_eq!(found[&answer].tokens.len(), 20);
    assert_eq!(largest(&found[&score]), prompt.iter().map(|id| *id as usize + 1).collect::<Vec<_>>());
    assert_eq!(found[&score].end.as_deref(), Some("Length"));
    // Four rows per step, one of them the answer's.
    assert!(rig.steps.try_iter().skip(1).take(13).all(|lens| lens.iter().sum::<usize>() == 4));
}

#[test]
fn a_score_may_fill_the_context_and_waits_for_blocks() {
    let mut rig = Rig::new(Limits { num_blocks: 16, ..limits() }, |_| {});
    let answer = rig.add(endless(request(&[1; 10], 40)));
    rig.step();
    let (score, _, _) = rig.add_score(&[1; 64], 1000);
    let found = rig.run();
    assert_eq!((found[&answer].tokens.len(), found[&score].rows.len()), (40, 64));
}

#[test]
fn a_slow_reader_holds_up_itself_only() {
    let mut rig = rig();
    let (score, canceller, window) = rig.add_score(&[1; 20], 3);
    let answer = rig.add(request(&[1], 5));
    while rig.step() {}
    assert_eq!((rig.found[&score].rows.len(), rig.found[&answer].tokens.len()), (3, 5));
    // Nothing to compute, until a row is taken.
    let seen = rig.intake.signals();
    assert!(!rig.step());
    let reader = std::thread::spawn(move || window.give_back());
    rig.intake.wait(seen);
    reader.join().unwrap();
    while rig.step() {}
    assert_eq!(rig.found[&score].rows.len(), 4);
    // Or until it is cancelled.
    let seen = rig.intake.signals();
    assert!(!rig.step());
    let cancel = std::thread::spawn(move || canceller.cancel());
    rig.intake.wait(seen);
    cancel.join().unwrap();
    assert_eq!(rig.run()[&score].end.as_deref(), Some("Cancelled"));
}

#[test]
fn a_reader_without_room_gives_way_to_those_that_wait() {
    // Otherwise it would occupy all the sequences of a step, or all the blocks.
    for limits in [Limits { max_num_seqs: 1, ..limits() }, Limits { num_blocks: 16, ..limits() }] {
        let mut rig = Rig::new(limits, |_| {});
        let prompt: Vec<u32> = (0..62).map(|i| i % 7).collect();
        let (score, _, window) = rig.add_score(&prompt, 3);
        while rig.step() {}
        assert_eq!(rig.found[&score].rows.len(), 3);
        for _ in 0..3 {
            let answer = rig.add(endless(request(&[1; 10], 20)));
            while rig.step() {}
            assert_eq!(rig.found[&answer].tokens.len(), 20);
            window.give_back();
        }
        let (cancelled, canceller, _) = rig.add_score(&prompt, 0);
        let answer = rig.add(endless(request(&[1; 10], 20)));
        while rig.step() {}
        canceller.cancel();
        (0..prompt.len()).for_each(|_| window.give_back());
        let found = rig.run();
        assert_eq!(found[&cancelled].end.as_deref(), Some("Cancelled"));
        assert_eq!(found[&answer].tokens.len(), 20);
        // Partly recomputed, but each row was delivered once.
        assert_eq!(largest(&found[&score]), prompt.iter().map(|id| *id as usize + 1).collect::<Vec<_>>());
    }
}

#[test]
fn a_damaged_row_ends_its_score_only() {
    let mut rig = rig();
    let (bad, _, _) = rig.add_score(&[1, 2, 3, 4, 5, BAD, 1, 2], 100);
    let (good, _, _) = rig.add_score(&[1, 2, 3, 4, 5, 6, 7, 1], 100);
    let answer = rig.add(endless(request(&[1], 9)));
    let found = rig.run();
    assert!(found[&bad].end.as_ref().unwrap().contains("non-finite"), "{:?}", found[&bad]);
    assert_eq!(largest(&found[&good]), [2, 3, 4, 5, 6, 7, 0, 2]);
    assert_eq!(found[&answer].tokens.len(), 9);
}

#[test]
fn bad_scores_are_refused_with_figures() {
    let rig = rig();
    let refuse = |prompt: Vec<u32>| Request::score(prompt, rig.intake.window(1)).check(&limits()).unwrap_err();
    assert!(matches!(refuse(vec![]), Error::EmptyPrompt));
    assert!(matches!(refuse(vec![1; 65]), Error::ContextLength { prompt: 65, limit: 64, context: 64 }));
    assert!(matches!(refuse(vec![10]), Error::InvalidTokenId { id: 10, .. }));
}

#[test]
fn an_answer_that_nobody_reads_pauses_alone_and_gives_way() {
    for speculation in [Speculation::Off, Speculation::PromptLookup] {
        let mut rig = Rig::new(Limits { num_blocks: 16, ..limits() }, |_| {});
        let window = rig.intake.window(5);
        let request = speculating(endless(request(&[1, 2, 3], 40)), speculation);
        let unread = rig.add(request.clone().window(window.clone()));
        let other = rig.add(endless(super::request(&[1; 10], 20)));
        while rig.step() {}
        assert_eq!((rig.found[&unread].tokens.len(), rig.found[&other].tokens.len()), (5, 20));
        // Another request needs its blocks: it goes on later all the same.
        let large = rig.add(endless(super::request(&[3; 50], 12)));
        while rig.step() {}
        assert_eq!(rig.found[&large].tokens.len(), 12);
        while rig.found[&unread].end.is_none() {
            window.give_back();
            rig.step();
            assert!(rig.found[&unread].tokens.len() <= 45);
        }
        let mut alone = super::rig();
        let id = alone.add(request);
        assert_eq!(rig.run()[&unread].tokens, alone.run()[&id].tokens);
    }
}
