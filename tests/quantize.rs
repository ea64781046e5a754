//! Models that are quantised while they are loaded, and those that are written to GGUF files: the same bits, the same
//! tokenizer, and answers close to the model's own.
#![cfg(feature = "cpu")]

mod common;

use std::num::NonZero;

use common::{Folder, Shape, demo, demo_engine, options, write_checkpoint};
use qwen::core::Error as ModelError;
use qwen::{Encoding, Engine, Error, GenerateOptions, Quantizer, TensorMix};

/// Words, control tokens, other scripts, and text that NFC changes.
const TEXTS: [&str; 6] = [
    "The sky is blue, isn't it? 1234",
    "<|im_start|>user\nHello!<|im_end|>\n<tool_call>",
    "\u{5929}\u{5730} e\u{301} \u{e9} \u{1f600}",
    "  indented\n\n\tcode { }  ",
    "",
    "<|endoftext|><|im_",
];

fn bits(engine: &Engine, ids: &[u32]) -> Vec<u32> {
    engine.logits(ids).unwrap().iter().map(|logit| logit.to_bits()).collect()
}

fn answer(engine: &Engine, question: &str) -> String {
    let greedy = GenerateOptions::new().greedy().max_new_tokens(40);
    engine.chat().options(greedy).send(question).unwrap().text().unwrap()
}

/// The relative RMS difference of logits.
fn error_of(logits: &[f32], plain: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
    let difference = square(&mut logits.iter().zip(plain).map(|(one, other)| one - other));
    (difference / square(&mut plain.iter().copied())).sqrt()
}

fn refused(result: qwen::Result<impl std::fmt::Debug>) -> String {
    match result {
        Err(Error::Model(error @ ModelError::Unsupported { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// For each encoding with a quantiser: quantising on load equals the file bit for bit, and the plan matches.
#[test]
fn a_model_quantised_while_loading_is_the_file() {
    let folder = Folder::new("quantize-uniform");
    for encoding in [
        Encoding::Q8_0,
        Encoding::Q6K,
        Encoding::Q5K,
        Encoding::Q5_1,
        Encoding::Q5_0,
        Encoding::Q4K,
        Encoding::Q4_1,
        Encoding::Q4_0,
        Encoding::Q3K,
        Encoding::Q2K,
        Encoding::Iq4Nl,
        Encoding::Iq4Xs,
        Encoding::F16,
        Encoding::Bf16,
    ] {
        let path = folder.0.join(format!("{encoding}.gguf"));
        Quantizer::new(TensorMix::Uniform(encoding)).write(demo(), &path).unwrap();
        let options = options().context(256);
        let loaded = options.clone().quantize(encoding).load(demo()).unwrap();
        let file = options.clone().load(&path).unwrap();
        assert_eq!((loaded.weight_encoding(), file.weight_encoding()), (encoding, encoding));
        let ids = loaded.tokenizer().unwrap().encode(TEXTS[0], true).unwrap();
        assert!(bits(&loaded, &ids) == bits(&file, &ids), "{encoding}");
        let planned = qwen::plan(demo(), &options.clone().quantize(encoding)).unwrap();
        assert_eq!(planned.weight_bytes, qwen::plan(&path, &options).unwrap().weight_bytes, "{encoding}");
        assert_eq!(planned.weight_bytes, loaded.plan().weight_bytes, "{encoding}");
    }
}

#[test]
fn a_written_file_is_a_whole_model() {
    let folder = Folder::new("quantize-mixes");
    let ours = demo_engine();
    let source = ours.tokenizer().unwrap();
    let (mut answers, mut equal) = (0, 0);
    for mix in ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"] {
        let path = folder.0.join(format!("{mix}.gguf"));
        let mut shares = Vec::new();
        let written = Quantizer::new(mix.parse().unwrap())
            .threads(NonZero::new(2).unwrap())
            .progress(|progress| shares.push(progress.done_bytes as f64 / progress.total_bytes as f64))
            .write(demo(), &path)
            .unwrap();
        assert_eq!((written.bytes, written.has_tokenizer), (path.metadata().unwrap().len(), true));
        assert!(shares.is_sorted() && shares.last() == Some(&1.0), "{shares:?}");
        let engine = options().batch(4).load(&path).unwrap();
        let tokenizer = engine.tokenizer().unwrap();
        for text in TEXTS {
            for special in [true, false] {
                let ids = source.encode(text, special).unwrap();
                assert_eq!(tokenizer.encode(text, special).unwrap(), ids, "{text:?}");
                assert_eq!(tokenizer.decode(&ids, special), source.decode(&ids, special), "{text:?}");
            }
        }
        assert_eq!(engine.stop_token_ids(), ours.stop_token_ids());
        for question in ["Hello!", "What is 3 + 4?", "What is 12 + 5?", "Who are you?"] {
            answers += 1;
            equal += usize::from(answer(&engine, question) == answer(&ours, question));
        }
        // The loss of the mix, as the error of the logits.
        let ids = source.encode(TEXTS[0], true).unwrap();
        let (quantised, plain) = (engine.logits(&ids[..]).unwrap(), ours.logits(&ids[..]).unwrap());
        let error = error_of(&quantised, &plain);
        println!("{mix}: {} bytes, error of the logits {error:.4}", written.bytes);
        assert!(error < 0.2, "{mix}: {error}");
    }
    println!("{equal} of {answers} greedy answers equal the model's own");
    assert!(equal * 2 > answers, "{equal} of {answers}");
}

/// From one GGUF file to another: the vocabulary and the template are kept.
#[test]
fn a_gguf_file_in_16_bits_is_quantised_too() {
    let folder = Folder::new("quantize-twice");
    let (half, small) = (folder.0.join("half.gguf"), folder.0.join("small.gguf"));
    let direct = folder.0.join("direct.gguf");
    Quantizer::new(TensorMix::Uniform(Encoding::Bf16)).write(demo(), &half).unwrap();
    Quantizer::new(TensorMix::Q4KM).write(&half, &small).unwrap();
    Quantizer::new(TensorMix::Q4KM).write(demo(), &direct).unwrap();
    assert_eq!(std::fs::read(&small).unwrap(), std::fs::read(&direct).unwrap());
    // Onto itself, too.
    Quantizer::new(TensorMix::Q4KM).write(&half, &half).unwrap();
    assert_eq!(std::fs::read(&half).unwrap(), std::fs::read(&direct).unwrap());
    let error = refused(Quantizer::new(TensorMix::Q4KM).write(&half, folder.0.join("again.gguf")));
    assert!(error.contains("half.gguf") && error.contains("Q6_K"), "{error}");
    assert!(!folder.0.join("again.gguf").exists());
}

#[test]
fn what_cannot_be_quantised_is_refused_by_name() {
    let folder = Folder::new("quantize-refused");
    let path = folder.0.join("small.gguf");
    Quantizer::new(TensorMix::Q4KM).write(demo(), &path).unwrap();
    let error = refused(options().quantize(Encoding::Q8_0).load(&path));
    assert!(error.contains("small.gguf") && error.contains("16 bits"), "{error}");
    let error = refused(options().quantize(Encoding::Iq2S).load(demo()));
    assert!(error.contains("IQ2_S") && error.contains("Q4_K"), "{error}");
    let error = refused(qwen::plan(demo(), &options().quantize(Encoding::Iq3Xxs)));
    assert!(error.contains("IQ3_XXS"), "{error}");
}

/// Rows that are not multiples of any block: each matrix falls back as far as necessary, and a missing tokenizer is not
/// an error.
#[test]
fn ragged_widths_fall_back() {
    let folder = Folder::new("quantize-ragged");
    let shape = Shape { hidden: 96, inner: 200, layers: 2, heads: 3, kv_heads: 1, vocab: 300, tied: false };
    write_checkpoint(&folder.0, shape, |_, _| {});
    let path = folder.0.join("ragged.gguf");
    let written = Quantizer::new(TensorMix::Q4KM).write(&folder.0, &path).unwrap();
    assert!(!written.has_tokenizer);
    let loaded = options().context(64).quantize(Encoding::Q4K).load(&folder.0).unwrap();
    assert_eq!(loaded.weight_encoding(), Encoding::Q5_0);
    let engine = options().context(64).load(&path).unwrap();
    assert_eq!(engine.stop_token_ids(), [299]);
    let ids: Vec<u32> = (1..20).collect();
    let own = options().context(64).load(&folder.0).unwrap();
    let plain = own.logits(&ids).unwrap();
    for engine in [loaded, engine] {
        let error = error_of(&engine.logits(&ids).unwrap(), &plain);
        assert!(error < 0.2, "{error}");
    }
}

/// Importances from the CPU, in the fast precision, equal those of the reference; the file uses them.
#[test]
fn importances_are_measured_by_a_text() {
    use qwen::core::backend::{Limits, reference::Reference};
    use qwen::core::model::{Model, rope::RopeStages, runner::ModelRunner, spec::ModelSpec};
    use qwen::{Importances, core::Checkpoint};

    let text = "What is 3 + 4? 3 + 4 is 7. The sky is blue. ".repeat(12);
    let ids = demo_engine().tokenizer().unwrap().encode(&text, true).unwrap();
    let measured = options().context(64).measure_importances(demo(), &text).unwrap();

    let checkpoint = Checkpoint::open(demo()).unwrap();
    let config = checkpoint.config();
    let limits = Limits {
        max_model_len: 64,
        max_num_batched_tokens: 64,
        max_num_seqs: 1,
        max_num_logits: 1,
        block_size: 32,
        num_blocks: 2,
        vocab_size: config.vocab_size,
        num_token_ids: config.vocab_size,
    };
    let mut backend = Reference::new();
    let model = Model::load(&mut backend, ModelSpec::new(config), &limits, &checkpoint, &mut |_, _| Ok(())).unwrap();
    let mut runner = ModelRunner::new(backend, model, RopeStages::new(config), limits);
    let prompts: Vec<&[u32]> = ids.chunks(64).collect();
    assert!(prompts.len() > 2 && prompts.last().is_some_and(|last| last.len() < 64));
    let reference = Importances::measure(&mut runner, &prompts, &mut |_| Ok(())).unwrap();
    assert_eq!((measured.len(), reference.len()), (43, 43));
    for info in checkpoint.tensors().filter(|info| info.shape.len() == 2) {
        let (one, other) = (measured.get(&info.name).unwrap(), reference.get(&info.name).unwrap());
        assert_eq!(one.len(), info.shape[1], "{}", info.name);
        assert!(one.iter().all(|number| number.is_finite() && *number >= 0.0));
        assert!(error_of(one, other) < 0.02, "{}: {}", info.name, error_of(one, other));
    }

    // The errors of all matrices, weighted by the text's activations, are smaller than without importances.
    let folder = Folder::new("quantize-importances");
    let (plain, weighed) = (folder.0.join("plain.gguf"), folder.0.join("weighed.gguf"));
    Quantizer::new(TensorMix::Q4KM).write(demo(), &plain).unwrap();
    Quantizer::new(TensorMix::Q4KM).importances(&measured).write(demo(), &weighed).unwrap();
    let (plain, weighed) = (Checkpoint::open(plain).unwrap(), Checkpoint::open(weighed).unwrap());
    for info in checkpoint.tensors().filter(|info| info.shape.len() == 2) {
        let values = |checkpoint: &Checkpoint| checkpoint.tensor(&info.name).unwrap().to_f32();
        let (exact, importances) = (values(&checkpoint), measured.get(&info.name).unwrap());
        let error = |made: Vec<f32>| -> f64 {
            let errors = made.iter().zip(&exact).map(|(one, other)| f64::from(one - other).powi(2));
            errors.zip(importances.iter().cycle()).map(|(error, importance)| error * f64::from(*importance)).sum()
        };
        let (plain, weighed) = (error(values(&plain)), error(values(&weighed)));
        assert!(weighed < plain, "{}: {weighed} against {plain}", info.name);
    }

    let error = options().measure_importances(demo(), "").unwrap_err().to_string();
    assert!(error.contains("no token"), "{error}");
}
