//! An engine without work sleeps. The only test in its program, since it examines the threads of the whole process.
#![cfg(feature = "cpu")]

mod common;

use std::time::Duration;

use common::{Folder, SMALL, options, write_checkpoint};
use qwen::{Engine, GenerateOptions};

fn answer(engine: &Engine) {
    let options = GenerateOptions::new().max_new_tokens(24).ignore_eos(true);
    let tokens = engine.generate_ids([1, 2, 3], &options).unwrap();
    assert_eq!(tokens.map(Result::unwrap).count(), 24);
}

#[test]
fn an_idle_engine_uses_no_processor() {
    let folder = Folder::new("idle");
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let engine = options().context(512).load(&folder.0).unwrap();
    answer(&engine);
    let Some(ticks) = thread_ticks() else { return eprintln!("skipped: no /proc to read thread times from") };
    // Not waiting for anything: time has to pass in which nothing may happen.
    std::thread::sleep(Duration::from_millis(500));
    let used = thread_ticks().unwrap() - ticks;
    assert!(used <= 2, "{used} ticks of 10 ms in half a second");
    answer(&engine);
}

/// Processor time of this process's engine and worker threads, in clock ticks.
fn thread_ticks() -> Option<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir("/proc/self/task").ok()? {
        let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        if name.starts_with("qwen") {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            total += fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        }
    }
    Some(total)
}
