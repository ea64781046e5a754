//! A logger that writes lines to stderr: this server's, and those of the library.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

/// Write down what is at least of this level.
pub(crate) fn start(level: LevelFilter) {
    // Fails only where there is a logger already.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Spans of `tracing` that begin and end; their fields are in no line of their own.
        !metadata.target().starts_with("tracing::span")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (seconds, millis) = (time.as_secs(), time.subsec_millis());
            // Nobody can be told of an error here.
            let line = format!("{seconds}.{millis:03} {:5} {}\n", record.level(), record.args());
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
