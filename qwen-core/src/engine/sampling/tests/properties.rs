//! What holds for any parameters and any row.

use proptest::prelude::*;

use super::*;

/// Values in 0..1, as often at the very ends as in between.
fn share() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0.0), Just(f32::from_bits(1)), Just(f32::MIN_POSITIVE), Just(1.0), 0.0f32..=1.0]
}

prop_compose! {
    fn cuts()(
        top_k in 0usize..40,
        (top_p, min_p, typical_p) in (share(), share(), share()),
        (epsilon, eta) in (share(), share()),
        (xtc_probability, xtc_threshold) in (share(), share()),
        top_n_sigma in prop_oneof![Just(0.0), Just(f32::from_bits(1)), Just(1e6), 0.0f32..4.0],
        used in any::<u8>(),
    ) -> SamplingParams {
        // A few at a time: with all of them at once hardly any row would reach the last ones.
        let set = |bit: u8, value: f32, neutral: f32| if used & (1 << bit) != 0 { value } else { neutral };
        SamplingParams::new()
            .top_k(if used & 1 != 0 { top_k } else { 0 })
            .top_p(set(1, top_p, 1.0))
            .min_p(set(2, min_p, 0.0))
            .typical_p(set(3, typical_p.max(f32::from_bits(1)), 1.0))
            .epsilon_cutoff(set(4, epsilon.min(0.999), 0.0))
            .eta_cutoff(set(5, eta.min(0.999), 0.0))
            .xtc_probability(set(6, xtc_probability, 0.0))
            .xtc_threshold(xtc_threshold)
            .top_n_sigma(set(7, top_n_sigma, 0.0))
    }
}

prop_compose! {
    fn any_params()(
        cuts in cuts(),
        temperature in
            prop_oneof![Just(0.0), Just(f32::from_bits(1)), Just(1e-5), Just(1.0), Just(f32::MAX), 0.0f32..4.0],
        dynatemp_range in prop_oneof![Just(0.0), Just(f32::MAX), 0.0f32..2.0],
        penalty in prop_oneof![Just(0.01), Just(1.0), Just(100.0), SamplingParams::REPETITION_PENALTY],
        (presence, frequency) in (prop_oneof![Just(0.0), -100.0f32..=100.0], prop_oneof![Just(0.0), -100.0f32..=100.0]),
        window in prop::option::of(0usize..30),
        dry in prop::option::of((0.0f32..3.0, 1.0f32..3.0, 1usize..4)),
        preset in prop_oneof![Just(Preset::Transformers), Just(Preset::Vllm), Just(Preset::LlamaCpp)],
        seed in any::<u64>(),
    ) -> SamplingParams {
        let dry = dry.map(|(multiplier, base, length)| Dry::new(multiplier).base(base).allowed_length(length));
        cuts.temperature(temperature)
            .dynatemp_range(dynatemp_range)
            .repetition_penalty(penalty)
            .presence_penalty(presence)
            .frequency_penalty(frequency)
            .penalty_window(window)
            .dry(dry)
            .preset(preset)
            .seed(seed)
    }
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
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// With any valid parameters and finite logits, a token is chosen; it is one that is not ruled out, and one of
    /// those that `process` leaves.
    #[test]
    fn a_row_with_a_finite_logit_has_a_token(
        params in any_params(),
        row in prop::collection::vec(any_logit(), 1..40),
        tokens in prop::collection::vec(0u32..60, 0..20),
        prompt_len in 0usize..20,
    ) {
        prop_assert!(params.check().is_ok());
        let prompt_len = prompt_len.min(tokens.len());
        let chosen = choose(params.clone(), &tokens, prompt_len, &row);
        match chosen {
            Ok(id) => {
                prop_assert!(row[id as usize].is_finite(), "{id} of {row:?}");
                let (prompt, answer) = tokens.split_at(prompt_len);
                let left = processed(params, prompt, answer, &row);
                prop_assert!(left[id as usize].is_finite(), "{id} of {left:?}");
            }
            Err(error) => {
                prop_assert_eq!(error, SampleError::Damaged);
                prop_assert!(row.iter().all(|logit| *logit == f32::NEG_INFINITY), "{row:?}");
            }
        }
    }

    /// What ranks below `top_k` and `min_p` is never sampled.
    #[test]
    fn what_is_cut_is_never_drawn(
        top_k in 1usize..10,
        min_p in share(),
        row in prop::collection::vec(-20.0f32..20.0, 1..40),
        seed in any::<u64>(),
    ) {
        let chosen = choose(hot().top_k(top_k).min_p(min_p).seed(seed), &[], 0, &row).unwrap() as usize;
        let better = row.iter().filter(|logit| **logit > row[chosen]).count();
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        prop_assert!(better < top_k);
        prop_assert!(f64::from(row[chosen] - max).exp() >= f64::from(min_p) * (1.0 - 1e-12));
    }

    /// A cut that is made by a scan of the whole row keeps what the same cut keeps of a list of all tokens.
    #[test]
    fn scans_and_lists_agree(
        cuts in cuts(),
        temperature in 0.1f32..4.0,
        scale in 0.1f32..8.0,
        row in prop::collection::vec(-10.0f32..10.0, 1..300),
    ) {
        let row: Vec<f32> = row.iter().map(|logit| logit * scale).collect();
        let cuts = cuts.temperature(temperature).seed(3);
        for stage in Preset::Transformers.stages() {
            let alone = match stage {
                Stage::TopP => hot().top_p(cuts.top_p),
                Stage::MinP => hot().min_p(cuts.min_p),
                Stage::TypicalP => hot().typical_p(cuts.typical_p),
                Stage::TopNSigma => hot().top_n_sigma(cuts.top_n_sigma),
                Stage::EpsilonCutoff => hot().epsilon_cutoff(cuts.epsilon_cutoff),
                Stage::EtaCutoff => hot().eta_cutoff(cuts.eta_cutoff),
                Stage::Xtc => hot().xtc_probability(cuts.xtc_probability).xtc_threshold(cuts.xtc_threshold),
                _ => continue,
            };
            let alone = alone.temperature(temperature).seed(3);
            let scanned = kept(alone.clone(), &row);
            let listed = kept(alone.top_k(row.len()).stages(vec![Stage::Temperature, Stage::TopK, *stage]), &row);
            prop_assert_eq!(&scanned, &listed, "{}", stage);
        }
    }
}
