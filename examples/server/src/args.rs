//! The command line, and the file that may hold the same options.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use qwen::{Device, Encoding, EngineOptions, Precision, Ranks};
use qwen_server::{ApiKey, Settings};
use serde::Deserialize;

/// What `--help` says at its end.
const MORE: &str = "\
The options may also stand in a file of JSON (--config), under their names without dashes at the front:
  {\"model\": \"Qwen2.5-7B-Instruct\", \"port\": 8080, \"batch\": 8, \"api-key-file\": \"keys.txt\"}
Options of the command line win.

Examples:
  qwen-server --model Qwen2.5-7B-Instruct
  qwen-server --model qwen2.5-7b-instruct-q4_k_m.gguf --host 0.0.0.0 --api-key-file keys.txt --batch 8
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'";

/// Serve a Qwen2.5 model over HTTP, by the protocol of OpenAI's API.
///
/// Prints `listening on http://ADDRESS` on stdout at once; /health says when the model is loaded. Ends when it is
/// interrupted, after the answers that run; a second time at once.
#[derive(Debug, Default, Parser, Deserialize)]
#[command(name = "qwen-server", version, after_long_help = MORE)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Args {
    /// A folder with a checkpoint, or a GGUF file [default: the demo model of this repository].
    #[arg(short, long, value_name = "PATH", help_heading = "Model")]
    model: Option<String>,
    /// A name under which clients ask for the model; may be repeated [default: the end of its path].
    #[arg(long = "model-name", value_name = "NAME", help_heading = "Model")]
    model_name: Vec<String>,
    /// A low-rank adapter that clients ask for as a model: a folder as PEFT saves it, by the name of its folder or by one
    /// of its own; may be repeated.
    #[arg(long = "adapter", value_name = "[NAME=]PATH", help_heading = "Model")]
    adapter: Vec<String>,
    /// Where to run: auto, cpu, cuda, cuda:ORDINAL, wgpu, wgpu:INDEX, wgpu:NAME, or split:DEVICE=LAYERS,DEVICE
    /// [default: auto].
    #[arg(long, help_heading = "Model")]
    device: Option<Device>,
    /// Tokens of a prompt and its answer at most [default: the model's own context, as far as memory goes].
    #[arg(long, value_name = "TOKENS", help_heading = "Model")]
    context: Option<usize>,
    /// For how many answers of the whole context there is memory; more run together while they are short [default: 4].
    #[arg(long, value_name = "ANSWERS", help_heading = "Model")]
    batch: Option<usize>,
    /// Compute with f32 activations and K/V.
    #[arg(long, help_heading = "Model")]
    exact: bool,
    /// How K/V is stored: f32, f16 or q8_0 [default: as the precision has it].
    #[arg(long, value_name = "ENCODING", help_heading = "Model")]
    kv: Option<Encoding>,
    /// Stretch the context by up to this factor (YaRN), for requests that need it alone.
    #[arg(long, value_name = "FACTOR", help_heading = "Model")]
    auto_yarn: Option<f64>,
    /// Threads that compute [default: one for each physical core].
    #[arg(long, help_heading = "Model")]
    threads: Option<usize>,
    /// A small model of the same family that guesses, for requests with "speculation": "draft".
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    draft: Option<String>,

    /// Where a launcher has started several processes, let each hold some of the layers instead of a part of every layer.
    #[arg(long, help_heading = "Model")]
    pipeline_parallel: bool,
    /// Connect the processes of a launcher by its MPI library.
    #[arg(long, help_heading = "Model")]
    mpi: bool,

    /// The address to listen at [default: 127.0.0.1].
    #[arg(long, help_heading = "Network")]
    host: Option<String>,
    /// The port to listen at; 0 takes a free one [default: 8080].
    #[arg(long, help_heading = "Network")]
    port: Option<u16>,
    /// A key that clients have to send; may be repeated. Others on this machine can read it: rather use --api-key-file.
    #[arg(long = "api-key", value_name = "KEY", help_heading = "Network")]
    api_key: Vec<String>,
    /// A file with such keys, one a line.
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    api_key_file: Option<PathBuf>,
    /// A further name under which this server is reached, where it listens on loopback behind a proxy; may be repeated.
    #[arg(long = "allowed-host", value_name = "NAME", help_heading = "Network")]
    allowed_host: Vec<String>,
    /// The origin of pages of other sites that may use this server, such as https://example.com, or *; may be repeated.
    #[arg(long = "cors-origin", value_name = "ORIGIN", help_heading = "Network")]
    cors_origin: Vec<String>,

    /// Requests that may wait for room; further ones are refused [default: 256].
    #[arg(long, value_name = "REQUESTS", help_heading = "Limits")]
    max_queue: Option<usize>,
    /// Refuse requests while the prompts that wait would take longer than this [default: 60].
    #[arg(long, value_name = "SECONDS", help_heading = "Limits")]
    max_first_token_seconds: Option<f64>,
    /// An answer may take this long from its request on [default: 600].
    #[arg(long, value_name = "SECONDS", help_heading = "Limits")]
    request_timeout_seconds: Option<f64>,
    /// A request's head and body may take this long to arrive, and connections stay open unused [default: 30].
    #[arg(long, value_name = "SECONDS", help_heading = "Limits")]
    read_timeout_seconds: Option<f64>,
    /// A client that reads nothing for this long loses its connection [default: 30].
    #[arg(long, value_name = "SECONDS", help_heading = "Limits")]
    write_timeout_seconds: Option<f64>,
    /// What runs may go on for this long when the server is told to end [default: 30].
    #[arg(long, value_name = "SECONDS", help_heading = "Limits")]
    shutdown_timeout_seconds: Option<f64>,
    /// Bytes of a request's body at most [default: 8388608].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    max_body_bytes: Option<usize>,
    /// Open connections at most [default: 1024].
    #[arg(long, value_name = "CONNECTIONS", help_heading = "Limits")]
    max_connections: Option<usize>,

    /// Write prompts and answers to the log.
    #[arg(long, help_heading = "Log")]
    log_prompts: bool,
    /// How much to log, on stderr: off, error, warn, info, debug or trace [default: info].
    #[arg(long, value_name = "LEVEL", help_heading = "Log")]
    log: Option<log::LevelFilter>,
    /// A file of JSON with these options.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

impl Args {
    /// The options of the command line, and those of the file that it names.
    ///
    /// # Errors
    /// If the file cannot be read, or has other options.
    pub(crate) fn read() -> Result<Self, String> {
        let args = Args::parse();
        match args.config.clone() {
            Some(path) => args.or_of_file(&path),
            None => Ok(args),
        }
    }

    fn or_of_file(mut self, path: &Path) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let file: Args = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        macro_rules! or {
            ($($name:ident)*) => { $( self.$name = self.$name.or(file.$name); )* };
        }
        or!(model device context batch kv auto_yarn threads draft host port api_key_file max_queue max_first_token_seconds
            request_timeout_seconds read_timeout_seconds write_timeout_seconds shutdown_timeout_seconds max_body_bytes
            max_connections log);
        for (given, of_file) in [
            (&mut self.model_name, file.model_name),
            (&mut self.adapter, file.adapter),
            (&mut self.api_key, file.api_key),
            (&mut self.allowed_host, file.allowed_host),
            (&mut self.cors_origin, file.cors_origin),
        ] {
            if given.is_empty() {
                *given = of_file;
            }
        }
        self.pipeline_parallel |= file.pipeline_parallel;
        self.mpi |= file.mpi;
        self.exact |= file.exact;
        self.log_prompts |= file.log_prompts;
        Ok(self)
    }

    /// The checkpoint.
    pub(crate) fn model(&self) -> String {
        let demo = || concat!(env!("CARGO_MANIFEST_DIR"), "/../demo-model").to_owned();
        self.model.clone().unwrap_or_else(demo)
    }

    /// The adapters: their names, and their folders.
    pub(crate) fn adapters(&self) -> Vec<(String, String)> {
        let named = |adapter: &String| match adapter.split_once('=') {
            Some((name, path)) => (name.to_owned(), path.to_owned()),
            None => (name_of(adapter), adapter.clone()),
        };
        self.adapter.iter().map(named).collect()
    }

    /// Where to listen.
    pub(crate) fn address(&self) -> (String, u16) {
        (self.host.clone().unwrap_or_else(|| "127.0.0.1".into()), self.port.unwrap_or(8080))
    }

    pub(crate) fn log_level(&self) -> log::LevelFilter {
        self.log.unwrap_or(log::LevelFilter::Info)
    }

    /// The processes that share the model: this one alone, where no launcher has started it.
    ///
    /// # Errors
    /// For what a launcher says that cannot be, and in a build without MPI.
    pub(crate) fn ranks(&self) -> Result<Ranks, String> {
        #[cfg(feature = "mpi")]
        let of_mpi = Ranks::mpi;
        #[cfg(not(feature = "mpi"))]
        let of_mpi = || Err("this program was built without MPI: build it with `--features mpi`");
        let ranks = match self.mpi {
            true => of_mpi().map_err(|error| error.to_string())?,
            false => Ranks::from_env().map_err(|error| error.to_string())?,
        };
        Ok(if self.pipeline_parallel { ranks.pipeline_parallel() } else { ranks })
    }

    pub(crate) fn engine_options(&self, ranks: Ranks) -> EngineOptions {
        let mut options = EngineOptions::new().device(self.device.clone().unwrap_or(Device::Auto)).ranks(ranks);
        options = options.batch(self.batch.unwrap_or(4)).max_waiting(self.max_queue.unwrap_or(256));
        if self.exact {
            options = options.precision(Precision::Exact);
        }
        if let Some(encoding) = self.kv {
            options = options.kv_encoding(encoding);
        }
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        if let Some(context) = self.context {
            options = options.context(context);
        }
        if let Some(factor) = self.auto_yarn {
            options = options.auto_yarn(factor);
        }
        if let Some(draft) = &self.draft {
            options = options.draft(draft.as_str());
        }
        options
    }

    /// # Errors
    /// If the keys cannot be read, or there are none in their file, and for times that are none.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let mut settings = Settings::default();
        settings.model_names = self.model_name.clone();
        if settings.model_names.is_empty() {
            settings.model_names.push(name_of(&self.model()));
        }
        settings.api_keys = self.api_key.iter().map(|key| ApiKey::new(key)).collect();
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            settings.api_keys.extend(keys.map(ApiKey::new));
            if settings.api_keys.is_empty() {
                // Without this check everybody would be let in.
                return Err(format!("{}: there is no key in it", path.display()));
            }
        }
        if self.api_key.iter().any(|key| key.trim().is_empty()) {
            return Err("an empty --api-key would let everybody in".into());
        }
        settings.allowed_hosts = self.allowed_host.clone();
        settings.cors_origins = self.cors_origin.clone();
        for (name, seconds, time) in [
            ("max-first-token-seconds", self.max_first_token_seconds, &mut settings.max_first_token_time),
            ("request-timeout-seconds", self.request_timeout_seconds, &mut settings.request_timeout),
            ("read-timeout-seconds", self.read_timeout_seconds, &mut settings.read_timeout),
            ("write-timeout-seconds", self.write_timeout_seconds, &mut settings.write_timeout),
            ("shutdown-timeout-seconds", self.shutdown_timeout_seconds, &mut settings.shutdown_timeout),
        ] {
            if let Some(seconds) = seconds {
                *time = Duration::try_from_secs_f64(seconds).map_err(|error| format!("--{name}: {error}"))?;
            }
        }
        settings.max_body_bytes = self.max_body_bytes.unwrap_or(settings.max_body_bytes);
        settings.max_connections = self.max_connections.unwrap_or(settings.max_connections);
        settings.log_prompts = self.log_prompts;
        Ok(settings)
    }
}

/// The name of a checkpoint: the end of its path.
fn name_of(model: &str) -> String {
    let name = Path::new(model).file_name().and_then(|name| name.to_str()).unwrap_or("qwen");
    name.strip_suffix(".gguf").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn models_are_named_by_the_ends_of_their_paths() {
        assert_eq!(name_of("path/to/Qwen2.5-7B-Instruct/"), "Qwen2.5-7B-Instruct");
        assert_eq!(name_of("Qwen/Qwen2.5-0.5B-Instruct"), "Qwen2.5-0.5B-Instruct");
        assert_eq!(name_of("qwen2.5-7b-instruct-q4_k_m.gguf"), "qwen2.5-7b-instruct-q4_k_m");
        assert_eq!(name_of(".."), "qwen");
    }

    #[test]
    fn a_file_has_the_same_options_and_flags_win() {
        let path = std::env::temp_dir().join(format!("qwen-server-{}.json", std::process::id()));
        std::fs::write(&path, r#"{"port": 1, "host": "::1", "model-name": ["a", "b"], "log-prompts": true}"#).unwrap();
        let args = Args::parse_from(["qwen-server", "--port", "2"]).or_of_file(&path).unwrap();
        assert_eq!(args.address(), ("::1".to_owned(), 2));
        let settings = args.settings().unwrap();
        assert_eq!(settings.model_names, ["a", "b"]);
        assert!(settings.log_prompts);
        std::fs::write(&path, r#"{"prot": 1}"#).unwrap();
        let error = Args::default().or_of_file(&path).unwrap_err();
        assert!(error.contains("prot"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_would_let_everybody_in_is_refused() {
        let args = |options: &[&str]| Args::parse_from(["qwen-server"].iter().chain(options));
        assert!(args(&["--api-key", " "]).settings().is_err());
        let path = std::env::temp_dir().join(format!("qwen-server-keys-{}", std::process::id()));
        std::fs::write(&path, "# nothing\n\n").unwrap();
        let path_text = path.to_str().unwrap();
        assert!(args(&["--api-key-file", path_text]).settings().is_err());
        std::fs::write(&path, "# ours\none\ntwo\n").unwrap();
        assert_eq!(args(&["--api-key-file", path_text]).settings().unwrap().api_keys.len(), 2);
        std::fs::remove_file(&path).unwrap();
        assert!(args(&["--request-timeout-seconds=-1"]).settings().is_err());
    }
}
