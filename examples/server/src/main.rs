//! Serve a Qwen2.5 model over HTTP: reads the options, listens, loads the model beside, and ends when it is told to.

mod args;
mod logger;

use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;

use qwen::Ranks;
use qwen_server::Server;

use args::Args;

/// Threads that read requests and write answers; computing has its own.
const IO_THREADS: usize = 2;
/// Threads that encode prompts.
const MAX_BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let args = Args::read()?;
    logger::start(args.log_level());
    let ranks = args.ranks()?;
    if !ranks.is_leader() {
        // Rank 0 serves; the others compute their part of the model until it ends.
        return args.engine_options(ranks).run_worker(args.model()).map_err(|error| error.to_string());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(serve(args, ranks))
}

async fn serve(args: Args, ranks: Ranks) -> Result<(), String> {
    let (settings, (host, port)) = (args.settings()?, args.address());
    let has_keys = !settings.api_keys.is_empty();
    for key in &settings.api_keys {
        log::info!("a client's key is {}", key.fingerprint());
    }
    let server =
        Server::bind((host.as_str(), port), settings).await.map_err(|error| format!("{host}:{port}: {error}"))?;
    if !is_loopback(server.address().ip()) && !has_keys {
        log::warn!(
            "ANYBODY WHO REACHES {} CAN USE THIS SERVER: set --api-key-file, or listen at 127.0.0.1 alone",
            server.address()
        );
    }
    // Whoever started this reads the address; if nobody does, it serves all the same.
    let _ = writeln!(std::io::stdout().lock(), "listening on http://{}", server.address());
    let (loader, options, model, adapters) =
        (server.loader(), args.engine_options(ranks), args.model(), args.adapters());
    let (failed, failure) = tokio::sync::oneshot::channel();
    let load = move || {
        let engine = options.load(&model).map_err(|error| format!("{model}: {error}"))?;
        for (name, path) in adapters {
            engine.load_adapter_as(&name, &path).map_err(|error| format!("adapter {name}: {error}"))?;
        }
        Ok::<_, String>((engine, model))
    };
    std::thread::spawn(move || match load() {
        Ok((engine, model)) => {
            for warning in engine.warnings() {
                log::warn!("{warning}");
            }
            let (device, reason) = (engine.device_name(), engine.selection_reason());
            log::info!("{model} is loaded on {device} ({reason}), {} tokens of context", engine.context());
            loader.set(engine);
        }
        Err(error) => {
            // Nobody waits for it any more if the server has ended.
            let _ = failed.send(error);
        }
    });
    let (told, mut failure_of_load) = (interrupted(), None);
    let shutdown = async {
        let failure = async {
            match failure.await {
                Ok(error) => error,
                // It is loaded.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = told => log::info!("ending: no more requests are taken"),
            error = failure => failure_of_load = Some(error),
        }
        tokio::spawn(async {
            interrupted().await;
            std::process::exit(130);
        });
    };
    server.run(shutdown).await;
    failure_of_load.map_or(Ok(()), Err)
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Ready when the program is asked to end.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
