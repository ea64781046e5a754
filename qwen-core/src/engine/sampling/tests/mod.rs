mod cuts;
mod masks;
mod penalties;
mod properties;

use super::*;
use crate::error::Error;

fn sampler(params: SamplingParams, prompt: &[u32]) -> Sampler {
    Sampler::new(params, prompt).unwrap()
}

/// The token after `tokens`, of which the first `prompt_len` are the prompt.
fn choose(params: SamplingParams, tokens: &[u32], prompt_len: usize, logits: &[f32]) -> Result<u32, SampleError> {
    let mut sampler = sampler(params, &tokens[..prompt_len]).stop_token_ids(&[0]);
    sampler.sample(tokens, &mut logits.to_vec(), &mut Workspace::default())
}

/// What is drawn from after the stages.
fn processed(params: SamplingParams, prompt: &[u32], answer: &[u32], logits: &[f32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    let tokens = [prompt, answer].concat();
    let sampler = sampler(params, prompt).stop_token_ids(&[0]);
    sampler.process(&tokens, &mut logits, &mut Workspace::default()).unwrap();
    logits
}

/// The ids that are still in the choice.
fn kept(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
    let logits = processed(params, &[], &[], logits);
    (0..logits.len()).filter(|id| logits[*id] > f32::NEG_INFINITY).collect()
}

fn hot() -> SamplingParams {
    SamplingParams::new().temperature(1.0)
}

fn frequencies(params: SamplingParams, logits: &[f32], draws: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..draws {
        let id = choose(params.clone().seed(seed), &[], 0, logits).unwrap();
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
fn a_draw_depends_on_the_seed_and_the_position_only() {
    let params = hot().seed(7);
    let draw = |position: usize| choose(params.clone(), &vec![1; position], 0, &[0.0; 100]).unwrap();
    let mut one = sampler(params.clone(), &[]);
    let mut workspace = Workspace::default();
    let mut in_order = |position: usize| one.sample(&vec![2; position], &mut [0.0; 100], &mut workspace).unwrap();
    let in_order: Vec<_> = (0..50).map(&mut in_order).collect();
    let backwards: Vec<_> = (0..50).rev().map(draw).collect();
    assert!(in_order.iter().eq(backwards.iter().rev()));
    assert!(in_order.windows(2).any(|pair| pair[0] != pair[1]));
    // The prompt does not count.
    assert_eq!(choose(params.clone(), &[5; 9], 9, &[0.0; 100]).unwrap(), in_order[0]);
    assert!((0..20).any(|seed| choose(params.clone().seed(seed), &[], 0, &[0.0; 100]).unwrap() != in_order[0]));
}

#[test]
fn stages_do_not_shift_each_others_numbers() {
    // XTC draws a number, too, but here it never finds two tokens to choose from.
    let flat = [0.0; 100];
    for seed in 0..50 {
        let plain = choose(hot().seed(seed), &[], 0, &flat);
        assert_eq!(choose(hot().seed(seed).xtc_probability(0.5), &[], 0, &flat), plain);
    }
}

#[test]
fn fresh_seeds_differ_and_are_exact_in_json() {
    let seeds: std::collections::BTreeSet<u64> = (0..100).map(|_| fresh_seed()).collect();
    assert_eq!(seeds.len(), 100);
    assert!(seeds.iter().all(|seed| *seed as f64 as u64 == *seed && *seed < 1 << 53));
}

#[test]
fn damaged_rows_have_no_token() {
    let every = [
        SamplingParams::default(),
        hot(),
        hot().top_k(2).top_p(0.5).min_p(0.5),
        hot().typical_p(0.5),
        hot().mirostat(Mirostat::default()),
        SamplingParams::new().repetition_penalty(1.5),
        SamplingParams::new().banned_token_ids([0]),
    ];
    let none = f32::NEG_INFINITY;
    for params in every {
        for row in [&[][..], &[none; 3], &[f32::NAN; 3], &[0.0, f32::NAN], &[f32::NAN, 0.0], &[0.0, f32::INFINITY]] {
            assert_eq!(choose(params.clone(), &[0, 1], 2, row), Err(SampleError::Damaged), "{params:?}, {row:?}");
        }
        assert_eq!(choose(params.clone(), &[0, 1], 2, &[none, -3.0, none]), Ok(1), "{params:?}");
    }
    // A NaN far into a row is seen, too.
    let mut row = vec![0.0; 1000];
    row[777] = f32::NAN;
    assert_eq!(choose(hot(), &[], 0, &row), Err(SampleError::Damaged));
}

#[test]
fn a_temperature_near_0_is_greedy_and_a_huge_one_flat() {
    let logits = [1.0, 3.0, 3.0, -2.0];
    for temperature in [0.0, -0.0, f32::from_bits(1), 1e-6, 9.9e-6] {
        let params = SamplingParams::new().temperature(temperature);
        assert!(sampler(params.clone(), &[]).is_argmax(), "{temperature:?}");
        assert!((0..50).all(|seed| choose(params.clone().seed(seed), &[], 0, &logits) == Ok(1)), "the lower id");
    }
    let cold = frequencies(hot().temperature(1e-5), &logits, 400);
    assert!(cold[1] > 0.3 && cold[2] > 0.3 && cold[1] + cold[2] > 0.999, "equal logits are equally likely: {cold:?}");
    let flat = frequencies(hot().temperature(f32::MAX), &logits, 4000);
    assert!(flat.iter().all(|share| (share - 0.25).abs() < 0.04), "{flat:?}");
}

#[test]
fn only_plain_greedy_requests_are_an_argmax() {
    let greedy = SamplingParams::new;
    for params in [greedy(), greedy().top_p(0.5).seed(3), hot().top_k(1), greedy().xtc_probability(1.0)] {
        assert!(sampler(params.clone(), &[1]).is_argmax(), "{params:?}");
    }
    for params in [
        hot(),
        greedy().repetition_penalty(1.1),
        greedy().presence_penalty(0.1),
        greedy().frequency_penalty(-0.1),
        greedy().dry(Dry::new(0.8)),
        greedy().logit_bias([(1, 2.0)]),
        greedy().allowed_token_ids([1]),
        greedy().banned_token_ids([1]),
        greedy().banned_sequences([vec![1, 2]]),
        greedy().no_repeat_ngram_size(2),
        greedy().forced_token_ids([1]),
        greedy().min_new_tokens(2),
        hot().top_k(1).typical_p(0.5),
    ] {
        assert!(!sampler(params.clone(), &[1]).is_argmax(), "{params:?}");
    }
}

#[test]
fn out_of_range_parameters_are_refused_by_name() {
    let refused = |params: SamplingParams, name: &str| match params.check() {
        Err(Error::InvalidArgument { name: found, reason }) => {
            assert_eq!(found, name);
            assert!(reason.contains("must"), "{reason}");
        }
        other => panic!("{name}: {other:?} for {params:?}"),
    };
    let p = SamplingParams::new;
    for bad in [-1e9, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (name, params) in [
            ("temperature", p().temperature(bad)),
            ("dynatemp_range", p().dynatemp_range(bad)),
            ("dynatemp_exponent", p().dynatemp_exponent(bad)),
            ("top_p", p().top_p(bad)),
            ("min_p", p().min_p(bad)),
            ("typical_p", p().typical_p(bad)),
            ("top_n_sigma", p().top_n_sigma(bad)),
            ("epsilon_cutoff", p().epsilon_cutoff(bad)),
            ("eta_cutoff", p().eta_cutoff(bad)),
            ("xtc_probability", p().xtc_probability(bad)),
            ("xtc_threshold", p().xtc_threshold(bad)),
            ("repetition_penalty", p().repetition_penalty(bad)),
            ("presence_penalty", p().presence_penalty(bad)),
            ("frequency_penalty", p().frequency_penalty(bad)),
            ("mirostat.tau", p().mirostat(Mirostat::new(bad, 0.1))),
            ("mirostat.eta", p().mirostat(Mirostat::new(5.0, bad))),
            ("dry.multiplier", p().dry(Dry::new(bad))),
            ("dry.base", p().dry(Dry::new(0.8).base(bad))),
        ] {
            refused(params, name);
        }
    }
    for (name, params) in [
        ("top_p", p().top_p(1.001)),
        ("min_p", p().min_p(1.001)),
        ("typical_p", p().typical_p(0.0)),
        ("epsilon_cutoff", p().epsilon_cutoff(1.0)),
        ("eta_cutoff", p().eta_cutoff(1.0)),
        ("repetition_penalty", p().repetition_penalty(0.0)),
        ("repetition_penalty", p().repetition_penalty(3e38)),
        ("presence_penalty", p().presence_penalty(100.5)),
        ("mirostat.tau", p().mirostat(Mirostat::new(0.0, 0.1))),
        ("dry.allowed_length", p().dry(Dry::new(0.8).allowed_length(0))),
        ("dry.sequence_breakers", p().dry(Dry::new(0.8).sequence_breakers([vec![]]))),
        ("banned_sequences", p().banned_sequences([vec![]])),
        ("logit_bias", p().logit_bias([(3, f32::NAN)])),
        ("logit_bias", p().logit_bias([(3, f32::NEG_INFINITY)])),
        ("stages", p().stages(vec![Stage::TopK, Stage::TopK])),
        ("stages", p().top_k(5).stages(vec![Stage::TopP])),
        ("stages", p().repetition_penalty(1.1).stages(vec![])),
        ("mirostat", hot().mirostat(Mirostat::default()).top_k(5)),
    ] {
        refused(params, name);
    }
    let error = p().repetition_penalty(3e38).check().unwrap_err().to_string();
    assert_eq!(error, "`repetition_penalty`: must be 0.01 to 100, is 3e38");
    for params in [p().banned_token_ids([9]), p().forced_token_ids([9]), p().logit_bias([(9, 1.0)])] {
        assert!(params.check_ids(10).is_ok());
        let error = params.check_ids(9).unwrap_err().to_string();
        assert!(error.ends_with("ids must be below 9, one is 9"), "{error}");
    }
}

#[test]
fn parameters_are_data() {
    let params = hot().stages(vec![Stage::TopK, Stage::Temperature]).preset(Preset::LlamaCpp).logit_bias([(7, -1.5)]);
    let params = params.dry(Dry::new(0.5)).mirostat(Mirostat::new(3.0, 0.2)).top_k(9);
    let json = serde_json::to_value(&params).unwrap();
    assert_eq!(json["stages"], serde_json::json!(["top_k", "temperature"]));
    assert_eq!(json["preset"], "llama_cpp");
    assert_eq!(serde_json::from_value::<SamplingParams>(json).unwrap(), params);
    assert!(serde_json::from_str::<SamplingParams>(r#"{"topk": 3}"#).is_err());
    for preset in [Preset::Transformers, Preset::Vllm, Preset::LlamaCpp] {
        assert_eq!(preset.to_string().parse::<Preset>().unwrap(), preset);
        // Every order has every stage once.
        let mut stages = preset.stages().to_vec();
        stages.sort_by_key(|stage| stage.as_str());
        let mut all = Preset::Transformers.stages().to_vec();
        all.sort_by_key(|stage| stage.as_str());
        assert_eq!(stages, all);
        assert!(preset.stages().iter().all(|stage| serde_json::to_value(stage).unwrap() == stage.as_str()));
    }
}

#[test]
fn mirostat_keeps_the_surprise_near_its_target() {
    // A long tail: without a bound the mean surprise is about 8.6 bits.
    let logits: Vec<f32> = (0..2000).map(|id| -(id as f32 + 1.0).ln()).collect();
    let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    for tau in [2.0, 4.0] {
        let mut sampler = sampler(hot().mirostat(Mirostat::new(tau, 0.1)).seed(1), &[]);
        let mut workspace = Workspace::default();
        let mut tokens = Vec::new();
        let mut bits = 0.0;
        for _ in 0..600 {
            let id = sampler.sample(&tokens, &mut logits.clone(), &mut workspace).unwrap();
            tokens.push(id);
            bits += (total / f64::from(logits[id as usize]).exp()).log2() / 600.0;
        }
        // The algorithm measures surprise among the tokens that it kept, which is lower.
        assert!((f64::from(tau)..f64::from(tau) + 2.0).contains(&bits), "{tau}: {bits}");
    }
}

#[test]
fn mirostats_state_can_be_taken_back() {
    let logits: Vec<f32> = (0..50).map(|id| (id as f32 * 0.7).sin()).collect();
    let mut one = sampler(hot().mirostat(Mirostat::new(3.0, 0.5)).seed(4), &[]);
    let mut workspace = Workspace::default();
    let before = one.state();
    let first: Vec<u32> =
        (0..5).map(|at| one.sample(&vec![1; at], &mut logits.clone(), &mut workspace).unwrap()).collect();
    assert_ne!(one.state(), before);
    one.restore(before);
    let again: Vec<u32> =
        (0..5).map(|at| one.sample(&vec![1; at], &mut logits.clone(), &mut workspace).unwrap()).collect();
    assert_eq!(first, again);
}

#[derive(Debug)]
struct Panics;

impl LogitsProcessor for Panics {
    fn process(&self, history: &History<'_>, logits: &mut [f32]) {
        match history.position() {
            0 => panic!("no such word"),
            1 => logits[0] = f32::NAN,
            2 => logits.fill(f32::NEG_INFINITY),
            _ => logits[2] += 50.0,
        }
    }
}

#[test]
fn what_a_processor_does_wrong_is_its_requests_error() {
    for params in [SamplingParams::new(), hot().top_k(2)] {
        let params = params.processor(std::sync::Arc::new(Panics));
        let at = |position: usize| choose(params.clone(), &vec![1; position + 2], 2, &[0.0, 1.0, 0.0]);
        assert_eq!(at(0), Err(SampleError::Processor("no such word".into())));
        assert!(matches!(at(1), Err(SampleError::Processor(_))));
        assert_eq!(at(2), Err(SampleError::NothingLeft));
        assert_eq!(at(3), Ok(2));
    }
}
