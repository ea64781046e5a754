//! The events that a program's logger receives. A process can set its logger only once, so this is a separate test
//! program.
#![cfg(feature = "log")]

mod common;

use std::sync::Mutex;

use common::{Folder, SMALL, options, write_checkpoint};
use log::{LevelFilter, Log, Metadata, Record};

static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Keeper;

impl Log for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("qwen")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            EVENTS.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_logger_hears_what_was_loaded_what_was_odd_and_what_was_cut() {
    log::set_logger(&Keeper).unwrap();
    log::set_max_level(LevelFilter::Debug);
    let folder = Folder::new("log");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    std::fs::write(folder.0.join("generation_config.json"), r#"{"num_beams": 4}"#).unwrap();
    let plan = |context| qwen::plan(&folder.0, &options().context(context)).unwrap();
    let engine = options().memory_budget(plan(128).total_bytes).load(&folder.0).unwrap();
    let events = EVENTS.lock().unwrap().clone();
    let has = |words: &[&str]| events.iter().any(|event| words.iter().all(|word| event.contains(word)));
    assert_eq!(engine.warnings().len(), 1);
    assert!(has(&["WARN", "num_beams"]), "{events:?}");
    assert!(has(&["WARN", "context", "from 4096 to 128"]), "{events:?}");
    assert!(has(&["INFO", "loaded", engine.device_name(), engine.selection_reason(), "context 128"]), "{events:?}");
}
