//! What the backend promises beyond the arithmetic: the same bits with any threads and chunks, cancelling, errors.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use qwen_backend_cpu::{CpuBackend, Isa};
use qwen_core::backend::{Add, RmsNorm};
use qwen_core::{Backend, Error, Precision};

mod common;
use common::{CONTEXT, HIDDEN, Small, options};

const PROMPT: usize = 600;

#[test]
fn any_threads_and_chunks_give_the_same_bits() {
    for precision in [Precision::Exact, Precision::Fast] {
        for isa in Isa::available() {
            let options = options().precision(precision).isa(isa);
            let whole = Small::new(options.clone().threads(1)).prompt(PROMPT);
            assert!(whole.iter().all(|v| v.is_finite()), "{isa}");
            assert_eq!(whole, Small::new(options.clone().threads(2)).prompt(PROMPT), "{isa}: two threads");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            assert_eq!(whole, Small::new(options.clone().pool(Arc::new(pool))).prompt(PROMPT), "{isa}: a host's pool");
            // 250 tokens, then 2, single ones over the end of a span, and the rest.
            let mut small = Small::new(options.threads(2));
            let mut at = 0;
            for n in [250, 2].into_iter().chain([1; 30]).chain([PROMPT - 282]) {
                small.inputs(at, n);
                small.run(n);
                assert_eq!(small.output(n), whole[at * HIDDEN..(at + n) * HIDDEN], "{isa}: {n} tokens at {at}");
                at += n;
            }
        }
    }
}

#[test]
fn what_lies_in_unused_positions_has_no_influence() {
    for precision in [Precision::Exact, Precision::Fast] {
        let options = options().precision(precision).threads(2);
        let clean = Small::new(options.clone()).prompt(263);
        let mut small = Small::new(options);
        small.poison();
        assert_eq!(clean, small.prompt(263));
        assert!(small.token(263).iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_raised_interrupt_cancels_and_the_next_step_runs() {
    let mut small = Small::new(options().threads(2));
    let want = small.prompt(40);
    small.inputs(0, 40);
    small.interrupt.raise();
    assert!(matches!(small.try_run(40), Err(Error::Cancelled)));
    small.interrupt.clear();
    assert_eq!(small.prompt(40), want);
    // From another thread, at any moment.
    for delay in 0..20 {
        small.inputs(0, PROMPT);
        let interrupt = small.interrupt.clone();
        let raiser = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(100 * delay));
            interrupt.raise();
        });
        let result = small.try_run(PROMPT);
        raiser.join().unwrap();
        assert!(matches!(result, Ok(()) | Err(Error::Cancelled)), "{result:?}");
        small.interrupt.clear();
    }
    assert_eq!(small.prompt(40), want);
}

#[test]
fn a_busy_pool_does_not_hold_a_step_up() {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let want = Small::new(options().threads(1)).prompt(50);
    let mut small = Small::new(options().pool(pool.clone()));
    let (release, wait) = channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    for _ in 0..2 {
        let wait = wait.clone();
        pool.spawn(move || {
            let _ = wait.lock().unwrap().recv();
        });
    }
    for _ in 0..20 {
        assert_eq!(small.prompt(50), want);
    }
    drop(release);
    assert_eq!(small.prompt(50), want);
}

#[test]
fn options_are_checked() {
    assert!(matches!("sse9".parse::<Isa>(), Err(Error::InvalidArgument { .. })));
    for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Neon] {
        assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        match CpuBackend::new(options().isa(isa)) {
            Ok(b) => assert!(isa.is_available() && b.isa() == isa && b.info().name.contains(isa.name())),
            Err(e) => assert!(!isa.is_available() && matches!(e, Error::Unsupported { .. }), "{e}"),
        }
    }
    assert!(matches!(CpuBackend::new(options().threads(0)), Err(Error::InvalidArgument { .. })));
    assert!(CpuBackend::new(options()).unwrap().threads() >= 1);
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let mut small = Small::new(options().threads(1));
    let mut b = CpuBackend::new(options().threads(1)).unwrap();
    let (mut x, y) = (b.alloc(8).unwrap(), b.alloc(7).unwrap());
    let error = b.add(Add { x: &mut x, y: &y, len: 8 }).unwrap_err().to_string();
    assert!(error.contains("add") && error.contains('7') && error.contains('8'), "{error}");
    assert!(
        b.rms_norm(RmsNorm { x: &y, weight: &y, eps: 1e-6, out: &mut x, hidden_size: usize::MAX, rows: 2 }).is_err()
    );
    // An array of another backend.
    assert!(small.b.add(Add { x: &mut x, y: &y, len: 1 }).is_err());
    // More tokens than the buffers have.
    small.inputs(0, 4);
    assert!(small.try_run(CONTEXT + 1).is_err());
    small.prompt(4);
}
