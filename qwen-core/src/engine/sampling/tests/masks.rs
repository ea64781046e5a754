//! What is ruled out altogether.

use super::*;

const FLAT: [f32; 4] = [4.0, 3.0, 2.0, 1.0];

#[test]
fn banned_and_allowed_ids() {
    assert_eq!(choose(SamplingParams::new().banned_token_ids([0, 1]), &[], 0, &FLAT), Ok(2));
    assert_eq!(choose(SamplingParams::new().allowed_token_ids([3, 2]), &[], 0, &FLAT), Ok(2));
    assert_eq!(choose(hot().allowed_token_ids([3, 2]).banned_token_ids([2]), &[], 0, &FLAT), Ok(3));
    let nothing = hot().allowed_token_ids([2]).banned_token_ids([2]);
    assert_eq!(choose(nothing, &[], 0, &FLAT), Err(SampleError::NothingLeft));
}

#[test]
fn banned_sequences_never_become_complete() {
    let params = SamplingParams::new().banned_sequences([vec![5, 6, 0], vec![1]]);
    assert_eq!(choose(params.clone(), &[5, 6], 1, &FLAT), Ok(2), "across the border of the prompt");
    assert_eq!(choose(params.clone(), &[6], 1, &FLAT), Ok(0));
    assert_eq!(choose(params, &[6, 5], 1, &FLAT), Ok(0));
}

#[test]
fn n_grams_come_once() {
    let params = |size| SamplingParams::new().no_repeat_ngram_size(size);
    assert_eq!(choose(params(2), &[3, 0, 3], 1, &FLAT), Ok(1), "3 0 was there");
    assert_eq!(choose(params(3), &[3, 0, 3], 1, &FLAT), Ok(0));
    assert_eq!(choose(params(3), &[2, 3, 0, 2, 3], 3, &FLAT), Ok(1));
    assert_eq!(choose(params(1), &[0, 2], 1, &FLAT), Ok(1), "each token once");
    assert_eq!(choose(params(9), &[0, 2], 1, &FLAT), Ok(0));
}

#[test]
fn an_answer_does_not_end_early() {
    // Token 0 would end it.
    let params = hot().temperature(0.01).min_new_tokens(2);
    for (position, id) in [(0, 1), (1, 1), (2, 0)] {
        assert_eq!(choose(params.clone(), &vec![7; 3 + position], 3, &FLAT), Ok(id));
    }
}

#[test]
fn forced_tokens_come_first_whatever_else_is_said() {
    let params = SamplingParams::new().forced_token_ids([3, 2]).banned_token_ids([3]);
    for (position, id) in [(0, 3), (1, 2), (2, 0)] {
        assert_eq!(choose(params.clone(), &vec![7; 1 + position], 1, &FLAT), Ok(id));
    }
    assert_eq!(choose(params.clone(), &[7], 1, &[f32::NAN; 4]), Err(SampleError::Damaged));
    let none = f32::NEG_INFINITY;
    assert_eq!(processed(params, &[7], &[], &FLAT), [none, none, none, 0.0]);
}
