//! Download a checkpoint by its name into the cache, and print its path.
//!
//! ```text
//! cargo run --release --features hub --example pull -- Qwen/Qwen2.5-0.5B-Instruct
//! ```

use std::path::PathBuf;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use qwen::hub::Hub;
use qwen::{LoadCanceller, LoadProgress};

mod failure;
mod output;

/// Download a checkpoint by its name into the cache, and print its path.
#[derive(Parser)]
struct Args {
    /// owner/name[:quantization][@revision], such as Qwen/Qwen2.5-7B-Instruct-GGUF:q4_k_m.
    name: String,
    /// The folder of the cache instead of that of the environment.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Do not use the network: print the path of what is in the cache.
    #[arg(long)]
    offline: bool,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let mut hub = Hub::new();
    if let Some(cache) = args.cache {
        hub = hub.cache_dir(cache);
    }
    if args.offline {
        hub = hub.offline(true);
    }
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let canceller = LoadCanceller::new();
    let cancel = canceller.clone();
    ctrlc::set_handler(move || cancel.cancel())?;
    let shown = bar.clone();
    let report = move |progress: LoadProgress| {
        shown.set_length(progress.total);
        shown.set_position(progress.done);
    };
    let path = hub.download_with(&args.name, report, &canceller)?;
    bar.finish_and_clear();
    output::print(path.display().to_string())?;
    Ok(())
}
