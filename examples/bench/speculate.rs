//! Answers with and without speculation.
//!
//! Random weights write nothing sensible, so the answers are given: a stage of the sampling chain makes each next token
//! the given one, and the engine, which knows nothing of that, computes them as any other answer. The texts:
//!
//! - `edit`: the text of the prompt, with every 40th token or so replaced, dropped or added;
//! - `misleading`: every three tokens are from the prompt, and what follows them never is what followed there, so that
//!   each guess would be wrong;
//! - `new`: no three tokens were there before.

use std::sync::Arc;

use qwen::{Engine, GenerateOptions, History, LogitsProcessor, Speculation};
use serde_json::json;

use crate::args::Args;
use crate::failure::Failure;
use crate::prompts::{Random, answer, exactly};
use crate::report::{Figure, PERCENT, Report, TIMES, TOKENS, spread};

/// The answer is this one, whatever the model says.
#[derive(Debug)]
struct Given(Vec<u32>);

impl LogitsProcessor for Given {
    fn process(&self, history: &History<'_>, logits: &mut [f32]) {
        if let Some(logit) = self.0.get(history.position()).and_then(|id| logits.get_mut(*id as usize)) {
            *logit = 1e9;
        }
    }
}

/// A prompt and its answer.
struct Text {
    name: &'static str,
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// `text` with small edits.
fn edited(text: &[u32], random: &mut Random, engine: &Engine) -> Vec<u32> {
    let mut edited = Vec::with_capacity(text.len());
    let mut untouched = random.around(40, 0.5);
    for &id in text {
        untouched -= 1;
        if untouched > 0 {
            edited.push(id);
            continue;
        }
        // Replaced by a token, dropped, or followed by two more.
        match (random.uniform() * 3.0) as usize {
            0 => edited.extend(random.ids(1, engine)),
            1 => {}
            _ => edited.extend([id].into_iter().chain(random.ids(2, engine))),
        }
        untouched = random.around(40, 0.5);
    }
    edited
}

fn texts(args: &Args, engine: &Engine) -> [Text; 3] {
    let mut random = Random::new(args.seed);
    let file = random.ids(args.prompt_tokens.max(args.new_tokens + 8), engine);
    // What the model is asked for stands before the text.
    let prompt = [random.ids(16, engine), file.clone()].concat();
    let mut edit = edited(&file, &mut random, engine);
    edit.resize(args.new_tokens, 0);
    // Three tokens from one place, then three from another: what follows each place hardly ever comes.
    let mut misleading = Vec::new();
    while misleading.len() < args.new_tokens {
        let place = (random.uniform() * (file.len() - 3) as f64) as usize;
        misleading.extend_from_slice(&file[place..place + 3]);
    }
    misleading.truncate(args.new_tokens);
    let new = random.ids(args.new_tokens, engine);
    [("edit", edit), ("misleading", misleading), ("new", new)].map(|(name, answer)| Text {
        name,
        prompt: prompt.clone(),
        answer,
    })
}

/// Tokens a second of the answer that `options` give.
fn speed(engine: &Engine, text: &Text, options: &GenerateOptions) -> Result<f64, Failure> {
    let (ids, stats) = answer(engine, text.prompt.as_slice(), options)?;
    if ids != text.answer {
        return Err(format!("the answer {} is not the given one", text.name).into());
    }
    Ok(stats.tokens_per_second().ok_or("needs at least two --new-tokens")?)
}

pub(crate) fn report(args: &Args) -> Result<Report, Failure> {
    let context = args.prompt_tokens.max(args.new_tokens + 8) + 16 + args.new_tokens + 1;
    let engine = args.engine_options(context, 2).load(&args.model)?;
    let mut figures = Vec::new();
    for text in texts(args, &engine) {
        let plain = exactly(text.answer.len()).processor(Arc::new(Given(text.answer.clone())));
        let guessing = plain.clone().speculation(Speculation::PromptLookup);
        // The first ones compute the prompt, which the others find in the prefix cache.
        speed(&engine, &text, &guessing)?;
        let (mut without, mut with, mut ratios, mut right) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for repeat in 0..args.repeat() {
            let mut measure_plain = || speed(&engine, &text, &plain).map(|speed| without.push(speed));
            if repeat % 2 == 0 {
                measure_plain()?;
            }
            let before = engine.stats();
            with.push(speed(&engine, &text, &guessing)?);
            let after = engine.stats();
            if repeat % 2 == 1 {
                measure_plain()?;
            }
            ratios.push(with[repeat] / without[repeat]);
            let drafted = after.drafted_tokens - before.drafted_tokens;
            if drafted > 0 {
                right.push((after.accepted_tokens - before.accepted_tokens) as f64 / drafted as f64);
            }
        }
        let name = text.name;
        let figure = |key: &str, words: &str, unit, values: Vec<f64>| {
            Figure::new(&format!("{name}_{key}"), &format!("{name}: {words}"), unit, spread(values))
        };
        figures.extend(figure("plain_tokens_per_second", "plain", TOKENS, without));
        figures.extend(figure("tokens_per_second", "with guesses", TOKENS, with));
        figures.extend(figure("speedup", "with guesses, of plain", TIMES, ratios));
        figures.extend(figure("accepted", "guesses that were right", PERCENT, right));
    }
    let mut facts = args.facts(&engine);
    facts["speculation"] = json!(Speculation::PromptLookup);
    let heading =
        format!("{}\nanswers of {} tokens with and without speculation", args.heading(&engine), args.new_tokens);
    Ok(Report { facts, heading, figures })
}
