//! Log-probabilities of given tokens, alongside running answers.

use super::*;

/// The log-probability of the token that the script makes likely, and of each other one.
fn expected() -> (f64, f64) {
    let log_sum = (5.0_f64.exp() + (TOKEN_IDS - 1) as f64).ln();
    (5.0 - log_sum, -log_sum)
}

fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() < 1e-14
}

#[test]
fn only_the_rows_of_targets_are_computed() {
    let mut rig = rig();
    // 1 to 7 follow each other; the last target is not the likely one.
    let prompt: Vec<u32> = (0..20).map(|i| i % 7).collect();
    let targets = [prompt[17], prompt[18], prompt[19], 3];
    let id = rig.add(Request::logprobs(prompt, LogprobsParams::new(targets).alternatives([6, 0]).top(2)));
    let found = rig.run().remove(&id).unwrap();
    assert_eq!(found.end.as_deref(), Some("Length"));
    let (likely, unlikely) = expected();
    let ids: Vec<_> = found.scored.iter().map(|token| (token.id, token.rank)).collect();
    assert_eq!(ids, [(3, 1), (4, 1), (5, 1), (3, 5), (6, 1), (0, 2)]);
    for (token, expected) in found.scored.iter().zip([likely, likely, likely, unlikely, likely, unlikely]) {
        assert!(close(token.logprob, expected), "{token:?}");
        assert!(close(token.top[0].logprob, likely) && close(token.top[1].logprob, unlikely) && token.top.len() == 2);
    }
    assert_eq!(found.scored[5].top.iter().map(|token| token.id).collect::<Vec<_>>(), [6, 0]);
    // Eight tokens a step, and the four rows in one.
    assert_eq!(rig.steps.try_iter().collect::<Vec<_>>(), [[8], [8], [4]]);
}

#[test]
fn more_rows_than_a_step_has_and_other_requests_take_more_steps() {
    let prompt: Vec<u32> = (0..30).map(|i| i * 5 % 7).collect();
    let scored = || Request::logprobs(prompt.clone(), LogprobsParams::new(&prompt[1..]).top(3));
    // The row of the last token is wanted, the one of the first is not.
    let mut alone = rig();
    let id = alone.add(scored());
    let expected = alone.run().remove(&id).unwrap();
    assert_eq!(expected.scored.len(), 29);
    for seqs in 1..4 {
        let mut rig = rig();
        let answers: Vec<_> = (0..seqs).map(|n| rig.add(endless(request(&[n, n + 1], 12)))).collect();
        let id = rig.add(scored());
        let mut found = rig.run();
        assert_eq!(found.remove(&id).as_ref(), Some(&expected));
        assert!(answers.iter().all(|answer| found[answer].tokens.len() == 12));
    }
}

#[test]
fn a_damaged_row_ends_its_request_only() {
    let mut rig = rig();
    let bad = rig.add(Request::logprobs([1, 2, BAD, 4], LogprobsParams::new([4, 5])));
    let good = rig.add(Request::logprobs([1, 2, 3, 4], LogprobsParams::new([4, 5])));
    let found = rig.run();
    assert!(found[&bad].end.as_ref().unwrap().contains("non-finite"), "{:?}", found[&bad]);
    assert!(found[&bad].scored.is_empty());
    assert_eq!(found[&good].scored.len(), 2);
}

#[test]
fn targets_that_have_no_rows_are_refused() {
    let refuse = |request: Request| request.check(&limits()).unwrap_err();
    let params = |ids: &[u32]| LogprobsParams::new(ids);
    assert!(matches!(refuse(Request::logprobs([], params(&[1]))), Error::EmptyPrompt));
    assert!(matches!(refuse(Request::logprobs([1], params(&[]))), Error::InvalidArgument { .. }));
    assert!(matches!(refuse(Request::logprobs([1], params(&[2, 3]))), Error::InvalidArgument { .. }));
    // No token has this id, though the row of logits is this long.
    assert!(matches!(refuse(Request::logprobs([1], params(&[9]))), Error::InvalidTokenId { id: 9, .. }));
    assert!(matches!(refuse(Request::logprobs(vec![1; 65], params(&[2]))), Error::ContextLength { prompt: 65, .. }));
    Request::logprobs(vec![1; 64], params(&[2])).check(&limits()).unwrap();
}
