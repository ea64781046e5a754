//! Answers with and without speculation.
//!
//! Random weights write nothing sensible, so the answers are given: a stage of the sampling chain makes each next token
//! the given one, and the engine, which knows nothing of that, computes them as any other answer. The texts for prompt
//! lookup:
//!
//! - `edit`: the text of the prompt, with every 40th token or so replaced, dropped or added;
//! - `misleading`: every three tokens are from the prompt, and what follows them never is what followed there, so that
//!   each guess would be wrong;
//! - `new`: no three tokens were there before.
//!
//! A draft model guesses by the same chain, so that it knows a given token. Those for a draft model:
//!
//! - `agree`: all tokens are given, and each guess is right;
//! - `often`: four of five are; the others are what each model says, which differs where weights are random;
//! - `own`: none is, so that hardly any guess is right.

use std::sync::Arc;

use qwen::{Engine, GenerateOptions, History, LogitsProcessor, Speculation};
use serde_json::json;

use crate::args::Args;
use crate::failure::Failure;
use crate::prompts::{Random, answer, exactly};
use crate::report::{COUNT, Figure, PERCENT, Report, TIMES, TOKENS, spread};

/// The answer has these tokens at these places, whatever the model says.
#[derive(Debug)]
struct Given(Vec<Option<u32>>);

impl LogitsProcessor for Given {
    fn process(&self, history: &History<'_>, logits: &mut [f32]) {
        let given = self.0.get(history.position()).copied().flatten();
        if let Some(logit) = given.and_then(|id| logits.get_mut(id as usize)) {
            *logit = 1e9;
        }
    }
}

/// A prompt and its answer.
struct Text {
    name: &'static str,
    prompt: Vec<u32>,
    answer: Vec<Option<u32>>,
}

impl Text {
    fn options(&self) -> GenerateOptions {
        let options = exactly(self.answer.len());
        match self.answer.iter().any(Option::is_some) {
            true => options.processor(Arc::new(Given(self.answer.clone()))),
            false => options,
        }
    }
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

fn texts_to_look_up(args: &Args, engine: &Engine) -> [Text; 3] {
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
        answer: answer.into_iter().map(Some).collect(),
    })
}

fn texts_to_draft(args: &Args, engine: &Engine) -> [Text; 3] {
    let mut random = Random::new(args.seed);
    let (prompt, given) = (random.ids(args.prompt_tokens, engine), random.ids(args.new_tokens, engine));
    [("agree", 1.0), ("often", 0.8), ("own", 0.0)].map(|(name, share)| {
        let answer = given.iter().map(|id| (random.uniform() < share).then_some(*id)).collect();
        Text { name, prompt: prompt.clone(), answer }
    })
}

/// The answer that `options` give, and its tokens a second.
fn speed(engine: &Engine, text: &Text, options: &GenerateOptions) -> Result<(Vec<u32>, f64), Failure> {
    let (ids, stats) = answer(engine, text.prompt.as_slice(), options)?;
    if ids.len() != text.answer.len() || ids.iter().zip(&text.answer).any(|(id, given)| given.is_some_and(|g| g != *id))
    {
        return Err(format!("the answer {} is not the given one", text.name).into());
    }
    Ok((ids, stats.tokens_per_second().ok_or("needs at least two --new-tokens")?))
}

pub(crate) fn report(args: &Args, speculation: Speculation) -> Result<Report, Failure> {
    let context = args.prompt_tokens.max(args.new_tokens + 8) + 16 + args.new_tokens + 1;
    let mut options = args.engine_options(context, 2);
    if let Some(draft) = &args.draft {
        options = options.draft(draft);
    }
    let engine = options.load(&args.model)?;
    let texts = match speculation {
        Speculation::Draft => texts_to_draft(args, &engine),
        _ => texts_to_look_up(args, &engine),
    };
    let mut figures = Vec::new();
    for text in texts {
        let plain = text.options();
        let guessing = plain.clone().speculation(speculation);
        // The first ones compute the prompt, which the others find in the prefix cache.
        speed(&engine, &text, &guessing)?;
        let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut right, mut counts, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for repeat in 0..args.repeat() {
            let mut measure_plain = || {
                let (ids, speed) = speed(&engine, &text, &plain)?;
                without.push(speed);
                Ok::<_, Failure>(ids)
            };
            let first = if repeat % 2 == 0 { Some(measure_plain()?) } else { None };
            let before = engine.stats();
            let (ids, faster) = speed(&engine, &text, &guessing)?;
            with.push(faster);
            let after = engine.stats();
            if ids != first.map_or_else(&mut measure_plain, Ok)? {
                return Err(format!("the answers of {} differ", text.name).into());
            }
            ratios.push(with[repeat] / without[repeat]);
            let drafted = after.drafted_tokens - before.drafted_tokens;
            counts.push(drafted as f64);
            let time = (after.step_time - before.step_time).as_secs_f64();
            shares.push((after.draft_time - before.draft_time).as_secs_f64() / time);
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
        figures.extend(figure("drafted", "guesses", COUNT, counts));
        figures.extend(figure("accepted", "guesses that were right", PERCENT, right));
        if args.draft.is_some() {
            figures.extend(figure("draft_share", "draft model's share of time", PERCENT, shares));
        }
    }
    let mut facts = args.facts(&engine);
    facts["speculation"] = json!(speculation);
    facts["draft"] = json!(args.draft);
    let by = args.draft.as_ref().map_or("prompt lookup".into(), |draft| draft.display().to_string());
    let heading =
        format!("{}\nanswers of {} tokens with and without guesses by {by}", args.heading(&engine), args.new_tokens);
    Ok(Report { facts, heading, figures })
}
