//! How fast a model runs, and what share of the device's limits it reaches.
//!
//! ```text
//! cargo run --release --example bench -- --model PATH --prompt-tokens 512 --new-tokens 64 --repeat 5
//! cargo run --release --example bench -- --model PATH --requests 32 --rate 0.5 --batch 8
//! cargo run --release --example bench -- --model PATH --turns 10 --prompt-tokens 4000
//! cargo run --release --example bench -- --model PATH --neighbour --prompt-tokens 4096
//! cargo run --release --example bench -- --model PATH --speculate --new-tokens 256
//! cargo run --release --example bench -- --model PATH --speculate draft --draft PATH
//! ```
//!
//! Each mode is a file: `throughput` is the first, `requests` has many users, `turns` a conversation that becomes long,
//! `neighbour` a short request beside a long prompt, `speculate` guesses. Every figure that is compared with another one
//! is measured in turns with it, since a shared machine's speed drifts within minutes; figures are the medians of the
//! repeats, with the smallest and the largest.

mod args;
#[path = "../failure/mod.rs"]
mod failure;
mod neighbour;
#[path = "../output/mod.rs"]
mod output;
mod prompts;
mod report;
mod requests;
mod speculate;
mod throughput;
mod turns;

use args::{Args, Mode};
use clap::Parser;

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let report = match args.mode() {
        Mode::Throughput => throughput::report(&args)?,
        Mode::Requests(count) => requests::report(&args, count)?,
        Mode::Turns(count) => turns::report(&args, count)?,
        Mode::Neighbour => neighbour::report(&args)?,
        Mode::Speculate(speculation) => speculate::report(&args, speculation)?,
    };
    if args.json {
        output::print(serde_json::to_string_pretty(&report.json())?)?;
    } else {
        output::print(report.table())?;
    }
    Ok(())
}
