//! The entry points that are fuzzed, as plain functions of bytes.
//!
//! Each takes whatever bytes there are, feeds them to a parser, and checks what the parser promises of the values that it
//! accepts. A broken promise panics. libFuzzer calls them through `fuzz_targets/`, on stable [`mutate`] does.

pub mod folder;
pub mod gguf;
pub mod mutate;
pub mod packed;
pub mod targets;

/// Make a binary of a target: libFuzzer's under cargo-fuzz, else one that runs the target on the files named by its
/// arguments, to look at a finding without either.
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
