//! One model over several devices of a machine: the bits of one device, everything that an engine does, plans, refusals.
#![cfg(feature = "cpu")]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{Folder, SMALL, Shape, demo, options, write_checkpoint};
use qwen::{
    Device, Engine, EngineOptions, ErrorKind, GenerateOptions, LoadStage, Precision, Ranks, Speculation, Split,
};

fn on(device: &str) -> EngineOptions {
    options().device(device.parse().unwrap())
}

fn ids(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    engine.generate_ids(prompt, options).unwrap().collect::<qwen::Result<_>>().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn prompt(len: u32, seed: u32) -> Vec<u32> {
    (0..len).map(|i| (i * 37 + if i < 40 { 0 } else { seed * 11 } + 5) % 290).collect()
}

/// Sampled, so that a difference in the logits shows.
fn sampled(seed: u64, max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions::new().temperature(1.5).seed(seed).max_new_tokens(max_new_tokens).ignore_eos(true)
}

/// A checkpoint of several layers, whose output head is a matrix of its own.
fn six_layers(name: &str) -> Folder {
    let folder = Folder::new(name);
    write_checkpoint(&folder.0, Shape { layers: 6, tied: false, ..SMALL }, |_, _| {});
    folder
}

#[test]
fn a_split_over_two_cpus_gives_the_bits_of_one() {
    let untied = six_layers("split-bits");
    for model in [demo().as_path(), &untied.0] {
        for precision in [Precision::Exact, Precision::Fast] {
            let load = |device: &str| on(device).precision(precision).context(256).load(model).unwrap();
            let prompt = prompt(70, 3);
            let whole = load("cpu");
            let (expected, answer) = (whole.logits(&prompt).unwrap(), ids(&whole, &prompt, &sampled(1, 30)));
            for device in ["split:cpu=1,cpu=5", "split:cpu=4,cpu", "split:cpu=2,cpu=2,cpu=2"] {
                let split = load(device);
                assert!(bits(&split.logits(&prompt).unwrap()) == bits(&expected), "{device} in {precision}");
                assert_eq!(ids(&split, &prompt, &sampled(1, 30)), answer, "{device} in {precision}");
            }
        }
    }
}

#[test]
fn requests_side_by_side_have_the_bits_of_lone_ones() {
    let folder = six_layers("split-company");
    for precision in [Precision::Exact, Precision::Fast] {
        let options = || on("split:cpu=2,cpu").precision(precision).context(256);
        let alone = options().load(&folder.0).unwrap();
        // Too few blocks for all: some are preempted.
        let engine = options().batch(2).manual().load(&folder.0).unwrap();
        let asked = |seed: u32| (prompt(45 + 9 * seed, seed), sampled(u64::from(seed), 120));
        let streams: Vec<_> = (0..6)
            .map(|seed| {
                let (prompt, options) = asked(seed);
                engine.generate_ids(prompt, &options).unwrap()
            })
            .collect();
        for (seed, stream) in (0..).zip(streams) {
            let (prompt, options) = asked(seed);
            let found: Vec<u32> = stream.collect::<qwen::Result<_>>().unwrap();
            assert_eq!(found, ids(&alone, &prompt, &options), "seed {seed} in {precision}");
        }
        let stats = engine.stats();
        assert!(stats.num_preemptions > 0 && stats.cached_tokens > 0, "{stats:?}");
    }
}

#[test]
fn conversations_fork_and_find_what_was_computed() {
    let load = |device: &str| on(device).batch(4).load(demo()).unwrap();
    let (split, whole) = (load("split:cpu=3,cpu=3"), load("cpu"));
    let talk = |engine: &Engine| {
        let mut chat = engine.chat().system("You are terse. ".repeat(4)).options(sampled(7, 20));
        let mut answers = vec![chat.send("What is 3 + 4?").unwrap().text().unwrap()];
        // Both write behind what they share.
        let mut fork = chat.fork();
        for (forked, question) in [(false, "And 5 + 5?"), (true, "Who are you?"), (false, "Hello!")] {
            let chat = if forked { &mut fork } else { &mut chat };
            let mut reply = chat.send(question).unwrap();
            answers.push(reply.by_ref().collect::<qwen::Result<String>>().unwrap());
            let stats = reply.stats();
            assert!(stats.cached_tokens > 20, "{stats:?}");
        }
        answers
    };
    assert_eq!(talk(&split), talk(&whole));
    // Saved by one and restored by the other: a block has all layers, whoever holds them.
    let folder = Folder::new("split-saved");
    for (from, to) in [(&split, &whole), (&whole, &split)] {
        let mut chat = from.chat().options(sampled(2, 20));
        chat.send("What is the capital of Peru?").unwrap().text().unwrap();
        let path = folder.0.join("one.chat");
        let saved = chat.save(&path).unwrap();
        let fresh = load(&to.device().unwrap().to_string());
        let mut restored = fresh.restore(&path).unwrap();
        let mut reply = restored.send("And of Chile?").unwrap();
        let answer: String = reply.by_ref().collect::<qwen::Result<_>>().unwrap();
        assert!(saved > 0 && reply.stats().cached_tokens >= saved);
        assert_eq!(answer, chat.send("And of Chile?").unwrap().text().unwrap());
    }
}

#[test]
fn a_cancelled_answer_frees_its_blocks_and_disturbs_nobody() {
    let folder = six_layers("split-cancel");
    let load = || on("split:cpu=2,cpu=4").context(512).batch(2).prefix_cache(false).load(&folder.0).unwrap();
    let (prompt, asked) = (prompt(60, 1), sampled(5, 60));
    let expected = ids(&load(), &prompt, &asked);
    let engine = load();
    for read in [0, 1, 20] {
        let mut cancelled = engine.generate_ids(prompt.clone(), &sampled(9, 400)).unwrap();
        let beside = engine.generate_ids(prompt.clone(), &asked).unwrap();
        assert_eq!(cancelled.by_ref().take(read).filter(|token| token.is_ok()).count(), read);
        drop(cancelled);
        assert_eq!(beside.collect::<qwen::Result<Vec<_>>>().unwrap(), expected);
        // The next request runs alone: what was cancelled holds nothing any more.
        assert_eq!(ids(&engine, &prompt, &asked), expected);
        assert_eq!(engine.stats().used_blocks, 0);
    }
}

#[test]
fn a_plan_says_what_each_device_holds_before_it_is_loaded() {
    for model in [demo().as_path(), &six_layers("split-plan").0] {
        let plan = |device| qwen::plan(model, &on(device).context(512)).unwrap();
        let (whole, split) = (plan("cpu"), plan("split:cpu=2,cpu"));
        assert!(split.fits && whole.parts.is_empty());
        let layers: Vec<_> = split.parts.iter().map(|part| part.layers.clone()).collect();
        assert_eq!(layers, [0..2, 2..6]);
        let sum = |of: fn(&qwen::Plan) -> u64| split.parts.iter().map(|part| of(&part.plan)).sum::<u64>();
        assert_eq!(split.weight_bytes, sum(|plan| plan.weight_bytes));
        assert_eq!(split.read_bytes, sum(|plan| plan.read_bytes));
        // Loaded one after another into one memory.
        assert!(split.total_bytes <= sum(|plan| plan.total_bytes) && split.total_bytes >= split.weight_bytes);
        // No byte more is read; a tied table is on both devices.
        assert_eq!((split.kv_bytes, split.read_bytes), (whole.kv_bytes, whole.read_bytes));
        let tied = qwen::core::Checkpoint::open(model).unwrap().config().tie_word_embeddings;
        assert_eq!(split.weight_bytes > whole.weight_bytes, tied);
        assert_eq!(split.parts[0].plan.kv_bytes * 2, split.parts[1].plan.kv_bytes);
        let text = split.to_string();
        assert!(text.contains("layers 0 to 1 on `cpu`: ") && text.contains("layers 2 to 5 on `cpu`: "), "{text}");
        let json = serde_json::to_value(&split).unwrap();
        assert_eq!(json["parts"][1]["plan"]["kv_bytes"], split.parts[1].plan.kv_bytes);
        assert_eq!(json["parts"][1]["layers"]["start"], 2);
        // What is loaded is what was planned.
        let engine = on("split:cpu=2,cpu").context(512).load(model).unwrap();
        assert_eq!(engine.plan().parts.len(), 2);
        assert_eq!(engine.plan().total_bytes, split.total_bytes);
        assert_eq!(engine.device(), Some(&"split:cpu=2,cpu=4".parse().unwrap()));
        assert!(
            engine.device_name().starts_with("2 layers on cpu") && engine.device_name().contains("4 layers on cpu")
        );
        assert!(engine.selection_reason().starts_with("the program asked for it: layers 0 to 1 on `cpu`: "));
    }
}

#[test]
fn a_budget_bounds_the_devices_together_and_shortens_the_context() {
    let folder = six_layers("split-budget");
    let plan = |options: EngineOptions| qwen::plan(&folder.0, &options).unwrap();
    let device = "split:cpu,cpu";
    let enough = plan(on(device).context(512));
    // All of it fits the first device, which is then alone.
    assert_eq!(enough.parts[0].layers, 0..6);
    let engine = on(device).context(512).load(&folder.0).unwrap();
    assert_eq!(engine.device(), Some(&Device::Cpu));
    assert!(engine.device_name().starts_with("cpu"), "{}", engine.device_name());
    // The longest context that a budget leaves room for.
    let budget = enough.total_bytes;
    let shorter = plan(on(device).memory_budget(budget));
    assert!(shorter.fits && shorter.context == 512 && shorter.total_bytes <= budget, "{shorter}");
    let error = on("split:cpu=3,cpu=3").context(512).memory_budget(budget / 2).load(&folder.0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let text = error.to_string();
    assert!(text.contains("layers 0 to 2 on `cpu`") && text.contains("layers 3 to 5 on `cpu`"), "{text}");
}

#[test]
fn what_is_no_split_of_this_model_is_refused_by_name() {
    let refusal = |options: EngineOptions, kind, expected: &str| {
        let planned = qwen::plan(demo(), &options).map(drop);
        for error in [options.load(demo()).map(drop), planned].into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    };
    use ErrorKind::{InvalidArgument, Unsupported};
    refusal(on("split:cpu=2,cpu=3"), InvalidArgument, "the parts have 5 layers, the model has 6");
    refusal(on("split:cpu=7,cpu"), InvalidArgument, "the parts have 7 layers, the model has 6");
    let split = |split| options().device(Device::Split(split));
    let whole = usize::MAX;
    refusal(split(Split::new().layers(Device::Cpu, whole).layers(Device::Cpu, whole)), InvalidArgument, "6");
    refusal(split(Split::new()), InvalidArgument, "two devices or more");
    refusal(split(Split::new().fill(Device::Cpu)), InvalidArgument, "two devices or more");
    refusal(split(Split::new().fill(Device::Cpu).layers(Device::Cpu, 0)), InvalidArgument, "a layer or more");
    refusal(split(Split::new().fill(Device::Auto).fill(Device::Cpu)), InvalidArgument, "`auto` is not one device");
    let nested = Device::Split(Split::new().fill(Device::Cpu).fill(Device::Cpu));
    refusal(split(Split::new().fill(nested).fill(Device::Cpu)), InvalidArgument, "`split:cpu,cpu` is not one device");
    let comma = "wgpu:Acme, Inc.".parse().unwrap();
    refusal(split(Split::new().fill(comma).fill(Device::Cpu)), InvalidArgument, "name it by its index");
    if !cfg!(feature = "cuda") {
        refusal(on("split:cuda:1=2,cpu"), Unsupported, "device `cuda:1`");
        refusal(on("split:cpu,cuda"), Unsupported, "the feature cuda");
    }
    let ranks = Ranks::new(0, 2).unwrap();
    refusal(on("split:cpu=2,cpu").ranks(ranks), Unsupported, "device `split:cpu=2,cpu` on several ranks");
    let error = on("split:cpu=2,cpu").measure_importances(demo(), "What is 3 + 4?").unwrap_err();
    assert_eq!(error.kind(), Unsupported);
    assert!(error.to_string().contains("on one device"), "{error}");
}

#[test]
fn one_progress_counts_the_weights_of_all_devices() {
    let reports = Arc::<Mutex<Vec<_>>>::default();
    let kept = reports.clone();
    let options = on("split:cpu=2,cpu=1,cpu").progress(move |progress| kept.lock().unwrap().push(progress));
    drop(options.context(64).load(demo()).unwrap());
    let reports = reports.lock().unwrap();
    let (opening, rest) = reports.split_first().unwrap();
    let (warm_up, weights) = rest.split_last().unwrap();
    assert_eq!((opening.stage, warm_up.stage), (LoadStage::Opening, LoadStage::WarmUp));
    assert!(weights.iter().all(|report| report.stage == LoadStage::Weights));
    assert!(weights.is_sorted_by(|one, next| one.done < next.done && one.total == next.total));
    assert_eq!(weights.last().unwrap().share(), Some(1.0));
}

#[test]
fn damage_is_named_with_the_layer_of_the_model() {
    let folder = Folder::new("split-damage");
    write_checkpoint(&folder.0, Shape { layers: 4, ..SMALL }, |name, bytes| {
        if name == "model.layers.3.mlp.up_proj.weight" {
            bytes[..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
        }
    });
    let engine = on("split:cpu=2,cpu=2").context(128).load(&folder.0).unwrap();
    let stream = engine.generate_ids([1, 2, 3], &GenerateOptions::new()).unwrap();
    let error = stream.collect::<qwen::Result<Vec<_>>>().unwrap_err();
    assert!(error.to_string().contains("layer 3"), "{error}");
}

#[test]
fn adapters_and_draft_models_go_with_a_split() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let (model, adapter) = (data.join("golden/tiny-bf16"), data.join("adapters/all-linear-bf16"));
    let layers = qwen::core::Checkpoint::open(&model).unwrap().config().num_hidden_layers;
    let device = format!("split:cpu={},cpu=1", layers - 1);
    let load = |device: &str| {
        let options = on(device).context(128).batch(4).allow_padding_tokens(true);
        options.adapter(&adapter).load(&model).unwrap()
    };
    let (whole, split) = (load("cpu"), load(&device));
    assert_eq!(split.plan().adapter_bytes, split.plan().parts.iter().map(|part| part.plan.adapter_bytes).sum::<u64>());
    assert!(split.plan().parts.iter().all(|part| part.plan.adapter_bytes > 0));
    let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 120).collect();
    let adapted = |engine: &Engine| {
        let adapter = engine.adapters().into_iter().next().unwrap();
        bits(&engine.with_adapter(&adapter).logits(&tokens).unwrap())
    };
    assert!(adapted(&whole) == adapted(&split));
    assert!(adapted(&whole) != bits(&whole.logits(&tokens).unwrap()));

    let (target, draft) = (six_layers("split-target"), Folder::new("split-draft"));
    write_checkpoint(&draft.0, Shape { layers: 1, ..SMALL }, |_, _| {});
    let options = || on("split:cpu=2,cpu").context(256).draft(&draft.0);
    let plan = qwen::plan(&target.0, &options()).unwrap();
    assert!(plan.draft.is_some() && plan.draft == plan.parts[0].plan.draft && plan.parts[1].plan.draft.is_none());
    let engine = options().load(&target.0).unwrap();
    let guessing = sampled(3, 40).speculation(Speculation::Draft);
    let expected = ids(&engine, &prompt(30, 2), &sampled(3, 40));
    assert_eq!(ids(&engine, &prompt(30, 2), &guessing), expected);
    assert!(engine.stats().drafted_tokens > 0 && engine.draft_error().is_none());
}
