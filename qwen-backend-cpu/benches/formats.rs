//! Every block format on every instruction set of the CPU, compared with plain Rust: `cargo bench -p qwen-backend-cpu
//! --bench formats`.
//!
//! One thread and a matrix that stays in cache, so that instructions are measured. A format that is slower than plain
//! Rust on some instruction set, in either precision, with one token or many, is an error: it suggests that the
//! compiler did not inline the kernel's intrinsics. Other programs on the machine can slow one of two measurements, so
//! a pair that looks slow is measured again, and is an error only if it never is the faster one.

use std::time::Instant;

use qwen_backend_cpu::{CpuBackend, CpuOptions, Isa};
use qwen_conformance::{Rng, random_blocks};
use qwen_core::backend::{Linear, MatrixPart, WeightRole, WeightView};
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};
use qwen_core::{Backend, Encoding, Precision, Result};

const ROWS: usize = 256;
const COLS: usize = 2048;
/// How often a pair is measured before its instruction set is called slow.
const ATTEMPTS: usize = 5;

/// Seconds that a product takes, the best of several runs.
fn seconds(isa: Isa, precision: Precision, encoding: Encoding, bytes: &[u8], tokens: usize) -> Result<f64> {
    let mut b = CpuBackend::new(CpuOptions::new().isa(isa).precision(precision).threads(1))?;
    let parts = [MatrixPart::whole(encoding, ROWS, COLS, bytes)?];
    let w = b.load(&WeightView { name: "bench", role: WeightRole::Linear, parts: &parts })?;
    let (mut x, mut out) = (b.alloc(tokens * COLS)?, b.alloc(tokens * ROWS)?);
    b.write(&mut x, &Rng::new(1).normals(tokens * COLS, 1.0))?;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        b.linear(Linear { x: &x, w: &w, bias: None, out: &mut out, rows: tokens })?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> Result<()> {
    let mut encodings: Vec<Encoding> =
        Encoding::NAMED.into_iter().filter(|encoding| encoding.block().values > 1).collect();
    for bits in [GroupBits::Four, GroupBits::Eight] {
        encodings.push(Encoding::Group(GroupEncoding { bits, group_size: 128 }));
    }
    let vectors: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar).collect();
    let mut slow = Vec::new();
    for precision in [Precision::Fast, Precision::Exact] {
        for &encoding in &encodings {
            let bytes = random_blocks(&mut Rng::new(2), encoding, ROWS, COLS);
            for tokens in [1, 24] {
                let scalar = seconds(Isa::Scalar, precision, encoding, &bytes, tokens)?;
                let mut line = format!(
                    "{:<21} {precision:?} {tokens:>2} tokens  scalar {:8.0} us",
                    encoding.to_string(),
                    scalar * 1e6
                );
                for &isa in &vectors {
                    let (mut scalar, mut vector) = (scalar, seconds(isa, precision, encoding, &bytes, tokens)?);
                    let mut attempts = 1;
                    while vector > scalar && attempts < ATTEMPTS {
                        scalar = seconds(Isa::Scalar, precision, encoding, &bytes, tokens)?;
                        vector = seconds(isa, precision, encoding, &bytes, tokens)?;
                        attempts += 1;
                    }
                    line += &format!("  {isa} {:8.0} us, {:5.1} times as fast", vector * 1e6, scalar / vector);
                    if vector > scalar {
                        slow.push(format!("{encoding}, {precision:?}, {tokens} tokens, {isa}"));
                    }
                }
                println!("{line}");
            }
        }
    }
    // Without optimisation, intrinsics are calls and plain loops are not.
    if !cfg!(debug_assertions) && !slow.is_empty() {
        eprintln!("slower than plain Rust: {}", slow.join("; "));
        std::process::exit(1);
    }
    Ok(())
}
