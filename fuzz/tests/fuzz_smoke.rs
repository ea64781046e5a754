//! Runs every target on the seeds and on mutations of them, on a stable toolchain and in bounded time.
//!
//! `FUZZ_SECONDS` replaces the fixed number of inputs by a time per target, `FUZZ_SEED` selects other inputs,
//! `FUZZ_TARGET` one target.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use qwen_fuzz::mutate::Mutator;
use qwen_fuzz::targets::ALL;

const INPUTS: u64 = 100_000;
/// Targets that load a tokenizer compile its pattern, and few inputs are refused before that.
const INPUTS_OF_VOCABULARIES: u64 = 10_000;
/// One that writes a file takes a tenth of a millisecond, one that loads a model takes milliseconds.
const INPUTS_OF_FILES: u64 = 20_000;
const INPUTS_OF_FOLDERS: u64 = 500;
/// One that is restored answers.
const INPUTS_OF_CONVERSATIONS: u64 = 2_000;
/// One that is compiled takes a millisecond.
const INPUTS_OF_GRAMMARS: u64 = 2_000;

#[test]
fn no_target_panics() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let time = number("FUZZ_SECONDS").map(Duration::from_secs);
    let only = std::env::var("FUZZ_TARGET").ok();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, target) in ALL.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let seeds: Vec<Vec<u8>> = fs::read_dir(package.join("seeds").join(name))
            .expect("a folder of seeds")
            .map(|entry| fs::read(entry.expect("an entry").path()).expect("a seed"))
            .collect();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| target(seed));

        let mut mutator = Mutator::new(seed, seeds);
        let start = Instant::now();
        let mut count = 0;
        let inputs = match *name {
            "gguf_vocabulary" => INPUTS_OF_VOCABULARIES,
            "folder" => INPUTS_OF_FOLDERS,
            "snapshot" => INPUTS_OF_CONVERSATIONS,
            "grammar" => INPUTS_OF_GRAMMARS,
            "gguf_tensors" | "packed" => INPUTS_OF_FILES,
            _ => INPUTS,
        };
        while time.map_or(count < inputs, |time| start.elapsed() < time) {
            let input = mutator.input();
            if catch_unwind(|| target(&input)).is_err() {
                let artifact = package.join("artifacts").join(format!("{name}-{seed}-{count}"));
                fs::create_dir_all(artifact.with_file_name("")).expect("a folder for the finding");
                fs::write(&artifact, &input).expect("the finding is kept");
                panic!("{name}: input {count} of seed {seed} panicked; it is in {}", artifact.display());
            }
            count += 1;
        }
        println!("{name}: {count} inputs of seed {seed} in {:.1} s", start.elapsed().as_secs_f64());
    }
}
