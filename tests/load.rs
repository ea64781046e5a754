//! Loading as seen by a program: progress, cancelling, the context.

mod common;

use std::sync::{Arc, Mutex};

use common::{Folder, SMALL, demo, options, write_checkpoint};
use qwen::core::Error as ModelError;
use qwen::{EngineOptions, Error, GenerateOptions, LoadCanceller, LoadProgress, LoadStage, PromptProgress};

/// Options that record the progress reports.
fn reported(options: EngineOptions) -> (EngineOptions, Arc<Mutex<Vec<LoadProgress>>>) {
    let reports = Arc::<Mutex<Vec<LoadProgress>>>::default();
    let kept = reports.clone();
    (options.progress(move |progress| kept.lock().unwrap().push(progress)), reports)
}

#[test]
fn stages_follow_each_other_and_bytes_grow_to_the_weights() {
    let (options, reports) = reported(options().context(64));
    let engine = options.load(demo()).unwrap();
    let reports = reports.lock().unwrap();
    let stages: Vec<LoadStage> = reports.iter().map(|report| report.stage).collect();
    let (first, last) = (stages.first(), stages.last());
    assert_eq!((first, last), (Some(&LoadStage::Opening), Some(&LoadStage::WarmUp)));
    let weights = &reports[1..reports.len() - 1];
    assert!(weights.iter().all(|report| report.stage == LoadStage::Weights && report.share().is_some()));
    assert!(weights.is_sorted_by(|one, next| one.done < next.done && one.total == next.total));
    let end = weights.last().unwrap();
    assert_eq!((end.done, end.share()), (end.total, Some(1.0)));
    // Matrices are nearly all of the file.
    let file = std::fs::metadata(demo().join("model.safetensors")).unwrap().len();
    assert!(end.total < file && end.total * 10 > file * 9, "{} of {file}", end.total);
    drop(engine);
}

#[test]
fn a_load_is_cancelled_at_any_report() {
    let (all, reports) = reported(options().context(64));
    drop(all.load(demo()).unwrap());
    let count = reports.lock().unwrap().len();
    for at in [0, 1, count / 2, count - 2] {
        let canceller = LoadCanceller::new();
        let (by_report, seen) = (canceller.clone(), Mutex::new(0));
        let options = options().context(64).load_canceller(canceller).progress(move |_| {
            let mut seen = seen.lock().unwrap();
            if *seen == at {
                by_report.cancel();
            }
            assert!(*seen <= at, "the load goes on");
            *seen += 1;
        });
        assert!(matches!(options.load(demo()), Err(Error::Model(ModelError::Cancelled))));
    }
    // A cancel after the load changes nothing.
    let canceller = LoadCanceller::new();
    let engine = options().context(64).load_canceller(canceller.clone()).load(demo()).unwrap();
    canceller.cancel();
    assert!(engine.chat().send("What is 3 + 4?").unwrap().text().is_ok());
}

#[test]
fn contexts_are_what_the_memory_holds_between_two_bounds() {
    let folder = Folder::new("contexts");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let plan = |options: &EngineOptions| qwen::plan(&folder.0, options).unwrap();
    let model_context = plan(&options()).context;
    // Memory for half of the context.
    let half = model_context / 2;
    let budget = plan(&options().context(half)).total_bytes;
    let within = || options().memory_budget(budget);
    let context = |options: EngineOptions| options.load(&folder.0).unwrap().context();
    assert_eq!(context(within()), half);
    assert_eq!(context(within().context_at_most(half / 2)), half / 2);
    assert_eq!(context(within().context_at_most(model_context)), half);
    assert_eq!(context(within().context_at_most(usize::MAX)), half);
    assert_eq!(context(within().context_at_least(half)), half);
    assert_eq!(context(within().context_at_least(half / 4).context_at_most(half / 2)), half / 2);
    // An exact context is exact.
    assert_eq!(context(within().context(100).context_at_least(200).context_at_most(300)), 100);
    let error = within().context_at_least(half + 64).load(&folder.0).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::DoesNotFit { .. })), "{error}");
    for wrong in [
        options().context_at_least(model_context + 1),
        options().context_at_least(1),
        options().context_at_most(1),
        options().context_at_least(200).context_at_most(100),
    ] {
        let error = wrong.load(&folder.0).unwrap_err();
        assert!(matches!(error, Error::Model(ModelError::InvalidArgument { .. })), "{error}");
        assert!(error.to_string().contains("context_at_"), "{error}");
    }
}

#[test]
fn the_parts_of_a_prompt_are_reported_until_it_is_whole() {
    let folder = Folder::new("parts");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let engine = options().max_num_batched_tokens(16).load(&folder.0).unwrap();
    let reports = Arc::<Mutex<Vec<PromptProgress>>>::default();
    let kept = reports.clone();
    let mut stream =
        engine.generate_ids((0..100).collect::<Vec<u32>>(), &GenerateOptions::new().max_new_tokens(3)).unwrap();
    stream.on_prompt_progress(move |progress| kept.lock().unwrap().push(progress));
    let answer: Vec<u32> = stream.by_ref().map(Result::unwrap).collect();
    assert_eq!(answer.len(), 3);
    let reports = reports.lock().unwrap();
    assert!(reports.iter().all(|progress| progress.total == 100));
    assert!(reports.is_sorted_by(|one, next| one.done < next.done));
    assert_eq!((reports.len(), reports.last().unwrap().done), (7, 100));
}
