//! What compiling schemas, masks and tokens take with a tokenizer, by the schemas of this package. On Unix it is the time of
//! the processor, so that what else a machine does counts less:
//!
//! ```text
//! cargo run --release -p qwen-schemas --example timings -- path/to/a/folder/with/tokenizer.json
//! ```

use std::time::{Duration, Instant};

use qwen_schemas::{all, draw, ends, grammar, grammars};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("which tokenizer?")?;
    let tokenizer = qwen::load_tokenizer(folder)?;
    let (grammars, ends) = (grammars(&tokenizer), ends(&tokenizer));
    let cases = all();
    let started = Clock::start();
    grammars.constraint(&qwen::Grammar::regex("x"), &ends)?;
    println!("the vocabulary of {} ids: {:.0} ms", tokenizer.num_ids(), millis(started.elapsed()));
    let (mut compile, mut start, mut first, mut masks, mut forced) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut slowest, mut over) = ((Duration::ZERO, &cases[0].name), 0);
    let (mut num_forced, mut num_tokens) = (0, 0);
    for (at, case) in cases.iter().enumerate() {
        // On a thread of its own.
        let started = Instant::now();
        let constraint = grammars.constraint(&grammar(case), &ends)?;
        compile.push(started.elapsed());
        let ids = draw(&tokenizer, &*constraint, at as u64, 200)?.ids;
        let started = Clock::start();
        let mut state = constraint.start();
        start.push(started.elapsed());
        for len in 0..=ids.len() {
            let started = Clock::start();
            let found = state.forced(&ids[..len], 16).len();
            forced.push(started.elapsed());
            (num_forced, num_tokens) = (num_forced + usize::from(found > 0), num_tokens + 1);
            let started = Clock::start();
            state.mask(&ids[..len])?;
            let took = started.elapsed();
            slowest = slowest.max((took, &case.name));
            over += usize::from(took.as_micros() > 1000);
            (if len == 0 { &mut first } else { &mut masks }).push(took);
        }
    }
    println!("the slowest mask: {}; {over} of all take more than 1 ms", slowest.1);
    println!("{} schemas; {:.0}% of tokens are forced", cases.len(), 100.0 * num_forced as f64 / num_tokens as f64);
    for (name, times) in
        [("compile", compile), ("start", start), ("first mask", first), ("mask", masks), ("token and forced", forced)]
    {
        report(name, times);
    }
    Ok(())
}

/// The time since it was started.
struct Clock(Duration);

impl Clock {
    fn start() -> Self {
        Clock(now())
    }

    fn elapsed(&self) -> Duration {
        now() - self.0
    }
}

#[cfg(unix)]
fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(not(unix))]
fn now() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let mean = times.iter().sum::<Duration>() / times.len() as u32;
    let at = |share: f64| millis(times[((times.len() - 1) as f64 * share) as usize]);
    println!(
        "{name:17} n {:6}  mean {:.3}  p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3} ms",
        times.len(),
        millis(mean),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}
