//! What was used becomes less likely.

use super::*;

#[test]
fn the_repetition_penalty_counts_prompt_and_answer_once_each() {
    let params = SamplingParams::new().repetition_penalty(2.0);
    let found = processed(params.clone(), &[0, 0, 3], &[1, 3], &[1.5, -1.0, 1.0, f32::NEG_INFINITY]);
    assert_eq!(found, [0.75, -2.0, 1.0, f32::NEG_INFINITY]);
    assert_eq!(choose(params, &[0], 1, &[1.5, 1.0, -1.0]), Ok(1));
}

#[test]
fn presence_and_frequency_count_the_answer_alone() {
    let params = SamplingParams::new().presence_penalty(0.5).frequency_penalty(0.25);
    assert_eq!(processed(params.clone(), &[0, 0, 3], &[1, 1, 2], &[1.0; 4]), [1.0, 0.0, 0.25, 1.0]);
    let rewarded = SamplingParams::new().frequency_penalty(-1.0);
    assert_eq!(processed(rewarded, &[], &[1, 1], &[1.0; 2]), [1.0, 3.0]);
}

#[test]
fn in_llama_cpps_sense_all_of_them_count_the_last_64_tokens() {
    let params = SamplingParams::new().repetition_penalty(2.0).presence_penalty(0.5).preset(Preset::LlamaCpp);
    let mut prompt = vec![0];
    prompt.extend([1; 60]);
    let found = processed(params.clone(), &prompt, &[2; 3], &[4.0; 4]);
    assert_eq!(found, [1.5, 1.5, 1.5, 4.0]);
    let found = processed(params.clone(), &prompt, &[2; 4], &[4.0; 4]);
    assert_eq!(found, [4.0, 1.5, 1.5, 4.0]);
    // The request's own window goes first.
    let found = processed(params.penalty_window(2), &prompt, &[2; 1], &[4.0; 4]);
    assert_eq!(found, [4.0, 1.5, 1.5, 4.0]);
}

#[test]
fn a_bias_is_added_and_stays_finite() {
    let params = SamplingParams::new().logit_bias([(0, -100.0), (1, f32::MAX), (2, 5.0)]);
    let found = processed(params, &[], &[], &[1.0, f32::MAX, f32::NEG_INFINITY]);
    assert_eq!(found, [-99.0, f32::MAX, f32::NEG_INFINITY]);
}

#[test]
fn dry_grows_with_the_length_of_the_repetition() {
    let dry = |tokens: &[u32], dry: Dry| processed(SamplingParams::new().dry(dry), tokens, &[], &[0.0; 8]);
    // 1 2 3 again after 1 2 3: 4 would go on, three tokens long.
    let tokens = [1, 2, 3, 4, 1, 2, 3];
    let found = dry(&tokens, Dry::new(0.8).base(2.0));
    assert_eq!(found[4], -1.6);
    assert_eq!(found.iter().filter(|logit| **logit != 0.0).count(), 1);
    assert_eq!(dry(&tokens, Dry::new(0.8).allowed_length(4)), [0.0; 8]);
    assert_eq!(dry(&tokens, Dry::new(0.8).range(3)), [0.0; 8], "the first time is out of range");
    // A breaker in between: only 3 matches, or nothing.
    assert_eq!(dry(&tokens, Dry::new(0.8).sequence_breakers([vec![2]])), [0.0; 8]);
    assert_eq!(dry(&tokens, Dry::new(0.8).allowed_length(1).sequence_breakers([vec![2]]))[4], -0.8);
    assert_eq!(dry(&tokens, Dry::new(0.8).sequence_breakers([vec![2, 3]])), [0.0; 8]);
    // The longest repetition of a token counts: 4 follows 2 3 as well as 1 2 3.
    let found = dry(&[2, 3, 4, 1, 2, 3, 4, 1, 2, 3], Dry::new(1.0).base(2.0));
    assert_eq!(found[4], -16.0);
    // However long, it is a number.
    let found = dry(&[5; 3000], Dry::new(1e6).base(100.0));
    assert_eq!(found[5], f32::MIN);
}
