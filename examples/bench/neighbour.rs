//! A short request that arrives while another one's long prompt is computed: how much longer its first token takes than
//! alone, in steps of the long prompt.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::args::Args;
use crate::failure::Failure;
use crate::prompts::{Random, answer, exactly, first_token};
use crate::report::{Figure, MILLISECONDS, Report, TIMES, spread};

pub(crate) fn report(args: &Args) -> Result<Report, Failure> {
    let short = args.short_tokens.max(1);
    let options = args.engine_options(args.prompt_tokens + short + 2, 2).prefix_cache(false);
    let engine = options.load(&args.model)?;
    let mut random = Random::new(args.seed);
    let long = random.ids(args.prompt_tokens, &engine);
    let whole = first_token(&answer(&engine, long.as_slice(), &exactly(1))?.1);
    let (mut chunks, mut alone, mut beside, mut delays) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.repeat() {
        let ids = random.ids(short, &engine);
        let lone = first_token(&answer(&engine, ids.as_slice(), &exactly(1))?.1);
        // It arrives somewhere in the middle of the long prompt.
        let pause = Duration::from_secs_f64(whole * (0.2 + 0.5 * random.uniform()));
        let started = Instant::now();
        let neighbour = engine.generate_ids(long.as_slice(), &exactly(1))?;
        thread::sleep(pause.saturating_sub(started.elapsed()));
        let chunk = engine.stats().last_step.as_secs_f64();
        let first = first_token(&answer(&engine, ids, &exactly(1))?.1);
        let is_over = neighbour.stats().first_token.is_some();
        // The rest of the long prompt is cancelled.
        drop(neighbour);
        if is_over {
            return Err("the long prompt ended before the short request: ask for more --prompt-tokens".into());
        }
        chunks.push(chunk);
        alone.push(lone);
        beside.push(first);
        delays.push((first - lone) / chunk);
    }
    let figures = [
        Figure::new("chunk_seconds", "one step of the long prompt", MILLISECONDS, spread(chunks)),
        Figure::new("alone_first_token_seconds", "first token alone", MILLISECONDS, spread(alone)),
        Figure::new("first_token_seconds", "first token beside it", MILLISECONDS, spread(beside)),
        Figure::new("delay_in_chunks", "what it takes longer, in steps", TIMES, spread(delays)),
    ];
    let mut facts = args.facts(&engine);
    facts["short_tokens"] = json!(short);
    let heading = format!(
        "{}\na request of {short} tokens arrives during a prompt of {}",
        args.heading(&engine),
        args.prompt_tokens
    );
    Ok(Report { facts, heading, figures: figures.into_iter().flatten().collect() })
}
