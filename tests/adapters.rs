//! Low-rank adapters against transformers with peft, made by `tools/adapter_fixtures.py`, and among each other.
#![cfg(feature = "cpu")]

mod common;

use std::path::{Path, PathBuf};

use common::{Folder, demo, options};
use proptest::prelude::*;
use qwen::{
    Adapter, EmbedOptions, Encoding, Engine, EngineOptions, ErrorKind, GenerateOptions, Precision, Speculation,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    adapter: String,
    prompt: Vec<u32>,
    /// After the last two tokens of the prompt.
    logits: Vec<Vec<f64>>,
    greedy: Vec<u32>,
    margins: Vec<f64>,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn folder(name: &str) -> PathBuf {
    data().join("adapters").join(name)
}

fn model() -> PathBuf {
    data().join("golden/tiny-bf16")
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(data().join("adapters/cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn small(precision: Precision) -> EngineOptions {
    options().precision(precision).context(128).batch(8).allow_padding_tokens(true)
}

fn engine(precision: Precision) -> Engine {
    small(precision).load(model()).unwrap()
}

fn greedy() -> GenerateOptions {
    GenerateOptions::new().greedy().ignore_eos(true)
}

fn answer(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    engine.generate_ids(prompt, options).unwrap().collect::<qwen::Result<_>>().unwrap()
}

/// The relative RMS error of the last rows of `found`.
fn error(found: &[f32], expected: &[Vec<f64>]) -> f64 {
    let expected: Vec<f64> = expected.concat();
    let found = &found[found.len() - expected.len()..];
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(*a) - b));
    (difference / squares(&mut expected.iter().copied())).sqrt()
}

#[test]
fn logits_and_answers_are_those_of_peft() {
    for (precision, limit) in [(Precision::Exact, 1e-5), (Precision::Fast, 0.02)] {
        let engine = engine(precision);
        for Case { adapter: name, prompt, logits, greedy: expected, margins } in cases() {
            let adapter = engine.load_adapter(folder(&name)).unwrap();
            let found = error(&engine.with_adapter(&adapter).logits(&prompt).unwrap(), &logits);
            assert!(found < limit, "{name} in {precision:?}: {found}");
            let plain = error(&engine.logits(&prompt).unwrap(), &logits);
            assert!(plain > 0.2, "{name} changes nothing: {plain}");
            let found = answer(&engine, &prompt, &greedy().adapter(&adapter).max_new_tokens(expected.len()));
            // In Fast, as far as nothing hangs on a rounding.
            let sure = match precision {
                Precision::Exact => expected.len(),
                _ => margins.iter().take_while(|margin| **margin > 0.1).count(),
            };
            assert_eq!(found[..sure], expected[..sure], "{name} in {precision:?}");
        }
    }
}

#[test]
fn a_merged_adapter_gives_the_logits_of_one_beside_the_model() {
    for Case { adapter: name, prompt, logits, .. } in cases() {
        let merged = small(Precision::Exact).merge_adapter(folder(&name)).load(model()).unwrap();
        // The sums are rounded to bf16, as the model is stored.
        let found = error(&merged.logits(&prompt).unwrap(), &logits);
        assert!(found < 0.02, "{name}: {found}");
        assert!(merged.adapters().is_empty());
    }
    let quantised = small(Precision::Exact).quantize(Encoding::Q8_0).merge_adapter(folder("attention-f32"));
    let error = quantised.load(model()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("merge_adapter"), "{error}");
}

#[test]
fn an_adapter_goes_beside_a_quantised_model() {
    let engine = EngineOptions::new().threads(2).quantize(Encoding::Q8_0).context(128).allow_padding_tokens(true);
    let engine = engine.adapter(folder("all-linear-bf16")).load(model()).unwrap();
    let case = cases().into_iter().find(|case| case.adapter == "all-linear-bf16").unwrap();
    let adapter = engine.adapter("all-linear-bf16").unwrap();
    let found = error(&engine.with_adapter(&adapter).logits(&case.prompt).unwrap(), &case.logits);
    assert!(found < 0.05, "{found}");
}

/// What a request of a mixed batch is.
#[derive(Debug, Clone)]
struct Wanted {
    adapter: Option<usize>,
    prompt: Vec<u32>,
    tokens: usize,
    seed: Option<u64>,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let prompt = proptest::collection::vec(2u32..128, 1..60);
    (proptest::option::of(0usize..5), prompt, 1usize..12, proptest::option::of(any::<u64>()))
        .prop_map(|(adapter, prompt, tokens, seed)| Wanted { adapter, prompt, tokens, seed })
}

fn request(wanted: &Wanted, adapters: &[Adapter]) -> GenerateOptions {
    let options = GenerateOptions::new().ignore_eos(true).max_new_tokens(wanted.tokens).logprobs(3);
    let options = match wanted.seed {
        Some(seed) => options.temperature(1.0).seed(seed),
        None => options.greedy(),
    };
    options.adapter(wanted.adapter.map(|index| &adapters[index]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Ids and log-probabilities, to the bit, for any mixture of adapters, of rows without any, of prompts and answers.
    #[test]
    fn a_batch_of_several_adapters_equals_each_request_alone(
        requests in proptest::collection::vec(wanted(), 1..9),
        fast in any::<bool>(),
    ) {
        let precision = if fast { Precision::Fast } else { Precision::Exact };
        let load = |batch| {
            let engine = options().precision(precision).context(96).batch(batch).max_num_batched_tokens(70);
            let engine = engine.prefix_cache(batch > 1).allow_padding_tokens(true).load(model()).unwrap();
            let adapters: Vec<_> = cases().iter().map(|case| engine.load_adapter(folder(&case.adapter)).unwrap()).collect();
            (engine, adapters)
        };
        let ((together, theirs), (alone, own)) = (load(8), load(1));
        let streams: Vec<_> = requests
            .iter()
            .map(|wanted| together.generate_ids(wanted.prompt.clone(), &request(wanted, &theirs)).unwrap())
            .collect();
        for (wanted, mut stream) in requests.iter().zip(streams) {
            let found: Vec<u32> = stream.by_ref().collect::<qwen::Result<_>>().unwrap();
            // Alone, and for requests without an adapter in an engine that computes no step with one.
            let mut single = alone.generate_ids(wanted.prompt.clone(), &request(wanted, &own)).unwrap();
            let expected: Vec<u32> = single.by_ref().collect::<qwen::Result<_>>().unwrap();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(stream.logprobs(), single.logprobs());
        }
    }
}

#[test]
fn the_prefix_cache_keeps_adapters_apart() {
    let engine = engine(Precision::Exact);
    let prompt: Vec<u32> = (2..70).collect();
    let one = engine.load_adapter(folder("attention-f32")).unwrap();
    let other = engine.load_adapter(folder("all-linear-bf16")).unwrap();
    let cached = |adapter: Option<&Adapter>| {
        let mut stream = engine.generate_ids(prompt.clone(), &greedy().adapter(adapter).max_new_tokens(2)).unwrap();
        let ids: Vec<u32> = stream.by_ref().collect::<qwen::Result<_>>().unwrap();
        (ids, stream.stats().cached_tokens)
    };
    let first = [cached(None), cached(Some(&one)), cached(Some(&other))];
    assert!(first.iter().all(|(_, cached)| *cached == 0), "{first:?}");
    let second = [cached(None), cached(Some(&one)), cached(Some(&other))];
    for (first, second) in first.iter().zip(&second) {
        assert!(second.1 >= 64 && first.0 == second.0, "{first:?} {second:?}");
    }
    // Loaded again it is another one, whatever its name.
    assert!(engine.unload_adapter("attention-f32").unwrap());
    let again = engine.load_adapter(folder("attention-f32")).unwrap();
    assert_eq!(cached(Some(&again)).1, 0);
}

#[test]
fn requests_keep_an_adapter_that_is_unloaded() {
    let engine = small(Precision::Exact).manual().load(model()).unwrap();
    let expected = {
        let adapter = engine.load_adapter(folder("attention-f32")).unwrap();
        let found = answer(&engine, &[5, 6, 7], &greedy().adapter(&adapter).max_new_tokens(20));
        assert!(engine.unload_adapter("attention-f32").unwrap());
        found
    };
    let adapter = engine.load_adapter(folder("attention-f32")).unwrap();
    let options = greedy().adapter(&adapter).max_new_tokens(20);
    let mut running = engine.generate_ids([5, 6, 7], &options).unwrap();
    // One runs, one has not even reached the engine.
    assert!(engine.step().unwrap());
    let waiting = engine.generate_ids([5, 6, 7], &options).unwrap();
    assert!(engine.unload_adapter("attention-f32").unwrap());
    assert!(!engine.unload_adapter("attention-f32").unwrap());
    assert!(engine.adapters().is_empty() && engine.adapter("attention-f32").is_none());
    let refused = engine.generate_ids([5], &options).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert!(refused.to_string().contains("attention-f32"), "{refused}");
    for stream in [&mut running, &mut { waiting }] {
        assert_eq!(stream.collect::<qwen::Result<Vec<u32>>>().unwrap(), expected);
    }
    // Nobody holds it now: a request that cloned its options has no way back.
    assert!(engine.generate_ids([5], &options).is_err());
}

#[test]
fn adapters_are_loaded_and_unloaded_while_others_answer() {
    let engine = engine(Precision::Fast);
    let expected = answer(&engine, &[9, 8, 7], &greedy().max_new_tokens(100));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(answer(&engine, &[9, 8, 7], &greedy().max_new_tokens(100)), expected);
                }
            });
        }
        for round in 0..30 {
            let name = format!("round-{round}");
            let adapter = engine.load_adapter_as(&*name, folder("patterns-f16")).unwrap();
            assert_eq!(adapter.name(), name);
            answer(&engine, &[9, 8, 7], &greedy().adapter(&adapter).max_new_tokens(3));
            assert!(engine.unload_adapter(&name).unwrap());
        }
    });
}

#[test]
fn everything_that_a_handle_with_an_adapter_is_asked_has_it() {
    let engine = engine(Precision::Exact);
    let adapter = engine.load_adapter(folder("all-linear-bf16")).unwrap();
    let with = engine.with_adapter(&adapter);
    let merged = small(Precision::Exact).merge_adapter(folder("all-linear-bf16")).load(model()).unwrap();
    let ids: Vec<u32> = (10..40).collect();
    // Near the merged model, whose weights are rounded, and far from the plain one.
    let check = |what: &str, of: &dyn Fn(&Engine) -> f64| {
        let [found, expected, plain] = [&with, &merged, &engine].map(of);
        assert!((found - expected).abs() < 0.2 * (found - plain).abs(), "{what}: {found} {expected} {plain}");
    };
    check("perplexity", &|engine| engine.perplexity_ids(&ids, &Default::default()).unwrap().mean_nll());
    check("score", &|engine| engine.score_ids(&ids, &[[3u32, 4, 5]]).unwrap()[0].logprob);
    check("log-probabilities", &|engine| engine.prompt_logprobs_ids(&ids, 1).unwrap()[20].logprob);
    let embedding = |engine: &Engine| engine.embed_ids(&[&ids], &EmbedOptions::new()).unwrap().remove(0).values;
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(cosine(&embedding(&with), &embedding(&merged)) > 0.999);
    assert!(cosine(&embedding(&with), &embedding(&engine)) < 0.99);
    // What options name wins over the handle.
    let other = engine.load_adapter(folder("attention-f32")).unwrap();
    let options = greedy().max_new_tokens(8).adapter(&other);
    assert_eq!(answer(&with, &ids, &options), answer(&engine, &ids, &options));
}

#[test]
fn guesses_of_a_draft_model_change_no_token() {
    let options = small(Precision::Exact).draft(model());
    let engine = options.load(model()).unwrap();
    let adapter = engine.load_adapter(folder("attention-f32")).unwrap();
    let plain = greedy().adapter(&adapter).max_new_tokens(30);
    let expected = answer(&engine, &[5, 6, 7], &plain);
    for speculation in [Speculation::Draft, Speculation::PromptLookup] {
        assert_eq!(answer(&engine, &[5, 6, 7], &plain.clone().speculation(speculation)), expected);
    }
}

#[test]
fn limits_are_named() {
    let refused = |options: EngineOptions, name: &str, what: &str| {
        let engine = options.load(model()).unwrap();
        engine.load_adapter(folder("attention-f32")).unwrap();
        let error = engine.load_adapter(folder(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(engine.adapters().len(), 1);
    };
    let small = || small(Precision::Exact);
    refused(small().max_adapters(1), "all-linear-bf16", "max_adapters");
    refused(small().max_adapter_rank(2), "patterns-f16", "max_adapter_rank");
    refused(small().adapter_memory(60_000), "all-linear-bf16", "adapter_memory");
    refused(small(), "attention-f32", "attention-f32");
    // What is set aside is planned.
    let plan = |options: EngineOptions| qwen::plan(model(), &options).unwrap();
    let (without, with) = (plan(small()), plan(small().adapter_memory(1 << 20)));
    assert!(with.adapter_bytes > 1 << 20 && with.total_bytes == without.total_bytes + with.adapter_bytes);
    let one = plan(small().adapter(folder("attention-f32"))).adapter_bytes;
    let two = plan(small().adapter(folder("attention-f32")).adapter(folder("all-linear-bf16"))).adapter_bytes;
    assert!(0 < one && one < two);
}

#[test]
fn an_adapter_of_another_model_or_engine_is_refused() {
    let demo = options().load(demo()).unwrap();
    let error = demo.load_adapter(folder("all-linear-bf16")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
    assert!(error.to_string().contains("lora_"), "{error}");
    let (one, other) = (engine(Precision::Exact), engine(Precision::Exact));
    let adapter = one.load_adapter(folder("attention-f32")).unwrap();
    let error = other.generate_ids([3], &greedy().adapter(&adapter)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("another engine"), "{error}");
    // A folder that is none.
    assert_eq!(one.load_adapter(model()).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_saved_conversation_has_no_adapter() {
    let engine = options().batch(2).load(demo()).unwrap();
    // Zeros, so that the answers are the model's own.
    let adapter = Folder::new("zero-adapter");
    write_zeros(&adapter.0);
    let adapter = engine.load_adapter_as("zeros", &adapter.0).unwrap();
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().adapter(&adapter));
    let text = chat.send("What is 3 + 4?").unwrap().text().unwrap();
    let mut plain = engine.chat().options(GenerateOptions::new().greedy());
    let file = Folder::new("adapter-chat");
    assert_eq!(chat.save(file.0.join("chat")).unwrap(), 0);
    assert_eq!(plain.send("What is 3 + 4?").unwrap().text().unwrap(), text);
    assert_eq!(engine.restore(file.0.join("chat")).unwrap().messages(), plain.messages());
}

#[test]
fn saved_kv_belongs_to_the_merged_model() {
    let adapter = Folder::new("merged-zeros");
    write_zeros(&adapter.0);
    let merged = options().merge_adapter(&adapter.0).load(demo()).unwrap();
    let mut chat = merged.chat().options(GenerateOptions::new().greedy());
    chat.send("What is 3 + 4?").unwrap().text().unwrap();
    let file = Folder::new("merged-chat");
    assert!(chat.save(file.0.join("chat")).unwrap() > 0);
    assert_eq!(merged.restore(file.0.join("chat")).unwrap().messages(), chat.messages());
    let plain = options().load(demo()).unwrap();
    let error = plain.restore(file.0.join("chat")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSnapshot);
    assert!(error.to_string().contains("merged adapter"), "{error}");
}

/// An adapter of the demo model whose B is zero, as a training begins with.
fn write_zeros(folder: &Path) {
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}"#;
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for layer in 0..6 {
        for (half, shape) in [("A", [2, 256]), ("B", [256, 2])] {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{half}.weight");
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + 2048]});
            header.insert(name, entry);
            at += 2048;
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; at]].concat();
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
}
