//! One model over several processes.
//!
//! ```text
//! cargo run --release --example ranks -- --ranks 2 --prompt "What is 3 + 4?"
//! mpirun -n 2 target/release/examples/ranks --prompt "What is 3 + 4?"          (connected by TCP)
//! mpirun -n 2 target/release/examples/ranks --mpi --prompt "What is 3 + 4?"    (connected by MPI: --features mpi)
//! torchrun --no-python --nproc-per-node 2 target/release/examples/ranks --prompt "What is 3 + 4?"
//! ```
//!
//! Without a launcher it starts itself `--ranks` times, with the variables that torchrun would set. The
//! answer goes to stdout, everything else to stderr. See `docs/ranks.md`.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};

use clap::Parser;
use qwen::{Device, EngineOptions, GenerateOptions, Ranks};

mod demo;
mod failure;

/// Answer a question with a model that runs over several processes.
#[derive(Parser)]
struct Args {
    /// The folder of the checkpoint, or a GGUF file, on each machine; the demo checkpoint when absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The question.
    #[arg(long, default_value = "Hello!")]
    prompt: String,
    /// How many processes to start on this machine, if no launcher has started this one.
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// Connect the processes by the MPI library of the launcher that has started this one.
    #[arg(long)]
    mpi: bool,
    /// Let each process hold some of the layers instead of a part of every layer.
    #[arg(long)]
    pipeline_parallel: bool,
    /// Where each process runs.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// The most tokens of the answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
}

fn main() -> Result<ExitCode, failure::Failure> {
    let args = Args::parse();
    let ranks = if args.mpi { ranks_of_mpi()? } else { Ranks::from_env()? };
    if ranks.world_size() == 1 && args.ranks > 1 && !args.mpi {
        return launch(args.ranks);
    }
    let ranks = if args.pipeline_parallel { ranks.pipeline_parallel() } else { ranks };
    let model = args.model.map_or_else(demo::path, Ok)?;
    let options = EngineOptions::new().device(args.device).ranks(ranks.clone());
    if !ranks.is_leader() {
        options.run_worker(&model)?;
        return Ok(ExitCode::SUCCESS);
    }
    let engine = options.load(&model)?;
    eprintln!("rank 0 of {} on {}: {}", ranks.world_size(), engine.device_name(), engine.plan());
    let answer = GenerateOptions::new().greedy().max_new_tokens(args.max_new_tokens);
    let mut chat = engine.chat().options(answer);
    let mut out = std::io::stdout().lock();
    for piece in chat.send(&args.prompt)? {
        write!(out, "{}", piece?)?;
        out.flush()?;
    }
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "mpi")]
fn ranks_of_mpi() -> Result<Ranks, failure::Failure> {
    Ok(Ranks::mpi()?)
}

#[cfg(not(feature = "mpi"))]
fn ranks_of_mpi() -> Result<Ranks, failure::Failure> {
    Err("this program was built without MPI: build it with `--features mpi`".into())
}

/// Start this program once for each rank, and wait for all of them. When one rank fails, the others end too.
fn launch(ranks: usize) -> Result<ExitCode, failure::Failure> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let start = |rank: usize| {
        Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", ranks.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("LOCAL_WORLD_SIZE", ranks.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .spawn()
    };
    let mut children: Vec<Child> = Vec::new();
    for rank in 0..ranks {
        match start(rank) {
            Ok(child) => children.push(child),
            Err(error) => {
                // The others would wait for this one.
                for mut child in children {
                    child.kill().and_then(|()| child.wait())?;
                }
                return Err(error.into());
            }
        }
    }
    let mut failed = false;
    for mut child in children {
        failed |= !child.wait()?.success();
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
