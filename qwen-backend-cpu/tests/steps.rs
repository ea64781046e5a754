//! What the backend guarantees beyond the arithmetic: the same bits with any threads and chunks, cancelling, errors.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use qwen_backend_cpu::{CpuBackend, CpuBuffer, CpuIndices, Isa};
use qwen_core::backend::{
    Add, Argmax, GatherRows, HeadLayout, Interrupt, KvSpec, PagedAttention, RmsNorm, StepInputs, StepKey, StoreKv,
};
use qwen_core::{Backend, Encoding, Error, Precision};

mod common;
use common::{CONTEXT, HIDDEN, Small, options, values};

const PROMPT: usize = if cfg!(miri) { 300 } else { 600 };

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
    // Miri is some thousand times slower.
    let (prompt, rounds) = if cfg!(miri) { (24, 4) } else { (PROMPT, 20) };
    let want = small.prompt(40);
    small.inputs(0, 40);
    small.interrupt.raise();
    assert!(matches!(small.try_run(40), Err(Error::Cancelled)));
    small.interrupt.clear();
    assert_eq!(small.prompt(40), want);
    // From another thread, at any moment.
    for delay in 0..rounds {
        small.inputs(0, prompt);
        let interrupt = small.interrupt.clone();
        let raiser = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(100 * delay));
            interrupt.raise();
        });
        let result = small.try_run(prompt);
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
fn a_busy_pool_does_not_hold_a_load_up() {
    let want = Small::new(options().threads(1)).prompt(50);
    // All of the pool's threads blocked by the host, and one of them loading while the other is blocked.
    for from_within in [false, true] {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        let (release, wait) = channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        for _ in 0..if from_within { 1 } else { 2 } {
            let wait = wait.clone();
            pool.spawn(move || {
                let _ = wait.lock().unwrap().recv();
            });
        }
        let (done, loaded) = channel();
        let options = options().pool(pool.clone());
        let load = move || drop(done.send(Small::new(options)));
        match from_within {
            true => pool.spawn(load),
            false => drop(std::thread::spawn(load)),
        }
        let small = loaded.recv_timeout(Duration::from_secs(120));
        drop(release);
        assert_eq!(small.expect("the load waits for the pool").prompt(50), want);
    }
}

#[test]
fn options_are_checked() {
    assert!(matches!("sse9".parse::<Isa>(), Err(Error::InvalidArgument { .. })));
    for isa in Isa::ALL {
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

/// Rows from which [`Backend::argmax`] writes `indices`.
fn rows_whose_argmax_is(b: &mut CpuBackend, indices: &[u32], width: usize) -> CpuBuffer {
    let mut x = vec![0.0; indices.len() * width];
    for (row, index) in x.chunks_exact_mut(width).zip(indices) {
        row[*index as usize] = 1.0;
    }
    let mut buffer = b.alloc(x.len()).unwrap();
    b.write(&mut buffer, &x).unwrap();
    buffer
}

/// An operation reads indices that an earlier one of the same step writes: slots, lengths and tables are checked on the
/// host, so they must have been written by then. Under Miri a premature check is a data race.
#[test]
fn indices_written_in_a_step_are_read_after_it() {
    const ROWS: usize = 3;
    let heads = HeadLayout { num_attention_heads: 1, num_key_value_heads: 1, head_dim: 16 };
    let spec = KvSpec {
        key_encodings: vec![Encoding::F32],
        value_encoding: Encoding::F32,
        num_blocks: 4,
        block_size: 16,
        num_key_value_heads: 1,
        head_dim: 16,
    };
    for threads in [1, 3] {
        let mut results = Vec::new();
        for in_a_step in [false, true] {
            let mut b = CpuBackend::new(options().threads(threads)).unwrap();
            let mut kv = b.kv(&spec).unwrap();
            let buffer = |b: &mut CpuBackend, seed, len| {
                let mut buffer = b.alloc(len).unwrap();
                b.write(&mut buffer, &values(seed, len)).unwrap();
                buffer
            };
            let qkv = buffer(&mut b, 1, ROWS * heads.qkv_size());
            let (mut gathered, mut out) = (buffer(&mut b, 2, ROWS * 16), buffer(&mut b, 3, ROWS * 16));
            let slots = rows_whose_argmax_is(&mut b, &[33, 20, 21], 64);
            let cu = rows_whose_argmax_is(&mut b, &[0, 1, 3], 8);
            let context = rows_whose_argmax_is(&mut b, &[2, 6], 64);
            let tables = rows_whose_argmax_is(&mut b, &[2, 1], 4);
            let mut indices = |len| b.alloc_indices(len).unwrap();
            let mut inputs = StepInputs::<CpuBackend> {
                input_ids: indices(ROWS),
                slot_mapping: indices(ROWS),
                cu_seqlens_q: indices(3),
                context_lens: indices(2),
                block_tables: indices(2),
                logits_indices: indices(1),
                max_blocks_per_seq: 1,
                cos_sin: b.alloc(ROWS * 16).unwrap(),
            };
            let key = StepKey {
                num_tokens: ROWS,
                num_seqs: 2,
                num_logits: 1,
                max_seqlen_q: 2,
                hidden: false,
                adapters: false,
            };
            let argmax = |b: &mut CpuBackend, x: &CpuBuffer, out: &mut CpuIndices, width, rows| {
                b.argmax(Argmax { x, out, width, valid: width, rows })
            };
            let mut body = |b: &mut CpuBackend| {
                // The old contents of the buffers are out of range, or describe no sequence.
                argmax(b, &slots, &mut inputs.slot_mapping, 64, ROWS)?;
                let (slot_mapping, kv) = (&inputs.slot_mapping, &mut kv);
                b.store_kv(StoreKv { qkv: &qkv, slot_mapping, kv, layer: 0, heads, rows: ROWS })?;
                argmax(b, &cu, &mut inputs.cu_seqlens_q, 8, 3)?;
                argmax(b, &context, &mut inputs.context_lens, 64, 2)?;
                argmax(b, &tables, &mut inputs.block_tables, 4, 2)?;
                let (inputs_, out) = (&inputs, &mut out);
                b.paged_attention(PagedAttention { qkv: &qkv, kv, layer: 0, heads, inputs: inputs_, out, key })?;
                argmax(b, &cu, &mut inputs.input_ids, 8, ROWS)?;
                let (indices, out) = (&inputs.input_ids, &mut gathered);
                b.gather_rows(GatherRows { x: &qkv, indices, out, width: 16, rows: ROWS })?;
                // The store after the slots changed again.
                argmax(b, &cu, &mut inputs.slot_mapping, 8, ROWS)?;
                let slot_mapping = &inputs.slot_mapping;
                b.store_kv(StoreKv { qkv: &qkv, slot_mapping, kv, layer: 0, heads, rows: ROWS })
            };
            match in_a_step {
                true => b.step(key, &Interrupt::default(), &mut body).unwrap(),
                false => body(&mut b).unwrap(),
            }
            let mut got = vec![0.0; 2 * ROWS * 16];
            let (low, high) = got.split_at_mut(ROWS * 16);
            b.read(&out, low).unwrap();
            b.read(&gathered, high).unwrap();
            results.push(got);
        }
        assert_eq!(results[0], results[1], "{threads} threads");
        assert!(results[0].iter().any(|v| *v != 0.0));
    }
}

#[test]
fn sequences_that_share_tokens_and_stores_of_nothing_are_refused() {
    let mut small = Small::new(options().threads(2));
    small.inputs(0, 8);
    small.write_cu_seqlens(&[4, 0]);
    let error = small.try_run(8).unwrap_err().to_string();
    assert!(error.contains("begin at 4"), "{error}");
    small.prompt(8);
}

#[test]
fn a_step_within_a_step_is_refused_and_a_panic_leaves_none_open() {
    let mut b = CpuBackend::new(options().threads(2)).unwrap();
    let key = StepKey { num_tokens: 1, num_seqs: 1, num_logits: 1, max_seqlen_q: 1, hidden: false, adapters: false };
    let interrupt = Interrupt::default();
    let inner = b.step(key, &interrupt, &mut |b| b.step(key, &interrupt, &mut |_| Ok(())));
    assert!(inner.unwrap_err().to_string().contains("a step within a step"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        b.step(key, &interrupt, &mut |_| std::panic::panic_any("on purpose"))
    }));
    assert!(panicked.is_err());
    // Outside of a step operations run immediately.
    let (mut x, mut y) = (b.alloc(1).unwrap(), b.alloc(1).unwrap());
    b.write(&mut y, &[3.0]).unwrap();
    b.add(Add { x: &mut x, y: &y, len: 1 }).unwrap();
    b.step(key, &interrupt, &mut |b| b.add(Add { x: &mut x, y: &y, len: 1 })).unwrap();
    let mut got = [0.0];
    b.read(&x, &mut got).unwrap();
    assert_eq!(got, [6.0]);
}

#[test]
fn one_buffer_may_be_read_as_two_operands() {
    let mut b = CpuBackend::new(options().threads(3)).unwrap();
    let mut x = b.alloc(4 * 16).unwrap();
    b.write(&mut x, &values(5, 4 * 16)).unwrap();
    let mut weight = b.alloc(16).unwrap();
    b.write(&mut weight, &values(5, 16)).unwrap();
    let mut results = Vec::new();
    for weight in [&weight, &x] {
        let mut out = b.alloc(4 * 16).unwrap();
        b.rms_norm(RmsNorm { x: &x, weight, eps: 1e-6, hidden_size: 16, out: &mut out, rows: 4 }).unwrap();
        let mut got = vec![0.0; 4 * 16];
        b.read(&out, &mut got).unwrap();
        results.push(got);
    }
    assert_eq!(results[0], results[1]);
}
