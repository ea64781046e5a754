//! A host program that rounds differently, flushes subnormal numbers or unmasks exceptions gets the same answers, from
//! loading to sampling. Each state is tested in its own process, which an exception would end.
#![cfg(all(feature = "cpu", target_arch = "x86_64"))]

mod common;

use std::process::Command;

use qwen::{GenerateOptions, Precision};

/// The state to try, as MXCSR.
const STATE: &str = "QWEN_TEST_MXCSR";

/// Rounding up, down and to zero; subnormal numbers flushed; every exception unmasked; all of it.
const STATES: [u32; 6] = [0x5f80, 0x3f80, 0x7f80, 0x9fc0, 0x0000, 0xc040];

#[test]
fn a_hosts_state_changes_no_answer() {
    let run = |state: u32| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "answers_in_the_state_of_its_environment", "--nocapture", "--test-threads=1"])
            .env(STATE, state.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "MXCSR {state:#06x}: {}\n{text}", child.status);
        text.lines().filter(|line| line.contains("answer")).map(String::from).collect::<Vec<_>>()
    };
    let plain = run(0x1f80);
    assert!(!plain.is_empty());
    for state in STATES {
        assert_eq!(run(state), plain, "MXCSR {state:#06x}");
    }
}

/// The test that the children run; it does nothing without the variable.
#[test]
fn answers_in_the_state_of_its_environment() {
    let Ok(state) = std::env::var(STATE) else { return };
    let state: u32 = state.parse().unwrap();
    for precision in [Precision::Exact, Precision::Fast] {
        let options = common::options().precision(precision);
        let drawn = GenerateOptions::new().temperature(0.9).top_p(0.95).seed(7).max_new_tokens(24);
        let ids: Vec<u32> = (40..80).collect();
        // Only calls of the library here: the state is meant for them.
        let before = swap_mxcsr(state);
        let engine = options.load(common::demo());
        let answer = engine.as_ref().map(|engine| {
            let stream = engine.generate_ids(ids.as_slice(), &drawn);
            let tokens = stream.and_then(|stream| stream.collect::<qwen::Result<Vec<u32>>>());
            let text = engine.chat().options(drawn.clone()).send("Hello!").and_then(|reply| reply.text());
            (tokens, text, engine.logits(&ids))
        });
        let after = swap_mxcsr(before);
        assert_eq!(after & !0x3f, state & !0x3f, "the host's state was not restored");
        let (tokens, text, logits) = answer.unwrap();
        let bits =
            logits.unwrap().iter().fold(0u64, |hash, v| (hash ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3));
        println!("answer {precision:?}: {:?} {:?} {bits:016x}", tokens.unwrap(), text.unwrap());
    }
}

/// Set the floating-point state of this thread and return the previous one.
fn swap_mxcsr(new: u32) -> u32 {
    let mut old = 0u32;
    // SAFETY: each touches four bytes at the address given; the state is the subject of the test.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut old, options(nostack));
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const new, options(nostack));
    }
    old
}
