//! Make a model small: from 16 or 32 bits to a GGUF file in block formats.
//!
//! ```text
//! cargo run --release --example quantize -- path/to/Qwen2.5-1.5B-Instruct --to q4_k_m --out qwen2.5-1.5b-q4_k_m.gguf
//! cargo run --release --example quantize -- path/to/Qwen2.5-1.5B-Instruct --to q4_k_m --out small.gguf --imatrix text.txt
//! ```
//!
//! The file is a whole model: this library loads it, and so does llama.cpp. With `--imatrix` the model is first run on
//! a text, and columns that matter more get smaller errors.

use std::io::{IsTerminal, Write, stderr};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser;
use qwen::{Device, EngineOptions, HumanBytes, LoadProgress, Quantizer, TensorMix};

mod failure;
mod output;

/// Make a model small: from 16 or 32 bits to a GGUF file in block formats.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file, in 16 or 32 bits.
    model: PathBuf,
    /// q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, q4_k_s, q4_1, q4_0, q3_k_s, bf16, f16 or f32.
    #[arg(long)]
    to: TensorMix,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// A text like those that the model is used for, to measure which columns matter.
    #[arg(long, value_name = "TEXT_FILE")]
    imatrix: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads; all when absent.
    #[arg(long)]
    threads: Option<NonZero<usize>>,
}

fn main() -> Result<(), failure::Failure> {
    let args = Args::parse();
    let importances = match &args.imatrix {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let bar = Mutex::new(Bar::new("measuring"));
            let show = move |progress: LoadProgress| {
                if let (Some(share), Ok(mut bar)) = (progress.share(), bar.lock()) {
                    bar.show(share, &progress.stage.to_string());
                }
            };
            let mut options = EngineOptions::new().device(args.device.clone()).progress(show);
            if let Some(threads) = args.threads {
                options = options.threads(threads.get());
            }
            Some(options.measure_importances(&args.model, &text)?)
        }
    };
    let mut bar = Bar::new("quantising");
    let mut quantizer = Quantizer::new(args.to).progress(|progress| {
        let share = progress.done_bytes as f64 / progress.total_bytes.max(1) as f64;
        bar.show(share, &format!("{} {}", progress.tensor, progress.encoding));
    });
    if let Some(importances) = &importances {
        quantizer = quantizer.importances(importances);
    }
    if let Some(threads) = args.threads {
        quantizer = quantizer.threads(threads);
    }
    let file = quantizer.write(&args.model, &args.out)?;
    if !file.has_tokenizer {
        eprintln!("the model has no tokenizer.json: the file is for programs that work on token ids");
    }
    output::print(format!("{} ({}, {})", args.out.display(), HumanBytes(file.bytes), args.to))?;
    Ok(())
}

/// A bar on stderr if that is a terminal, else a line for each tenth.
struct Bar {
    what: &'static str,
    start: Instant,
    /// What was shown last, in hundredths.
    shown: Option<u32>,
}

impl Bar {
    const WIDTH: usize = 30;

    fn new(what: &'static str) -> Self {
        Bar { what, start: Instant::now(), shown: None }
    }

    fn show(&mut self, share: f64, detail: &str) {
        let hundredths = (share.clamp(0.0, 1.0) * 100.0) as u32;
        let step = if stderr().is_terminal() { 1 } else { 10 };
        if self.shown.is_some_and(|shown| hundredths / step == shown / step) {
            return;
        }
        self.shown = Some(hundredths);
        let seconds = self.start.elapsed().as_secs_f64();
        let mut err = stderr().lock();
        // A closed terminal is no reason to stop.
        let _ = match step {
            1 => {
                let filled = hundredths as usize * Self::WIDTH / 100;
                let bar: String = (0..Self::WIDTH).map(|at| if at < filled { '#' } else { '.' }).collect();
                let end = if hundredths == 100 { "\n" } else { "" };
                write!(err, "\r{} [{bar}] {hundredths:3}%  {seconds:.0} s  {detail:<40}{end}", self.what)
            }
            _ => writeln!(err, "{}: {hundredths}% after {seconds:.1} s", self.what),
        };
    }
}
