//! Requests of many users: how fast they are together, and how long each of them waits.
//!
//! Prompts and answers differ in length, and arrive at once or at random times. Requests that arrive at once are compared
//! with the same ones asked one after the other.

use std::thread;
use std::time::{Duration, Instant};

use qwen::{Engine, Stats};
use serde_json::json;

use crate::args::Args;
use crate::failure::Failure;
use crate::prompts::{Random, answer, exactly, first_token};
use crate::report::{COUNT, Figure, MILLISECONDS, PERCENT, Report, TIMES, TOKENS, spread};

struct Request {
    /// Seconds after the first one.
    arrival: f64,
    prompt: Vec<u32>,
    new_tokens: usize,
}

/// The requests of one repeat.
fn requests(args: &Args, count: usize, repeat: usize, engine: &Engine) -> Vec<Request> {
    let mut lengths = Random::new(args.seed);
    // The same lengths in each repeat, and other tokens, which no earlier one has in the prefix cache.
    let mut tokens = Random::new(args.seed.wrapping_add(1 + repeat as u64));
    let shared = tokens.ids(args.shared_tokens, engine);
    let mut arrival = 0.0;
    let request = |_| {
        let own = lengths.around(args.prompt_tokens, args.vary);
        let prompt = [shared.as_slice(), &tokens.ids(own, engine)].concat();
        let new_tokens = lengths.around(args.new_tokens, args.vary);
        let request = Request { arrival, prompt, new_tokens };
        arrival += args.rate.map_or(0.0, |rate| lengths.pause(rate));
        request
    };
    (0..count).map(request).collect()
}

/// What came of the requests of one repeat.
struct Run {
    seconds: f64,
    stats: Vec<Stats>,
}

impl Run {
    fn tokens_per_second(&self) -> f64 {
        self.stats.iter().map(|stats| stats.new_tokens).sum::<usize>() as f64 / self.seconds
    }
}

/// Ask each at its time, from a thread of its own.
fn together(engine: &Engine, requests: &[Request], salt: &str) -> Result<Run, Failure> {
    let started = Instant::now();
    let ask = |request: &Request| {
        let due = Duration::from_secs_f64(request.arrival);
        thread::sleep(due.saturating_sub(started.elapsed()));
        let options = exactly(request.new_tokens).cache_salt(salt);
        answer(engine, request.prompt.as_slice(), &options).map(|(_, stats)| stats)
    };
    let stats: Vec<_> = thread::scope(|scope| {
        let readers: Vec<_> = requests.iter().map(|request| scope.spawn(|| ask(request))).collect();
        readers.into_iter().map(|reader| reader.join().map_err(|_| "a reader panicked")).collect()
    });
    let seconds = started.elapsed().as_secs_f64();
    let stats = stats.into_iter().map(|stats| Ok(stats??)).collect::<Result<_, Failure>>()?;
    Ok(Run { seconds, stats })
}

/// Ask them one after the other.
fn alone(engine: &Engine, requests: &[Request], salt: &str) -> Result<Run, Failure> {
    let started = Instant::now();
    let ask = |request: &Request| {
        let options = exactly(request.new_tokens).cache_salt(salt);
        Ok(answer(engine, request.prompt.as_slice(), &options)?.1)
    };
    let stats = requests.iter().map(ask).collect::<Result<_, Failure>>()?;
    Ok(Run { seconds: started.elapsed().as_secs_f64(), stats })
}

pub(crate) fn report(args: &Args, count: usize) -> Result<Report, Failure> {
    let longest = |mean: usize| (mean as f64 * (1.0 + args.vary)).ceil() as usize + 1;
    let context = args.shared_tokens + longest(args.prompt_tokens) + longest(args.new_tokens);
    let engine = args.engine_options(context, args.batch).max_waiting(count).load(&args.model)?;
    answer(&engine, requests(args, 1, 0, &engine)[0].prompt.as_slice(), &exactly(8))?;
    let (mut runs, mut lone, mut hit_rates, mut preemptions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for repeat in 0..args.repeat() {
        let requests = requests(args, count, repeat, &engine);
        // What the other run computed is not found.
        if args.rate.is_none() {
            lone.push(alone(&engine, &requests, &format!("alone {repeat}"))?.tokens_per_second());
        }
        let before = engine.stats();
        runs.push(together(&engine, &requests, &format!("together {repeat}"))?);
        let mut during = engine.stats();
        preemptions.push((during.num_preemptions - before.num_preemptions) as f64);
        during.cached_tokens -= before.cached_tokens;
        during.computed_tokens -= before.computed_tokens;
        hit_rates.extend(during.hit_rate());
    }
    let all = || runs.iter().flat_map(|run| &run.stats);
    let per_token = |stats: &Stats| Some(1.0 / stats.tokens_per_second()?);
    let speeds: Vec<f64> = runs.iter().map(Run::tokens_per_second).collect();
    let ratios = speeds.iter().zip(&lone).map(|(together, alone)| together / alone);
    let mut figures: Vec<Figure> = [
        Figure::new("tokens_per_second", "together", TOKENS, spread(speeds.iter().copied())),
        Figure::new("alone_tokens_per_second", "one after the other", TOKENS, spread(lone.iter().copied())),
        Figure::new("together_over_alone", "together, of one after the other", TIMES, spread(ratios)),
        Figure::new("preemptions", "preemptions", COUNT, spread(preemptions)),
        Figure::new("hit_rate", "found in the prefix cache", PERCENT, spread(hit_rates)),
    ]
    .into_iter()
    .flatten()
    .collect();
    figures.extend(Figure::percentiles("first_token", "first token", MILLISECONDS, all().map(first_token)));
    figures.extend(Figure::percentiles("token", "each further token", MILLISECONDS, all().filter_map(per_token)));
    let mut facts = args.facts(&engine);
    facts["requests"] = json!(count);
    facts["rate"] = json!(args.rate);
    facts["vary"] = json!(args.vary);
    facts["shared_tokens"] = json!(args.shared_tokens);
    let arrivals = args.rate.map_or("at once".into(), |rate| format!("{rate} a second"));
    let (prompt, new) = (args.shared_tokens + args.prompt_tokens, args.new_tokens);
    let heading =
        format!("{}\n{count} requests, {arrivals}, {prompt} + {new} tokens on average", args.heading(&engine));
    Ok(Report { facts, heading, figures })
}
