//! Scores, perplexity, labels and embeddings: against the logits of transformers, and the same bits in company.
#![cfg(feature = "cpu")]

mod common;

use std::path::Path;

use common::{Folder, SMALL, demo_engine, options, write_checkpoint};
use qwen::{EmbedOptions, Engine, ErrorKind, GenerateOptions, PerplexityOptions, Pooling, Precision};
use safetensors::SafeTensors;

/// The prompts of the small golden case with the logits of transformers, in f64.
struct Golden {
    engine: Engine,
    /// `[vocab_size, hidden_size]`; the model is tied.
    embed_tokens: Vec<f64>,
    prompts: Vec<(Vec<u32>, Vec<f64>)>,
}

fn golden() -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/tiny-bf16");
    let engine = options().precision(Precision::Exact).context(64).load(&folder).unwrap();
    let [weights, reference] =
        ["model.safetensors", "reference.safetensors"].map(|name| std::fs::read(folder.join(name)).unwrap());
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let bf16 = |bytes: &[u8]| f64::from(f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16));
    let embed_tokens = weights.tensor("model.embed_tokens.weight").unwrap().data().chunks(2).map(bf16).collect();
    let reference = SafeTensors::deserialize(&reference).unwrap();
    let prompts = (0..3).map(|n| {
        let ids = reference.tensor(&format!("prompt.{n}")).unwrap();
        let ids = ids.data().chunks(8).map(|id| i64::from_le_bytes(id.try_into().unwrap()) as u32).collect();
        let logits = reference.tensor(&format!("logits.{n}")).unwrap();
        let logits = logits.data().chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        (ids, logits)
    });
    Golden { engine, embed_tokens, prompts: prompts.collect() }
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let log_sum = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    row.iter().map(|logit| logit - log_sum).collect()
}

#[test]
fn log_probabilities_are_those_of_transformers() {
    let Golden { engine, prompts, .. } = golden();
    let vocab = engine.config().vocab_size;
    for (ids, logits) in prompts.iter().filter(|(ids, _)| ids.len() > 1) {
        let rows: Vec<Vec<f64>> = logits.chunks(vocab).map(log_softmax).collect();
        let expected: Vec<f64> = rows.iter().zip(&ids[1..]).map(|(row, id)| row[*id as usize]).collect();
        let found = engine.prompt_logprobs_ids(ids, 3).unwrap();
        assert_eq!(found.iter().map(|token| token.id).collect::<Vec<_>>(), ids[1..]);
        for ((token, expected), row) in found.iter().zip(&expected).zip(&rows) {
            assert!((token.logprob - expected).abs() < 1e-5, "{} {expected}", token.logprob);
            let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!((token.top[0].logprob - best).abs() < 1e-5 && token.top.len() == 3);
        }
        let perplexity = engine.perplexity_ids(ids, &PerplexityOptions::new()).unwrap();
        let nll: f64 = -expected.iter().sum::<f64>();
        assert!((perplexity.nll - nll).abs() < 1e-4 && perplexity.tokens == ids.len() - 1);
        assert!((perplexity.perplexity().ln() - nll / expected.len() as f64).abs() < 1e-5);
        // The end of the prompt as a continuation, beside one that differs in its last token and a lone other one.
        let (prompt, end) = ids.split_at(ids.len() - 3);
        let other = [end[0], end[1], (end[2] + 1) % vocab as u32];
        let scores = engine.score_ids(prompt, &[end, &other, &other[2..], &[]]).unwrap();
        let sum: f64 = expected[expected.len() - 3..].iter().sum();
        assert!((scores[0].logprob - sum).abs() < 1e-5);
        assert!((scores[0].mean_logprob() - sum / 3.0).abs() < 1e-5);
        let last = rows[rows.len() - 2][other[2] as usize];
        assert!(
            (scores[1].logprob - (expected[expected.len() - 3] + expected[expected.len() - 2] + last)).abs() < 1e-5
        );
        assert!((scores[2].logprob - rows[prompt.len() - 1][other[2] as usize]).abs() < 1e-5);
        assert_eq!((scores[3].logprob, scores[3].tokens.len(), scores[3].is_greedy), (0.0, 0, true));
    }
}

#[test]
fn a_long_text_is_predicted_in_windows_as_transformers_documents_it() {
    let folder = Folder::new("scoring-windows");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let engine = options().context(32).load(&folder.0).unwrap();
    let text = prompt(150, 3);
    let vocab = engine.config().vocab_size;
    for (window, stride) in [(33, 16), (20, 20), (20, 1), (33, 33)] {
        // The loop of its guide "Perplexity of fixed-length models".
        let (mut nll, mut tokens, mut prev_end) = (0.0, 0, 0);
        for begin in (0..text.len()).step_by(stride) {
            let end = (begin + window).min(text.len());
            let logits = engine.logits(&text[begin..end - 1]).unwrap();
            let trg_len = end - prev_end;
            for (row, index) in logits.chunks(vocab).zip(begin + 1..end).filter(|(_, index)| end - index <= trg_len) {
                let row = log_softmax(&row.iter().map(|logit| f64::from(*logit)).collect::<Vec<_>>());
                nll -= row[text[index] as usize];
                tokens += 1;
            }
            prev_end = end;
            if end == text.len() {
                break;
            }
        }
        let found = engine.perplexity_ids(&text, &PerplexityOptions::new().window(window).stride(stride)).unwrap();
        assert_eq!(found.tokens, tokens);
        assert!((found.nll - nll).abs() < 1e-9 * nll, "{} {nll}", found.nll);
        assert!(found.standard_error() > 0.0);
    }
    let default = engine.perplexity_ids(&text, &PerplexityOptions::new()).unwrap();
    assert_eq!(default, engine.perplexity_ids(&text, &PerplexityOptions::new().window(33).stride(16)).unwrap());
}

#[test]
fn embeddings_are_the_hidden_states_of_transformers() {
    // The head is linear and the reference has its outputs: those of the last hidden state, and of the mean of all, are
    // the last row of logits and the mean of all rows.
    let Golden { engine, embed_tokens, prompts } = golden();
    let (vocab, hidden) = (engine.config().vocab_size, engine.config().hidden_size);
    let options = |pooling| EmbedOptions::new().pooling(pooling).normalise(false);
    for (ids, logits) in &prompts {
        let last = logits[logits.len() - vocab..].to_vec();
        let column = |id: usize| logits.iter().skip(id).step_by(vocab).sum::<f64>() / ids.len() as f64;
        for (pooling, expected) in [(Pooling::Last, last), (Pooling::Mean, (0..vocab).map(column).collect::<Vec<_>>())]
        {
            let found = engine.embed_ids(&[ids], &options(pooling)).unwrap().remove(0);
            assert_eq!((found.values.len(), found.num_tokens), (hidden, ids.len()));
            let head = embed_tokens.chunks(hidden);
            let product = |row: &[f64]| row.iter().zip(&found.values).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
            let norm = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
            let error = head.map(product).zip(&expected).map(|(got, want)| (got - want).powi(2)).sum::<f64>().sqrt();
            assert!(error / norm < 1e-5, "{pooling} of {}: {:e}", ids.len(), error / norm);
        }
    }
}

/// Texts with instructions, pooled and normalised as sentence-transformers does, made by `tools/embedding_fixtures.py`.
#[test]
fn embeddings_of_texts_are_those_of_sentence_transformers() {
    #[derive(serde::Deserialize)]
    struct Case {
        pooling: Pooling,
        text: String,
        num_tokens: usize,
        values: Vec<f64>,
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/embeddings.json");
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(cases.len(), 8);
    for (precision, limit) in [(Precision::Exact, 1e-5), (Precision::Fast, 0.03)] {
        let engine = options().precision(precision).context(128).batch(4).load(common::demo()).unwrap();
        for pooling in [Pooling::Last, Pooling::Mean] {
            let cases: Vec<&Case> = cases.iter().filter(|case| case.pooling == pooling).collect();
            let texts: Vec<&str> = cases.iter().map(|case| &*case.text).collect();
            let found = engine.embed(&texts, &EmbedOptions::new().pooling(pooling)).unwrap();
            for (case, found) in cases.iter().zip(found) {
                assert_eq!(found.num_tokens, case.num_tokens, "{}", case.text);
                let distance = found.values.iter().zip(&case.values).map(|(a, b)| (f64::from(*a) - b).powi(2));
                let distance = distance.sum::<f64>().sqrt();
                assert!(distance < limit, "{pooling}, {precision:?}: {distance:e} for {:?}", case.text);
            }
        }
    }
}

fn prompt(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + seed * 11 + 5) % 290).collect()
}

#[test]
fn bits_do_not_depend_on_company_or_chunks() {
    let folder = Folder::new("scoring-bits");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let texts: Vec<Vec<u32>> = [1, 5, 70, 33, 200, 2].into_iter().zip(0..).map(|(len, n)| prompt(len, n)).collect();
    let all = |engine: &Engine| {
        let embed =
            |pooling, texts: &[Vec<u32>]| engine.embed_ids(texts, &EmbedOptions::new().pooling(pooling)).unwrap();
        let together = [Pooling::Last, Pooling::Mean].map(|pooling| embed(pooling, &texts));
        let alone = [Pooling::Last, Pooling::Mean].map(|pooling| {
            texts.iter().flat_map(|text| embed(pooling, std::slice::from_ref(text))).collect::<Vec<_>>()
        });
        assert_eq!(together, alone);
        (together, engine.prompt_logprobs_ids(&texts[4], 2).unwrap())
    };
    let engine = options().batch(4).context(512).load(&folder.0).unwrap();
    let expected = all(&engine);
    // Beside an answer.
    let answer =
        engine.generate_ids(prompt(9, 1), &GenerateOptions::new().ignore_eos(true).max_new_tokens(300)).unwrap();
    assert_eq!(all(&engine), expected);
    drop(answer);
    for options in [options().max_num_batched_tokens(7), options().threads(1).max_num_logits(3)] {
        assert_eq!(all(&options.context(512).load(&folder.0).unwrap()), expected);
    }
    let length: f64 = expected.0[1][3].values.iter().map(|value| f64::from(*value).powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-6);
}

#[test]
fn more_texts_than_may_wait_are_embedded() {
    let folder = Folder::new("scoring-many");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let engine = options().max_waiting(1).load(&folder.0).unwrap();
    let texts: Vec<Vec<u32>> = (0..100).map(|n| prompt(1 + n % 9, n as u32)).collect();
    let found = engine.embed_ids(&texts, &EmbedOptions::new()).unwrap();
    assert!(found.iter().zip(&texts).all(|(found, text)| found.num_tokens == text.len()));
    assert_eq!(found[17], engine.embed_ids(&texts[17..18], &EmbedOptions::new()).unwrap()[0]);
}

#[test]
fn texts_are_scored_and_ranked() {
    let engine = demo_engine();
    // The border is inside a token: the parts are encoded apart.
    for (prompt, end) in [("What is 3 + 4?", " It is 7."), ("Hello th", "ere")] {
        let score = engine.score(prompt, &[end]).unwrap().remove(0);
        let ids: Vec<u32> = score.tokens.iter().map(|token| token.id).collect();
        assert_eq!(engine.tokenizer().unwrap().decode(&ids, false), end);
    }
    let ranked = engine.classify("The sky is", &[" blue", " yes", " blue"]).unwrap();
    assert!((ranked.iter().map(|label| label.probability).sum::<f64>() - 1.0).abs() < 1e-12);
    assert!(ranked.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
    assert!(engine.classify("The sky is", &[] as &[&str]).unwrap().is_empty());
    // A greedy answer is greedy.
    let prompt = engine.tokenizer().unwrap().encode("What is 3 + 4?", true).unwrap();
    let options = GenerateOptions::new().greedy().max_new_tokens(4).ignore_eos(true);
    let answer: Vec<u32> = engine.generate_ids(prompt.as_slice(), &options).unwrap().map(Result::unwrap).collect();
    assert!(engine.score_ids(&prompt, &[answer]).unwrap()[0].is_greedy);
}

#[test]
fn what_cannot_be_scored_or_embedded_is_refused_by_name() {
    let engine = options().context(8).load(common::demo()).unwrap();
    let perplexity = |ids: &[u32]| engine.perplexity_ids(ids, &PerplexityOptions::new());
    for (options, name) in [
        (PerplexityOptions::new().window(1), "window"),
        (PerplexityOptions::new().window(10), "window"),
        (PerplexityOptions::new().stride(0), "stride"),
        (PerplexityOptions::new().window(4).stride(5), "stride"),
        (PerplexityOptions::new().min_context(0), "min_context"),
        (PerplexityOptions::new().window(4).min_context(4), "min_context"),
    ] {
        let error = engine.perplexity_with("a text", &options).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains(name), "{error}");
    }
    assert!(engine.perplexity("").is_err() && engine.score("", &["a"]).is_err());
    assert!(perplexity(&[u32::MAX]).is_err());
    assert!(perplexity(&[[1; 20].as_slice(), &[u32::MAX], &[1; 20]].concat()).is_err());
    assert_eq!(perplexity(&[1]).unwrap().perplexity(), 1.0);
    // The last token is not computed: it may be one behind the context.
    assert_eq!(perplexity(&[1; 9]).unwrap().tokens, 8);
    let long = "word ".repeat(40);
    assert_eq!(engine.embed(&[&long], &EmbedOptions::new()).unwrap_err().kind(), ErrorKind::PromptTooLong);
    let found = engine.embed(&[&long], &EmbedOptions::new().truncate(true).append_eos(true)).unwrap();
    assert_eq!(found[0].num_tokens, 8);
    assert!(engine.embed(&[""], &EmbedOptions::new()).is_err());
}

#[test]
fn the_checkpoint_decides_what_it_was_trained_for() {
    let folder = Folder::new("scoring-pooling");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let text = [prompt(12, 1)];
    let pooling = |file: &str| {
        std::fs::create_dir_all(folder.0.join("1_Pooling")).unwrap();
        std::fs::write(folder.0.join("1_Pooling/config.json"), file).unwrap();
        let engine = options().context(64).load(&folder.0).unwrap();
        let of = |pooling| engine.embed_ids(&text, &EmbedOptions::new().pooling(pooling)).unwrap();
        let found = engine.embed_ids(&text, &EmbedOptions::new()).map_err(|error| error.to_string())?;
        Ok::<_, String>([Pooling::Last, Pooling::Mean].map(|pooling| of(pooling) == found))
    };
    let modes = |last, mean| format!(r#"{{"pooling_mode_lasttoken": {last}, "pooling_mode_mean_tokens": {mean}}}"#);
    assert_eq!(pooling(&modes(false, true)), Ok([false, true]));
    assert_eq!(pooling(&modes(true, false)), Ok([true, false]));
    assert!(pooling(r#"{"pooling_mode_cls_token": true}"#).unwrap_err().contains("cls_token"));
    assert!(pooling("[]").unwrap_err().contains("1_Pooling/config.json"));
    assert!(pooling(r#"{"pooling_mode": "mean", "include_prompt": false}"#).unwrap_err().contains("include_prompt"));
    assert_eq!(pooling(r#"{"pooling_mode": "mean", "include_prompt": true}"#), Ok([false, true]));
    // modules.json says where the pooling is, and what comes behind it.
    let lengths = |modules: &[(&str, &str)], options: &EmbedOptions| {
        let module = |(index, (class, path)): (usize, &(&str, &str))| {
            let class = format!("sentence_transformers.models.{class}");
            serde_json::json!({"idx": index, "name": index.to_string(), "path": path, "type": class})
        };
        let modules: Vec<_> = modules.iter().enumerate().map(module).collect();
        std::fs::write(folder.0.join("modules.json"), serde_json::to_string(&modules).unwrap()).unwrap();
        let engine = self::options().context(64).load(&folder.0).unwrap();
        let found = engine.embed_ids(&text, options).map_err(|error| error.to_string())?.remove(0).values;
        Ok::<_, String>(found.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt())
    };
    let is_one = |length: Result<f64, String>| (length.unwrap() - 1.0).abs() < 1e-6;
    let (default, none) = (EmbedOptions::new(), EmbedOptions::new().normalise(false));
    let plain = [("Transformer", ""), ("Pooling", "1_Pooling")];
    let normalising = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")];
    assert!(!is_one(lengths(&plain, &default)) && is_one(lengths(&plain, &default.clone().normalise(true))));
    assert!(is_one(lengths(&normalising, &default)) && !is_one(lengths(&normalising, &none)));
    for (modules, reason) in [
        (&[("Transformer", "")][..], "Pooling"),
        (&[plain[0], plain[1], ("Dense", "2_Dense")], "Dense"),
        (&[plain[0], ("Pooling", "elsewhere")], "elsewhere/config.json"),
        (&[plain[0], ("Pooling", "../outside")], "outside of the checkpoint"),
    ] {
        let error = lengths(modules, &default).unwrap_err();
        assert!(error.contains("modules.json") && error.contains(reason), "{error}");
        // What the program says is computed.
        assert!(is_one(lengths(modules, &default.clone().pooling(Pooling::Mean))));
    }
    std::fs::remove_file(folder.0.join("modules.json")).unwrap();
    let config = std::fs::read_to_string(folder.0.join("config.json")).unwrap();
    std::fs::write(folder.0.join("config.json"), config.replacen('{', r#"{"is_causal": false,"#, 1)).unwrap();
    let error = pooling(&modes(true, false)).unwrap_err();
    assert!(error.contains("is_causal"), "{error}");
}
