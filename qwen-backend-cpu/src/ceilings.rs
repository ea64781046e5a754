//! The measured best rates of this machine, to compare kernels with.
//!
//! Memory is read in large runs, in several streams and with software prefetch; arithmetic runs in registers only. A
//! [`CeilingMeter`] measures in slices as short as the caller likes, so that a bench can alternate them with its work:
//! on a shared machine both then see the same load from other tenants.

use std::array;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use qwen_core::Result;
use qwen_core::ceilings::Ceilings;

use crate::memory::Array;
use crate::simd::{self, Isa, Kernel, LANES, Simd};

/// Bytes read before any is read again: more than the caches hold.
const READ_BYTES: usize = 1 << 30;

/// Bytes that a thread reads between two clock reads.
const CHUNK: usize = 4 << 20;

/// Rounds of arithmetic between two clock reads.
const ROUNDS: u64 = 20_000;

/// Measures ceilings repeatedly.
#[derive(Debug)]
pub struct CeilingMeter {
    threads: usize,
    isa: Isa,
    memory: Array<f32>,
    /// Where reading continues.
    next: AtomicUsize,
}

impl CeilingMeter {
    /// A meter for `threads` threads. Takes a gigabyte of memory.
    ///
    /// # Errors
    /// When that memory is not available.
    pub fn new(threads: usize) -> Result<CeilingMeter> {
        let memory = Array::zeroed(READ_BYTES / 4, 0)?;
        // Pages that were never written are all mapped to one page of zeros. SAFETY: nothing else has access to the
        // memory.
        unsafe { memory.slice_mut(0, memory.len()) }.fill(1.0);
        Ok(CeilingMeter { threads: threads.max(1), isa: Isa::best(), memory, next: AtomicUsize::new(0) })
    }

    /// Measure all ceilings within about `budget`.
    pub fn measure(&self, budget: Duration) -> Ceilings {
        let slice = budget / 6;
        Ceilings {
            memory_bytes_per_second: self.memory(budget / 2),
            f32_flops_per_second: self.f32_flops(slice),
            bf16_flops_per_second: self.bf16_flops(slice),
            int8_ops_per_second: self.int8_ops(slice),
            ..Ceilings::default()
        }
    }

    /// Bytes read from memory per second.
    pub fn memory(&self, budget: Duration) -> f64 {
        let each = budget / 3;
        let read = |streams: usize| {
            self.rate(each, CHUNK as f64, || {
                let start = self.next.fetch_add(CHUNK, Ordering::Relaxed) % READ_BYTES;
                let read = Read { memory: &self.memory, start: start / 4, streams };
                // SAFETY: the memory is only read; the CPU has the instruction set.
                unsafe { simd::run(self.isa, &read, 0, &mut ()) };
            })
        };
        read(1).max(read(2)).max(read(4))
    }

    /// f32 operations per second.
    pub fn f32_flops(&self, budget: Duration) -> f64 {
        let flops = ROUNDS as f64 * 2.0 * (LANES * chains(self.isa)) as f64;
        // SAFETY: touches no memory; the CPU has the instruction set.
        self.rate(budget, flops, || unsafe { simd::run(self.isa, &Multiply::<false>, 0, &mut ()) })
    }

    /// bf16 operations per second.
    pub fn bf16_flops(&self, budget: Duration) -> Option<f64> {
        // Measured even if it is not the faster way: the figure shows whether it is.
        let isa = Isa::ALL.into_iter().find(|isa| isa.has_bf16_dot() && isa.is_available())?;
        let flops = ROUNDS as f64 * 4.0 * (LANES * chains(isa)) as f64;
        // SAFETY: touches no memory; the CPU has the instruction set.
        Some(self.rate(budget, flops, || unsafe { simd::run(isa, &Multiply::<true>, 0, &mut ()) }))
    }

    /// int8 operations per second, as the instruction set does them: without a dot product of bytes, by products of
    /// pairs that are summed in 16 bits.
    pub fn int8_ops(&self, budget: Duration) -> Option<f64> {
        if self.isa == Isa::Scalar {
            return None;
        }
        let ops = ROUNDS as f64 * 8.0 * (LANES * chains(self.isa)) as f64;
        // SAFETY: touches no memory; the CPU has the instruction set.
        Some(self.rate(budget, ops, || unsafe { simd::run(self.isa, &MultiplyBytes, 0, &mut ()) }))
    }

    /// Units of work per second over all threads, if each call of `work` is `units`.
    fn rate(&self, budget: Duration, units: f64, work: impl Fn() + Sync) -> f64 {
        let calls = AtomicU64::new(0);
        let begin = Instant::now();
        let run = || {
            while begin.elapsed() < budget {
                work();
                calls.fetch_add(1, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads {
                scope.spawn(run);
            }
            run();
        });
        calls.into_inner() as f64 * units / begin.elapsed().as_secs_f64()
    }
}

/// Independent sums that cover the latency of an addition.
fn chains(isa: Isa) -> usize {
    if isa.tile_tokens() >= 12 { 12 } else { 6 }
}

struct Read<'a> {
    memory: &'a Array<f32>,
    start: usize,
    streams: usize,
}

impl Kernel for Read<'_> {
    type Scratch = ();

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, _: usize, (): &mut ()) {
        // SAFETY: the chunk is within the memory, which is not written.
        unsafe {
            let p = self.memory.slice(self.start, CHUNK / 4).as_ptr();
            match self.streams {
                1 => read::<S, 1>(s, p),
                2 => read::<S, 2>(s, p),
                _ => read::<S, 4>(s, p),
            }
        }
    }
}

/// Read a chunk in `N` streams.
///
/// # Safety
/// The chunk can be read.
#[inline(always)]
unsafe fn read<S: Simd, const N: usize>(s: S, p: *const f32) {
    const AHEAD: usize = 2048;
    let each = CHUNK / 4 / N;
    let mut acc = [[s.splat(0.0); 2]; N];
    for i in (0..each).step_by(2 * LANES) {
        for (n, acc) in acc.iter_mut().enumerate() {
            // SAFETY: guaranteed by the caller; a prefetch may have any address.
            unsafe {
                let p = p.add(n * each + i);
                s.prefetch(p.cast::<u8>().wrapping_add(AHEAD));
                s.prefetch(p.cast::<u8>().wrapping_add(AHEAD + 64));
                acc[0] = s.max(acc[0], s.load(p));
                acc[1] = s.max(acc[1], s.load(p.add(LANES)));
            }
        }
    }
    for [a, b] in acc {
        black_box(s.hmax(s.max(a, b)));
    }
}

/// Products in registers, of f32 or of bf16 pairs.
struct Multiply<const BF16: bool>;

impl<const BF16: bool> Kernel for Multiply<BF16> {
    const DOTS: bool = BF16;
    type Scratch = ();

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, _: usize, (): &mut ()) {
        if S::TOKENS >= 12 { multiply::<S, BF16, 12>(s) } else { multiply::<S, BF16, 6>(s) }
    }
}

#[inline(always)]
fn multiply<S: Simd, const BF16: bool, const N: usize>(s: S) {
    let one = [black_box(0.5f32); LANES];
    let pairs = [black_box(0x3f00u16); 2 * LANES];
    let mut acc = [s.splat(0.0); N];
    // SAFETY: both arrays have the sixteen lanes.
    let (w, p) = unsafe { (s.load(one.as_ptr()), s.load_pairs(pairs.as_ptr())) };
    let x = black_box(0x3f00_3f00);
    for _ in 0..ROUNDS {
        for acc in &mut acc {
            *acc = if BF16 { s.dot_bf16(*acc, p, x) } else { s.mul_add(w, w, *acc) };
        }
    }
    for acc in acc {
        black_box(s.hmax(acc));
    }
}

/// Dot products of bytes in registers.
struct MultiplyBytes;

impl Kernel for MultiplyBytes {
    const DOTS: bool = true;
    type Scratch = ();

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, _: usize, (): &mut ()) {
        if S::TOKENS >= 12 { multiply_bytes::<S, 12>(s) } else { multiply_bytes::<S, 6>(s) }
    }
}

#[inline(always)]
fn multiply_bytes<S: Simd, const N: usize>(s: S) {
    let w = [black_box(3u8); 4 * LANES];
    // All differ and are opaque to the compiler, so that no product can be reused.
    let x: [u32; N] = black_box(array::from_fn(|i| 0x0101_0101 * i as u32));
    let zero = s.splat_ints(0);
    let mut acc = [s.partial(zero); N];
    for _ in 0..ROUNDS {
        // The bytes are opaque to the compiler, so it has to multiply in every round. SAFETY: the array has the bytes.
        let w = unsafe { s.load_bytes(black_box(w.as_ptr())) };
        for i in 0..N {
            acc[i] = s.dot(acc[i], w, x[i]);
        }
    }
    for acc in acc {
        black_box(s.hmax(s.ints_to_f(s.fold(zero, acc))));
    }
}
