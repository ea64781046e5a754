//! Whatever floating-point state a host program has set: the same bits, and its state is restored.
//!
//! Each state is tested in a separate process, since an unmasked exception ends the process.
#![cfg(all(target_arch = "x86_64", not(miri)))]

use std::process::Command;
use std::sync::Arc;

use qwen_backend_cpu::{CpuBackend, CpuBuffer, Isa};
use qwen_core::backend::{Linear, MatrixPart, WeightRole, WeightView};
use qwen_core::{Backend, Encoding, Precision};

mod common;
use common::{Host, Small, mxcsr, options, set_mxcsr, values};

/// The state to try, as MXCSR.
const STATE: &str = "QWEN_TEST_MXCSR";

/// Rounding up, down and to zero; subnormal numbers flushed; every exception unmasked; all of it.
const STATES: [u32; 6] = [0x5f80, 0x3f80, 0x7f80, 0x9fc0, 0x0000, 0xc040];

#[test]
fn a_hosts_state_changes_no_bits_and_is_left_as_it_was() {
    let run = |state: u32| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "computes_in_the_state_of_its_environment", "--nocapture", "--test-threads=1"])
            .env(STATE, state.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "MXCSR {state:#06x}: {}\n{text}", child.status);
        let digests: Vec<String> = text.lines().filter(|line| line.contains("digest")).map(String::from).collect();
        assert!(!digests.is_empty(), "MXCSR {state:#06x}: no results\n{text}");
        digests
    };
    let plain = run(0x1f80);
    for state in STATES {
        assert_eq!(run(state), plain, "MXCSR {state:#06x}");
    }
}

/// The test that the children run; it does nothing without the variable.
#[test]
fn computes_in_the_state_of_its_environment() {
    let Ok(state) = std::env::var(STATE) else { return };
    let host = Host(Some(state.parse().unwrap()));
    for precision in [Precision::Exact, Precision::Fast] {
        for isa in Isa::available() {
            let options = options().precision(precision).isa(isa);
            // Its own threads inherit the state of the loading thread; those of a pool get it from the host.
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(2)
                .start_handler(move |_| host.0.into_iter().for_each(set_mxcsr))
                .build()
                .unwrap();
            let pool = Arc::new(pool);
            for (name, options) in [
                ("one thread", options.clone().threads(1)),
                ("its own threads", options.clone().threads(3)),
                ("a host's pool", options.clone().pool(pool.clone())),
            ] {
                let mut small = Small::of_host(options.clone(), host);
                let mut values = small.prompt(130);
                values.extend(small.token(130));
                println!("digest {precision:?} {isa} {name}: layer {:016x}", digest(&values));
                println!("digest {precision:?} {isa} {name}: subnormal {:016x}", digest(&subnormal(options, host)));
            }
            // The pool's threads still have the host's state.
            let states = pool.broadcast(|_| mxcsr() & !0x3f);
            assert!(states.iter().all(|state| Some(*state) == host.0.map(|state| state & !0x3f)), "{states:x?}");
        }
    }
}

/// A product with subnormal weights, stored in each encoding and in several at once, whose results are subnormal, too.
fn subnormal(options: qwen_backend_cpu::CpuOptions, host: Host) -> Vec<f32> {
    const ROWS: usize = 48;
    const COLS: usize = 40;
    let mut b = host.call(|| CpuBackend::new(options)).unwrap();
    let x = values(1, 2 * COLS);
    let bf16: Vec<u8> = (0..ROWS * COLS).flat_map(|i| (1 + i as u16 % 120).to_le_bytes()).collect();
    let f16: Vec<u8> = (0..ROWS * COLS).flat_map(|i| (1 + i as u16 % 1000).to_le_bytes()).collect();
    let f32: Vec<u8> = (0..ROWS * COLS).flat_map(|i| (1 + i as u32 * 4001).to_le_bytes()).collect();
    let part = |encoding, data| MatrixPart::whole(encoding, ROWS, COLS, data).unwrap();
    let parts = [part(Encoding::Bf16, &bf16), part(Encoding::F16, &f16), part(Encoding::F32, &f32)];
    let mut all = Vec::new();
    for parts in [&parts[..1], &parts[1..2], &parts[2..], &parts[..]] {
        let view = WeightView { name: "subnormal", role: WeightRole::Linear, parts };
        let w = host.call(|| b.load(&view)).unwrap();
        let rows = view.rows();
        let mut buffer = |values: &[f32]| -> CpuBuffer {
            let mut buffer = b.alloc(values.len()).unwrap();
            b.write(&mut buffer, values).unwrap();
            buffer
        };
        let (x, mut out) = (buffer(&x), buffer(&vec![0.0; 2 * rows]));
        host.call(|| b.linear(Linear { x: &x, w: &w, bias: None, out: &mut out, rows: 2 })).unwrap();
        let mut got = vec![0.0; 2 * rows];
        b.read(&out, &mut got).unwrap();
        all.extend(got);
    }
    assert!(all.iter().any(|v| v.is_subnormal()), "nothing subnormal was computed");
    all
}

/// FNV-1a over the bits.
fn digest(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash, v| (hash ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3))
}
