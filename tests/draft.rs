//! A draft model beside a real one: the same answers, whatever it guesses; what does not fit together is refused.
#![cfg(feature = "cpu")]

mod common;

use common::{Folder, SMALL, Shape, demo, options, write_checkpoint};
use qwen::core::backend::reference::Reference;
use qwen::{DraftModel, Encoding, Engine, EngineOptions, ErrorKind, GenerateOptions, Precision, Speculation};

fn ids(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    engine.generate_ids(prompt, options).unwrap().collect::<qwen::Result<_>>().unwrap()
}

fn prompt(len: u32, seed: u32) -> Vec<u32> {
    (0..len).map(|index| (index * 37 + seed * 11 + 5) % 280).collect()
}

/// A model of eight layers, and draft models of one that agree with it always, often, and hardly ever; the last has
/// fewer ids.
fn models(name: &str) -> (Folder, [Folder; 3]) {
    let folder = |part: &str| Folder::new(&format!("{name}-{part}"));
    let (target, same, alike, other) = (folder("target"), folder("same"), folder("alike"), folder("other"));
    // Only the first layer does something. Its weights and the embedding are those of a model of one layer.
    write_checkpoint(&target.0, Shape { layers: 8, ..SMALL }, |name, bytes| {
        if !name.contains("layers.0.") && (name.contains("o_proj") || name.contains("down_proj")) {
            bytes.fill(0);
        }
    });
    let one = Shape { layers: 1, ..SMALL };
    write_checkpoint(&same.0, one, |_, _| {});
    write_checkpoint(&alike.0, one, |name, bytes| {
        if name.ends_with("down_proj.weight") {
            // The signs of a few weights.
            bytes.iter_mut().skip(1).step_by(34).for_each(|byte| *byte ^= 0x80);
        }
    });
    write_checkpoint(&other.0, Shape { hidden: 32, vocab: 290, ..one }, |_, _| {});
    (target, [same, alike, other])
}

#[test]
fn answers_have_the_tokens_of_plain_decoding_whatever_is_guessed() {
    let (target, drafts) = models("equality");
    for precision in [Precision::Exact, Precision::Fast] {
        let options = || options().precision(precision).context(512).batch(4).max_num_logits(64);
        let plain = options().load(&target.0).unwrap();
        for draft in &drafts {
            let engine = options().draft(&draft.0).load(&target.0).unwrap();
            let asked = |seed: u64| {
                let asked = GenerateOptions::new().temperature(if seed == 0 { 0.0 } else { 1.2 }).seed(seed);
                asked.repetition_penalty(1.1).ignore_eos(true).max_new_tokens(70)
            };
            let alone: Vec<_> = (0..5).map(|seed| ids(&plain, &prompt(50, seed as u32), &asked(seed))).collect();
            let guessing = |seed| asked(seed).speculation(Speculation::Draft);
            for (seed, alone) in alone.iter().enumerate() {
                assert_eq!(alone, &ids(&engine, &prompt(50, seed as u32), &guessing(seed as u64)), "{precision}");
            }
            // In company, one of which stops halfway.
            let mut streams: Vec<_> =
                (0..5).map(|seed| engine.generate_ids(prompt(50, seed), &guessing(u64::from(seed))).unwrap()).collect();
            assert!(streams[2].by_ref().take(9).eq_by_ids(&alone[2][..9]));
            drop(streams.remove(2));
            for (stream, seed) in streams.into_iter().zip([0, 1, 3, 4]) {
                assert_eq!(stream.collect::<qwen::Result<Vec<_>>>().unwrap(), alone[seed], "{precision}, seed {seed}");
            }
            let stats = engine.stats();
            assert!(engine.draft_error().is_none() && stats.drafted_tokens > 0, "{stats:?}");
            assert!(stats.accepted_tokens > 0 || draft.0 != drafts[0].0, "{stats:?}");
        }
    }
}

trait EqByIds {
    fn eq_by_ids(self, ids: &[u32]) -> bool;
}

impl<I: Iterator<Item = qwen::Result<u32>>> EqByIds for I {
    fn eq_by_ids(self, ids: &[u32]) -> bool {
        self.map(Result::unwrap).eq(ids.iter().copied())
    }
}

#[test]
fn a_request_for_guesses_without_a_draft_model_is_refused_by_name() {
    let engine = common::demo_engine();
    let options = GenerateOptions::new().speculation(Speculation::Draft);
    let error = engine.generate("x", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("`speculation`: the engine has no draft model"), "{error}");
    assert!(!engine.has_draft_model());
}

#[test]
fn a_draft_model_with_another_tokenizer_is_refused_by_name() {
    let folder = Folder::new("other-tokenizer");
    for name in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        std::fs::copy(demo().join(name), folder.0.join(name)).unwrap();
    }
    // Without a tokenizer nothing says that they agree.
    let error = options().draft(&folder.0).load(demo()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    // Two tokens changed places.
    let text = std::fs::read_to_string(demo().join("tokenizer.json")).unwrap();
    let (a, b) = ("\"A\":", "\"B\":");
    let swapped = text.replacen(a, "\"A or B\":", 1).replacen(b, a, 1).replacen("\"A or B\":", b, 1);
    assert_ne!(text, swapped);
    std::fs::write(folder.0.join("tokenizer.json"), swapped).unwrap();
    let error = options().draft(&folder.0).load(demo()).unwrap_err().to_string();
    assert!(error.contains("`draft`") && error.contains("is \"B\", the model's \"A\""), "{error}");
}

#[test]
fn the_plan_counts_the_draft_model() {
    let (alone, draft) = (EngineOptions::new().context(512), DraftModel::new(demo()).quantize(Encoding::Q8_0));
    let beside = alone.clone().draft(draft);
    let (plan, both) = (qwen::plan(demo(), &alone).unwrap(), qwen::plan(demo(), &beside).unwrap());
    assert_eq!(plan.draft, None);
    let counted = both.draft.unwrap();
    assert!(counted.weight_bytes < plan.weight_bytes && counted.kv_bytes == plan.kv_bytes, "{counted:?}");
    assert_eq!(both.total_bytes, plan.total_bytes + counted.total_bytes());
    assert!(both.to_string().contains("draft model: weights"), "{both}");
    // What only just fits alone does not fit with it, and then the context becomes shorter.
    let budget = plan.total_bytes + counted.weight_bytes;
    assert!(qwen::plan(demo(), &alone.clone().memory_budget(budget)).unwrap().fits);
    assert!(!qwen::plan(demo(), &beside.clone().memory_budget(budget)).unwrap().fits);
    let error = beside.memory_budget(budget).load(demo()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    let options = options().memory_budget(budget + counted.activation_bytes).draft(demo());
    let shorter = options.load(demo()).unwrap();
    assert!(shorter.context() < 512 && shorter.plan().fits, "{}", shorter.plan());
}

#[test]
fn a_backend_of_the_programs_own_holds_one_model() {
    let error = options().draft(demo()).context(64).load_with_backend(Reference::new(), demo()).unwrap_err();
    assert!(error.to_string().contains("`draft`: a backend of the program's own"), "{error}");
}

#[test]
fn a_model_of_the_same_vocabulary_guesses_for_chats() {
    let load = |draft: bool| if draft { options().draft(demo()) } else { options() }.context(512).load(demo()).unwrap();
    let (plain, engine) = (load(false), load(true));
    let answer = |engine: &Engine, options: GenerateOptions| {
        let mut chat = engine.chat().options(options.seed(3).temperature(0.8).max_new_tokens(40));
        [chat.send("What is 3 + 4?").unwrap().text().unwrap(), chat.send("And 2 + 2?").unwrap().text().unwrap()]
    };
    let guessing = GenerateOptions::new().speculation(Speculation::Draft);
    assert_eq!(answer(&plain, GenerateOptions::new()), answer(&engine, guessing));
    assert!(engine.has_draft_model());
}
