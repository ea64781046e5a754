//! The stages that drop tokens. Numbers are worked out by hand; the fixtures of `qwen-core/tests/sampling.rs` have more.

use super::*;

const ROW: [f32; 4] = [0.0, 1.0, 2.0, 3.0];

#[test]
fn top_k_keeps_the_best_and_of_equals_the_lower_ids() {
    for (k, ids) in [(1, &[3][..]), (2, &[2, 3]), (4, &[0, 1, 2, 3]), (5, &[0, 1, 2, 3]), (usize::MAX, &[0, 1, 2, 3])] {
        assert_eq!(kept(hot().top_k(k), &ROW), ids, "{k}");
    }
    assert_eq!(kept(hot().top_k(3), &[1.0, 2.0, 1.0, 1.0, 2.0]), [0, 1, 4]);
    // The two zeros are equal.
    assert_eq!(kept(hot().top_k(2), &[-0.0, 0.0, 0.0, -1.0]), [0, 1]);
    assert_eq!(kept(hot().top_k(2), &[0.0, -0.0, 0.0, -1.0]), [0, 1]);
    // Over rows longer than what is compared at once, and with the floor rising all the way.
    let row: Vec<f32> = (0..5000).map(|id| (id / 3) as f32).collect();
    assert_eq!(kept(hot().top_k(4), &row), [4995, 4996, 4998, 4999]);
    let descending: Vec<f32> = row.iter().rev().copied().collect();
    assert_eq!(kept(hot().top_k(4), &descending), [0, 1, 2, 3]);
}

#[test]
fn top_p_keeps_what_sums_to_it() {
    // The probabilities are 0.032, 0.087, 0.237, 0.644.
    for (p, ids) in [(0.0, &[3][..]), (0.64, &[3]), (0.65, &[2, 3]), (0.89, &[1, 2, 3]), (0.97, &[0, 1, 2, 3])] {
        assert_eq!(kept(hot().top_p(p), &ROW), ids, "{p}");
    }
    assert_eq!(kept(hot().top_p(0.5), &[0.0; 10]), [0, 1, 2, 3, 4], "of equals the lower ids");
    // A flat row: half of it is kept, without a sort.
    let half = kept(hot().top_p(0.5), &vec![1.0; 100_000]).len();
    assert!((49_999..=50_001).contains(&half), "{half}");
}

#[test]
fn min_p_keeps_what_is_probable_beside_the_likeliest() {
    // In units of the largest probability: 0.05, 0.14, 0.37, 1.
    for (min_p, count) in [(0.0, 4), (0.04, 4), (0.1, 3), (0.3, 2), (0.4, 1), (1.0, 1)] {
        assert_eq!(kept(hot().min_p(min_p), &ROW).len(), count, "min_p {min_p}");
    }
    assert_eq!(kept(hot().min_p(1.0), &[1.0, 3.0, 3.0]), [1, 2]);
    // The temperature acts first: at 3 the second is 0.72 as probable as the first.
    assert_eq!(kept(hot().temperature(3.0).min_p(0.7), &ROW), [2, 3]);
}

#[test]
fn the_temperature_comes_last_in_llama_cpps_order() {
    let params = hot().temperature(3.0).min_p(0.7);
    assert_eq!(kept(params.clone(), &ROW), [2, 3]);
    assert_eq!(kept(params.clone().preset(Preset::LlamaCpp), &ROW), [3]);
    assert_eq!(kept(params.stages(vec![Stage::MinP, Stage::Temperature]), &ROW), [3]);
    // The values are divided by it all the same.
    let found = processed(hot().temperature(2.0).top_k(1).preset(Preset::LlamaCpp), &[], &[], &ROW);
    assert_eq!(found[3], 1.5);
}

#[test]
fn an_explicit_order_may_have_penalties_after_cuts() {
    // By the cut, 3 and 2 are left; then 3 is penalised.
    let params = hot().temperature(2.0).top_k(2).repetition_penalty(10.0);
    let stages = vec![Stage::Temperature, Stage::TopK, Stage::RepetitionPenalty];
    let found = processed(params.stages(stages), &[3], &[], &ROW);
    let none = f32::NEG_INFINITY;
    assert_eq!(found[..3], [none, none, 1.0]);
    assert!((found[3] - 0.15).abs() < 1e-6, "{found:?}");
}

#[test]
fn typical_p_may_drop_the_likeliest() {
    // The surprises are 0.51, 2.3 and 2.3 nats, the entropy 1.23: the likeliest is nearest to it.
    let row = [0.6f32.ln(), 0.2f32.ln(), 0.2f32.ln()];
    assert_eq!(kept(hot().typical_p(0.2), &row), [0]);
    // With eight more at 0.05 the entropy is 1.7, and 0.2 is nearest.
    let row: Vec<f32> = [0.4f32, 0.2].into_iter().chain([0.05; 8]).map(f32::ln).collect();
    assert_eq!(kept(hot().typical_p(0.1), &row), [1]);
    // Equals at the border are all kept.
    assert_eq!(kept(hot().typical_p(0.3), &[0.0; 10]).len(), 10);
    let found = choose(hot().typical_p(0.1).seed(3), &[], 0, &row);
    assert_eq!(found, Ok(1));
}

#[test]
fn epsilon_and_eta_keep_the_likeliest_in_any_case() {
    // The probabilities are 0.032, 0.087, 0.237, 0.644.
    for (epsilon, ids) in [(0.03, &[0, 1, 2, 3][..]), (0.05, &[1, 2, 3]), (0.1, &[2, 3]), (0.99, &[3])] {
        assert_eq!(kept(hot().epsilon_cutoff(epsilon), &ROW), ids, "{epsilon}");
    }
    assert_eq!(kept(hot().epsilon_cutoff(0.9), &[0.0, 1.0, 1.0]), [1, 2]);
    // The entropy is 0.949 nats: the bound is sqrt(0.05) * 0.387 = 0.0865, but at most 0.05.
    assert_eq!(kept(hot().eta_cutoff(0.05), &ROW), [1, 2, 3]);
    // Here it is sqrt(0.3) * 0.387 = 0.212.
    assert_eq!(kept(hot().eta_cutoff(0.3), &ROW), [2, 3]);
}

#[test]
fn top_n_sigma_counts_deviations_of_finite_logits() {
    // The standard deviation is sqrt(1.25) = 1.118.
    let none = f32::NEG_INFINITY;
    for (n, ids) in [(0.5, &[3][..]), (0.9, &[2, 3]), (1.8, &[1, 2, 3]), (2.7, &[0, 1, 2, 3]), (1e6, &[0, 1, 2, 3])] {
        assert_eq!(kept(hot().top_n_sigma(n), &ROW), ids, "{n}");
        assert_eq!(kept(hot().temperature(7.0).top_n_sigma(n), &ROW), ids, "{n}, at any temperature");
    }
    assert_eq!(kept(hot().top_n_sigma(0.5), &[none, 2.0, none, 2.0]), [1, 3]);
}

#[test]
fn xtc_excludes_all_but_the_last_of_the_probable() {
    // The probabilities are 0.032, 0.087, 0.237, 0.644.
    let xtc = |threshold| hot().xtc_probability(1.0).xtc_threshold(threshold);
    for (threshold, ids) in
        [(0.3, &[0, 1, 2, 3][..]), (0.2, &[0, 1, 2]), (0.08, &[0, 1]), (0.0, &[0]), (0.6, &[0, 1, 2, 3])]
    {
        assert_eq!(kept(xtc(threshold), &ROW), ids, "{threshold}");
        // The same on a list.
        assert_eq!(kept(xtc(threshold).top_k(4), &ROW), ids, "{threshold}");
    }
    // It acts as often as it should.
    let found = frequencies(hot().top_k(2).xtc_probability(0.25).xtc_threshold(0.1), &[0.0, 9.0, 10.0], 4000);
    // Without it the second token has 0.269.
    let expected = 0.25 + 0.75 * 0.269;
    assert!((found[1] - expected).abs() < 0.03, "{found:?}");
}

#[test]
fn the_dynamic_temperature_follows_the_entropy() {
    let params = hot().temperature(1.0).dynatemp_range(0.5);
    // All tokens equally probable: the upper end. One token that is certain: the lower one.
    assert_eq!(processed(params.clone(), &[], &[], &[3.0, 3.0]), [2.0, 2.0]);
    assert_eq!(processed(params.clone(), &[], &[], &[100.0, 0.0])[0], 200.0);
    // One token left: nothing to measure.
    let alone = params.clone().top_k(1).stages(vec![Stage::TopK, Stage::Temperature]).typical_p(1.0);
    assert_eq!(choose(alone, &[], 0, &ROW), Ok(3));
    // Over the tokens in the choice: after a cut to the equal ones it is the upper end.
    let cut = params.min_p(0.9).stages(vec![Stage::MinP, Stage::Temperature]);
    assert_eq!(processed(cut, &[], &[], &[3.0, 3.0, -9.0])[..2], [2.0, 2.0]);
}
