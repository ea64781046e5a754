//! A conversation that becomes long: how soon its last turn begins to answer.
//!
//! Each turn's prompt is everything before it and a question, as a chat sends it. The prefix cache has the K/V of what was
//! computed before, in whole blocks, so that little more than the question is left. Its time is compared with that of the
//! question alone, on an engine whose K/V begins at the same depth.

use qwen::bench_support::load_at_depth;
use serde_json::json;

use crate::args::Args;
use crate::failure::Failure;
use crate::prompts::{Random, answer, exactly, first_token};
use crate::report::{Figure, MILLISECONDS, Report, TIMES, spread};

pub(crate) fn report(args: &Args, turns: usize) -> Result<Report, Failure> {
    let (new, short) = (args.new_tokens, args.short_tokens.max(1));
    // The history of the last turn is that of the turns before it.
    let question = (args.prompt_tokens / (turns - 1)).saturating_sub(new).max(1);
    let history_tokens = (question + new) * (turns - 1);
    let context = history_tokens + short + new + 1;
    // K/V memory for two conversations, so that the questions of the repeats do not drive out the history.
    let engine = args.engine_options(context, 2).load(&args.model)?;
    let options = args.engine_options(context, 1).prefix_cache(false);
    let deep = load_at_depth(options, &args.model, history_tokens, 1)?;
    let mut random = Random::new(args.seed);
    let (mut history, mut firsts) = (Vec::new(), Vec::new());
    for _ in 1..turns {
        history.extend(random.ids(question, &engine));
        let (answer, stats) = answer(&engine, history.as_slice(), &exactly(new))?;
        history.extend(answer);
        firsts.push(first_token(&stats));
    }
    let (mut last, mut alone, mut computed) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 0..=args.repeat() {
        let question = random.ids(short, &engine);
        let prompt = [history.as_slice(), &question].concat();
        let stats = answer(&engine, prompt, &exactly(1))?.1;
        let lone = answer(&deep, question, &exactly(1))?.1;
        // The first ones touch all buffers.
        if repeat > 0 {
            last.push(first_token(&stats));
            alone.push(first_token(&lone));
            computed.push((stats.prompt_tokens - stats.cached_tokens) as f64);
        }
    }
    let ratios: Vec<f64> = last.iter().zip(&alone).map(|(last, alone)| last / alone).collect();
    let figures = [
        Figure::new("first_token_seconds", "first token of the last turn", MILLISECONDS, spread(last)),
        Figure::new("alone_first_token_seconds", "of its question alone", MILLISECONDS, spread(alone)),
        Figure::new("turn_over_alone", "the turn, of its question alone", TIMES, spread(ratios)),
        Figure::new("computed_tokens", "computed in the last turn", (1.0, "tokens"), spread(computed)),
        Figure::new("earlier_first_token_seconds", "first token of earlier turns", MILLISECONDS, spread(firsts)),
    ];
    let mut facts = args.facts(&engine);
    facts["turns"] = json!(turns);
    facts["history_tokens"] = json!(history_tokens);
    facts["short_tokens"] = json!(short);
    let heading = format!("{}\nturn {turns}: {short} new tokens after {history_tokens}", args.heading(&engine));
    Ok(Report { facts, heading, figures: figures.into_iter().flatten().collect() })
}
