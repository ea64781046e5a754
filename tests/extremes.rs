//! Every numeric option at its extremes: a typed error that names the option, or a plan that says whether it fits.
//! Never a panic, and never a size that overflowed.

mod common;

use common::{demo, options};
use qwen::core::Error as ModelError;
use qwen::core::backend::reference::Reference;
use qwen::{Engine, EngineOptions, Error, GenerateOptions, Plan};

const EXTREMES: [usize; 9] = [0, 1, 2, 1 << 20, u32::MAX as usize, 1 << 40, 1 << 53, 1 << 60, usize::MAX];

/// An option that takes a number.
type Set = (&'static str, fn(EngineOptions, usize) -> EngineOptions);

const OPTIONS: [Set; 8] = [
    ("context", |options, value| options.context(value)),
    ("context_at_most", |options, value| options.context_at_most(value)),
    ("context_at_least", |options, value| options.context_at_least(value)),
    ("batch", |options, value| options.batch(value)),
    ("threads", |options, value| options.threads(value)),
    ("max_num_batched_tokens", |options, value| options.max_num_batched_tokens(value)),
    ("max_num_logits", |options, value| options.max_num_logits(value)),
    ("memory_budget", |options, value| options.memory_budget(value as u64)),
];

/// The plan; `None` if an option was refused by name.
fn plan(options: &EngineOptions, names: &[&str]) -> Option<Plan> {
    match qwen::plan(demo(), options) {
        Ok(plan) => Some(plan),
        Err(Error::Model(ModelError::InvalidArgument { name, reason })) => {
            assert!(names.contains(&name), "{names:?} were set, and `{name}` is refused: {reason}");
            None
        }
        Err(error) => panic!("{names:?}: {error:?}"),
    }
}

/// Load, and check that the outcome is the one that the plan predicted.
fn load(options: EngineOptions, plan: Option<&Plan>, what: &str) {
    let fits = plan.is_some_and(|plan| plan.fits);
    match options.load(demo()) {
        Ok(engine) => {
            let same = plan.is_some_and(|plan| engine.plan().total_bytes == plan.total_bytes);
            assert!(fits && same, "{what}: loaded {:?} in spite of {plan:?}", engine.plan());
        }
        Err(Error::Model(error)) => {
            let typed = matches!(
                (&error, plan),
                (ModelError::InvalidArgument { .. }, None)
                    | (ModelError::DoesNotFit { .. } | ModelError::Unsupported { .. }, Some(_))
            );
            assert!(!fits && typed, "{what}: {error:?} in spite of {plan:?}");
        }
        Err(error) => panic!("{what}: {error:?}"),
    }
}

#[test]
fn every_option_at_its_extremes_is_refused_or_planned_for() {
    for (name, set) in OPTIONS {
        for value in EXTREMES {
            let options = set(EngineOptions::new().threads(2), value);
            let plan = plan(&options, &[name]);
            if let Some(plan) = &plan {
                assert!(plan.total_bytes >= plan.kv_bytes && plan.total_bytes >= plan.weight_bytes, "{name} {value}");
            }
            load(options, plan.as_ref(), &format!("{name}({value})"));
        }
    }
}

#[test]
fn two_options_at_their_extremes_do_not_wrap_around_together() {
    for (first, set_first) in OPTIONS {
        for (second, set_second) in OPTIONS {
            for value in EXTREMES {
                for other in EXTREMES {
                    let options = set_second(set_first(options(), value), other);
                    if let Some(plan) = plan(&options, &[first, second]) {
                        let budget = plan.available_bytes.unwrap_or(u64::MAX);
                        assert!(
                            !plan.fits || plan.total_bytes <= budget,
                            "{first}({value}), {second}({other}): {plan:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_larger_batch_never_takes_less() {
    let plans = |budget: u64| {
        let of_batch = move |batch| options().context(1024).memory_budget(budget).batch(batch);
        EXTREMES[1..].iter().filter_map(move |batch| plan(&of_batch(*batch), &["batch"]))
    };
    let small: Vec<Plan> = plans(1 << 40).collect();
    assert!(small.is_sorted_by_key(|plan| plan.kv_bytes), "{small:#?}");
    assert!(small.is_sorted_by_key(|plan| (plan.refused.is_some(), plan.total_bytes)), "{small:#?}");
    assert!(small[0].fits && small[1].fits);
    assert!(small.iter().filter(|plan| plan.batch >= 1 << 40).all(|plan| !plan.fits), "{small:?}");
    // Whatever the memory, a store cannot number more than 2^32 slots.
    assert!(plans(u64::MAX).filter(|plan| plan.batch >= 1 << 40).all(|plan| !plan.fits && plan.refused.is_some()));
}

#[test]
fn a_factor_of_yarn_is_checked() {
    for factor in [0.0, -1.0, 0.5, f64::MIN_POSITIVE, 1e300, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        match qwen::plan(demo(), &options().yarn(factor)) {
            Ok(plan) => assert!(plan.context >= 2, "{factor}: {plan:?}"),
            Err(error) => assert!(error.to_string().contains("factor"), "{factor}: {error}"),
        }
    }
}

#[test]
fn a_backend_of_the_program_is_asked_for_no_size_that_wraps() {
    for (name, set) in OPTIONS {
        for value in EXTREMES {
            // The memory of the reference backend is limited only by the machine.
            let options = set(EngineOptions::new().context(64), value);
            match options.load_with_backend(Reference::new(), demo()) {
                Ok(engine) => drop(engine),
                Err(Error::Model(
                    ModelError::InvalidArgument { .. } | ModelError::DoesNotFit { .. } | ModelError::Unsupported { .. },
                )) => {}
                Err(error) => panic!("{name}({value}): {error:?}"),
            }
        }
    }
}

#[test]
fn every_number_of_a_request_is_refused_or_answered() {
    let engine: Engine = options().context(64).load(demo()).unwrap();
    let ask = |options: GenerateOptions| match engine.generate_ids([1_u32, 2, 3], &options) {
        Ok(stream) => stream.take(4).for_each(|id| assert!(id.unwrap() < engine.config().vocab_size as u32)),
        Err(Error::Model(ModelError::InvalidArgument { .. })) => {}
        Err(error) => panic!("{options:?}: {error:?}"),
    };
    let plain = || GenerateOptions::new().temperature(1.0).seed(7).max_new_tokens(2);
    for value in EXTREMES {
        ask(plain().max_new_tokens(value));
        ask(plain().top_k(value));
        ask(plain().seed(value as u64));
    }
    for value in [0.0, -0.0, -1.0, 1e-45, 1.0, 2.0, 3e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        ask(plain().temperature(value));
        ask(plain().top_p(value));
        ask(plain().repetition_penalty(value));
    }
}
