//! Figures for Prometheus: what requests took and how they ended, beside what the engine says of itself.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use qwen::{Engine, EngineStats};

/// Upper bounds of the buckets of times from a request on, in seconds.
const WAITS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// And of the time of a token.
const TOKEN_TIMES: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0];

/// How often a figure was at most each of some bounds.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond all.
    counts: Vec<AtomicU64>,
    sum_micros: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, sum_micros: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn write(&self, page: &mut String, name: &str, help: &str) {
        describe(page, name, "histogram", help);
        let mut total = 0;
        let bounds = self.bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            line(page, format_args!("{name}_bucket{{le=\"{bound}\"}} {total}"));
        }
        let sum = Duration::from_micros(self.sum_micros.load(Ordering::Relaxed));
        line(page, format_args!("{name}_sum {}", sum.as_secs_f64()));
        line(page, format_args!("{name}_count {total}"));
    }
}

/// What the server counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// From the request to the first token of an answer.
    pub(crate) first_token: Histogram,
    /// The mean time of a token behind the first, for each answer.
    pub(crate) token_time: Histogram,
    /// From the request to the step that computes the first part of its prompt.
    pub(crate) queue_time: Histogram,
    /// From the request to the end of the answer.
    pub(crate) answer_time: Histogram,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) new_tokens: AtomicU64,
    /// Answers whose clients left before their end.
    pub(crate) cancelled: AtomicU64,
    pub(crate) connections: AtomicU64,
    /// By route and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            first_token: Histogram::new(WAITS),
            token_time: Histogram::new(TOKEN_TIMES),
            queue_time: Histogram::new(WAITS),
            answer_time: Histogram::new(WAITS),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            new_tokens: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            requests: Mutex::default(),
        }
    }
}

impl Metrics {
    /// A request for `route` has ended.
    pub(crate) fn request(&self, route: &'static str, status: u16) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry((route, status)).or_default() += 1;
    }

    /// The page, in Prometheus' text format.
    pub(crate) fn page(&self, engine: Option<&Engine>) -> String {
        let mut page = String::new();
        let name = "qwen_requests_total";
        describe(&mut page, name, "counter", "Requests by route and status; 499 where the client left.");
        for ((route, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            line(&mut page, format_args!("{name}{{route=\"{route}\",status=\"{status}\"}} {count}"));
        }
        self.first_token.write(&mut page, "qwen_time_to_first_token_seconds", "From a request to its first token.");
        self.token_time.write(
            &mut page,
            "qwen_time_per_token_seconds",
            "Mean time of an answer's tokens after the first.",
        );
        self.queue_time.write(&mut page, "qwen_queue_time_seconds", "From a request to the beginning of its prompt.");
        self.answer_time.write(&mut page, "qwen_answer_time_seconds", "From a request to the end of its answer.");
        let counters = [
            ("qwen_prompt_tokens_total", "Tokens of prompts of complete answers.", &self.prompt_tokens),
            ("qwen_cached_prompt_tokens_total", "Those of them whose K/V was there.", &self.cached_tokens),
            ("qwen_new_tokens_total", "Tokens of complete answers.", &self.new_tokens),
            ("qwen_cancelled_total", "Answers whose clients left before their end.", &self.cancelled),
        ];
        for (name, help, counter) in counters {
            describe(&mut page, name, "counter", help);
            line(&mut page, format_args!("{name} {}", counter.load(Ordering::Relaxed)));
        }
        gauge(&mut page, "qwen_connections", "Open connections.", self.connections.load(Ordering::Relaxed) as f64);
        gauge(&mut page, "qwen_ready", "Whether the model is loaded.", f64::from(u8::from(engine.is_some())));
        if let Some(engine) = engine {
            engine_figures(&mut page, &engine.stats());
        }
        page
    }
}

fn engine_figures(page: &mut String, stats: &EngineStats) {
    let gauges = [
        ("qwen_running", "Requests that have K/V blocks.", stats.running as f64),
        ("qwen_waiting", "Requests that were not admitted yet.", stats.waiting as f64),
        ("qwen_preempted", "Requests that gave up their blocks and go on later.", stats.preempted as f64),
        ("qwen_kv_blocks", "Blocks of the K/V store.", stats.num_blocks as f64),
        ("qwen_kv_blocks_used", "Blocks that running requests use.", stats.used_blocks as f64),
        (
            "qwen_kv_blocks_cached",
            "Blocks that nobody uses, kept for prompts that begin alike.",
            stats.cached_blocks as f64,
        ),
    ];
    for (name, help, value) in gauges {
        gauge(page, name, help, value);
    }
    let counters = [
        ("qwen_preemptions_total", "How often a request gave up its blocks.", stats.num_preemptions as f64),
        ("qwen_computed_tokens_total", "Tokens that the model computed.", stats.computed_tokens as f64),
        ("qwen_prefix_cache_hit_tokens_total", "Tokens whose K/V was there.", stats.cached_tokens as f64),
        ("qwen_drafted_tokens_total", "Tokens that were guessed.", stats.drafted_tokens as f64),
        ("qwen_accepted_tokens_total", "Guessed tokens that were right.", stats.accepted_tokens as f64),
        ("qwen_step_seconds_total", "How long all steps took.", stats.step_time.as_secs_f64()),
    ];
    for (name, help, value) in counters {
        describe(page, name, "counter", help);
        line(page, format_args!("{name} {value}"));
    }
}

fn gauge(page: &mut String, name: &str, help: &str, value: f64) {
    describe(page, name, "gauge", help);
    line(page, format_args!("{name} {value}"));
}

fn describe(page: &mut String, name: &str, kind: &str, help: &str) {
    line(page, format_args!("# HELP {name} {help}"));
    line(page, format_args!("# TYPE {name} {kind}"));
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_last_one_has_all() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for millis in [50, 100, 500, 5000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut page = String::new();
        histogram.write(&mut page, "x", "help");
        for line in
            ["x_bucket{le=\"0.1\"} 2", "x_bucket{le=\"1\"} 3", "x_bucket{le=\"+Inf\"} 4", "x_count 4", "x_sum 5.65"]
        {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
