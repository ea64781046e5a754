use proptest::prelude::*;

use super::*;

fn sampler(params: SamplingParams, prompt: &[u32]) -> Sampler {
    Sampler::new(params, prompt).unwrap()
}

fn frequencies(params: SamplingParams, logits: &[f32], draws: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..draws {
        let id = sampler(SamplingParams { seed, ..params }, &[]).sample(0, &mut logits.to_vec()).unwrap();
        counts[id as usize] += 1.0 / draws as f64;
    }
    counts
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, 2.0, -1.0];
    let params = SamplingParams { temperature: 0.7, ..SamplingParams::default() };
    let exp: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / 0.7).exp()).collect();
    let total: f64 = exp.iter().sum();
    for (found, exp) in frequencies(params, &logits, 20_000).iter().zip(exp) {
        assert!((found - exp / total).abs() < 0.015, "{found} against {}", exp / total);
    }
}

#[test]
fn top_k_and_top_p_cut_the_tail() {
    let logits = [0.0, 1.0, 2.0, 3.0];
    let top_k = SamplingParams { temperature: 1.0, top_k: 2, ..SamplingParams::default() };
    let found = frequencies(top_k, &logits, 500);
    assert!(found[0] == 0.0 && found[1] == 0.0 && found[2] > 0.0, "{found:?}");
    // The probabilities are 0.64, 0.24, 0.09, 0.03: 0.65 needs the first two.
    let top_p = SamplingParams { temperature: 1.0, top_p: 0.65, ..SamplingParams::default() };
    let one = SamplingParams { temperature: 5.0, top_p: 0.0, ..SamplingParams::default() };
    assert_eq!(frequencies(one, &logits, 50).iter().filter(|count| **count > 0.0).count(), 1, "the most likely stays");
    let found = frequencies(top_p, &logits, 500);
    assert!(found[1] == 0.0 && found[2] > 0.0, "{found:?}");
}

#[test]
fn min_p_keeps_what_is_probable_beside_the_likeliest() {
    // In units of the largest probability: 0.05, 0.14, 0.37, 1.
    let logits = [0.0, 1.0, 2.0, 3.0];
    for (min_p, kept) in [(0.0, 4), (0.04, 4), (0.1, 3), (0.3, 2), (0.4, 1), (1.0, 1)] {
        let params = SamplingParams { temperature: 1.0, min_p, ..SamplingParams::default() };
        let found = frequencies(params, &logits, 2000).iter().filter(|share| **share > 0.0).count();
        assert_eq!(found, kept, "min_p {min_p}");
    }
    // The temperature acts first: at 3 the second is 0.72 as probable as the first.
    let params = SamplingParams { temperature: 3.0, min_p: 0.7, ..SamplingParams::default() };
    assert!(frequencies(params, &logits, 2000)[2] > 0.3);
}

#[test]
fn the_penalty_counts_prompt_and_answer() {
    let mut sampler = sampler(SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() }, &[0]);
    assert_eq!(sampler.sample(0, &mut [1.5, 1.0, -1.0]), Some(1));
    assert_eq!(sampler.sample(1, &mut [1.5, 1.4, 0.8]), Some(2));
    assert_eq!(sampler.sample(2, &mut [-1.0, -1.0, -1.5]), Some(0));
}

#[test]
fn a_draw_depends_on_the_seed_and_the_position_only() {
    let params = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::default() };
    let draw = |position| sampler(params, &[]).sample(position, &mut [0.0; 100]);
    let mut one = sampler(params, &[]);
    let in_order: Vec<_> = (0..50).map(|position| one.sample(position, &mut [0.0; 100])).collect();
    let backwards: Vec<_> = (0..50).rev().map(draw).collect();
    assert!(in_order.iter().eq(backwards.iter().rev()));
    assert!(in_order.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn damaged_rows_have_no_token() {
    let every = [
        SamplingParams::default(),
        SamplingParams { temperature: 1.0, ..SamplingParams::default() },
        SamplingParams { temperature: 1.0, top_k: 2, top_p: 0.5, min_p: 0.5, ..SamplingParams::default() },
        SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() },
    ];
    let none = f32::NEG_INFINITY;
    for params in every {
        for row in [&[][..], &[none; 3], &[f32::NAN; 3], &[0.0, f32::NAN], &[f32::NAN, 0.0], &[0.0, f32::INFINITY]] {
            assert_eq!(sampler(params, &[0, 1]).sample(0, &mut row.to_vec()), None, "{params:?}, {row:?}");
        }
        assert_eq!(sampler(params, &[0, 1]).sample(0, &mut [none, -3.0, none]), Some(1), "{params:?}");
    }
}

#[test]
fn out_of_range_parameters_are_refused() {
    let ok = SamplingParams::default();
    for bad in [-1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for params in [
            SamplingParams { temperature: bad, ..ok },
            SamplingParams { top_p: bad, ..ok },
            SamplingParams { min_p: bad, ..ok },
            SamplingParams { repetition_penalty: bad, ..ok },
        ] {
            assert!(matches!(params.check(), Err(Error::InvalidArgument { .. })), "{params:?}");
        }
    }
    for params in [
        SamplingParams { top_p: 1.001, ..ok },
        SamplingParams { min_p: 1.001, ..ok },
        SamplingParams { repetition_penalty: 0.0, ..ok },
        SamplingParams { repetition_penalty: 1e-45, ..ok },
        SamplingParams { repetition_penalty: 3e38, ..ok },
    ] {
        let error = params.check().unwrap_err().to_string();
        assert!(error.contains("must be"), "{error}");
    }
    let error = SamplingParams { repetition_penalty: 3e38, ..ok }.check().unwrap_err().to_string();
    assert_eq!(error, "`repetition_penalty`: must be 0.01 to 100, is 3e38");
}

/// Values in 0..1, as often at the very ends as in between.
fn share() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0.0), Just(f32::from_bits(1)), Just(f32::MIN_POSITIVE), Just(1.0), 0.0f32..=1.0]
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let temperature =
        prop_oneof![Just(0.0), Just(f32::from_bits(1)), Just(1e-6), Just(1.0), Just(f32::MAX), 0.0f32..4.0];
    let bounds = SamplingParams::REPETITION_PENALTY;
    let penalty = prop_oneof![Just(*bounds.start()), Just(1.0), Just(*bounds.end()), bounds];
    (temperature, 0usize..40, share(), share(), penalty, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, repetition_penalty, seed)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
        },
    )
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(f32::MAX),
        Just(f32::MIN),
        Just(0.0),
        Just(-0.0),
        Just(f32::from_bits(1)),
        Just(f32::NEG_INFINITY),
        -20.0f32..20.0
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// With any valid parameters and finite logits, a token is chosen, and it is one that is not ruled out.
    #[test]
    fn a_row_with_a_finite_logit_has_a_token(
        params in any_params(),
        row in prop::collection::vec(any_logit(), 1..40),
        prompt in prop::collection::vec(0u32..60, 0..20),
        position in 0usize..1000,
    ) {
        let chosen = sampler(params, &prompt).sample(position, &mut row.clone());
        match chosen {
            Some(id) => prop_assert!(row[id as usize].is_finite(), "{id} of {row:?}"),
            None => prop_assert!(row.iter().all(|logit| *logit == f32::NEG_INFINITY), "{row:?}"),
        }
    }

    /// Only the candidates' order matters: what ranks below `top_k` and `min_p` is never sampled.
    #[test]
    fn what_is_cut_is_never_drawn(
        top_k in 1usize..10,
        min_p in share(),
        row in prop::collection::vec(-20.0f32..20.0, 1..40),
        seed in any::<u64>(),
    ) {
        let params = SamplingParams { temperature: 1.0, top_k, min_p, seed, ..SamplingParams::default() };
        let chosen = sampler(params, &[]).sample(0, &mut row.clone()).unwrap() as usize;
        let better = row.iter().filter(|logit| **logit > row[chosen]).count();
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        prop_assert!(better < top_k);
        prop_assert!(f64::from(row[chosen] - max).exp() >= f64::from(min_p));
    }
}
