//! The entry points that are fuzzed, as plain functions of bytes.
//!
//! Each feeds arbitrary bytes to a parser, and checks what the parser guarantees about the values that it accepts. A
//! violation panics. libFuzzer calls them through `fuzz_targets/`; on stable, [`mutate`] does.

pub mod folder;
pub mod gguf;
pub mod grammar;
pub mod mutate;
pub mod packed;
pub mod snapshot;
pub mod targets;

/// Define the binary of a target: under cargo-fuzz libFuzzer's, otherwise one that runs the target on the files given
/// as arguments, to reproduce a finding.
#[macro_export]
macro_rules! fuzz {
    ($run:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $run(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for file in std::env::args_os().skip(1) {
                $run(&std::fs::read(&file)?);
                println!("{}: no complaint", file.display());
            }
            Ok(())
        }
    };
}
