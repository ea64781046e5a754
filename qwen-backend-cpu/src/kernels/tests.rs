//! Each kernel on each instruction set of this CPU, against plain loops and against the others.

use std::sync::Arc;

use qwen_conformance::{Rng, random_blocks};
use qwen_core::Encoding;
use qwen_core::backend::{MatrixPart, WeightRole, WeightView};

use super::epilogue::Epilogue;
use super::linear::{Linear, SPAN, Split};
use super::math::exp;
use super::panel::{INT8_WORDS, Pack, Panel, Rounding, SCALE, Tiles, to_bf16, to_int8};
use super::{Op, Scratch};
use crate::matrix::Matrix;
use crate::memory::Array;
use crate::simd::{self, Isa, Kernel, LANES, Simd};

/// Numbers that differ in each run of the tests; the seed is printed on failure.
struct Random(u64);

impl Random {
    fn new() -> Random {
        use std::hash::{BuildHasher, RandomState};
        let seed = RandomState::new().hash_one(0) | 1;
        println!("seed {seed}");
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Around zero, of several magnitudes.
    fn value(&mut self) -> f32 {
        let magnitude = [1.0, 0.1, 0.01, 8.0][(self.next() % 4) as usize];
        ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * magnitude
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

fn encode(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    match encoding {
        Encoding::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Encoding::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

fn pack(encoding: Encoding, rows: usize, cols: usize, data: &[u8]) -> Arc<Matrix> {
    let parts = [MatrixPart::whole(encoding, rows, cols, data).unwrap()];
    let view = WeightView { name: "test", role: WeightRole::Linear, parts: &parts };
    Arc::new(
        Matrix::pack(&view, |count, f| {
            (0..count).for_each(f);
            Ok(())
        })
        .unwrap(),
    )
}

/// `x w` for `tokens` rows of `x`, with the kernels of `isa`.
fn product(isa: Isa, w: &Arc<Matrix>, x: &[f32], tokens: usize, rounding: Rounding) -> Vec<f32> {
    let layout = &w.layout;
    let cols = layout.padded_cols();
    let array = Array::zeroed(x.len(), 0).unwrap();
    // SAFETY: nothing else has access to the memory.
    unsafe { array.slice_mut(0, x.len()) }.copy_from_slice(x);
    let out = Array::zeroed(tokens * layout.rows, 0).unwrap();
    let tiles = Tiles::new(tokens, isa.tile_tokens().min(isa.int8_tile_tokens()));
    let words = Panel::words(tokens, cols, rounding);
    let panel = Panel { array: Array::zeroed(words, 0).unwrap(), start: 0, tiles, cols, rounding };
    let split = Split::new(w, &tiles, 1, 2);
    let epilogue = Epilogue::Write { bias: None, out: out.clone() };
    let panels = [Some(panel.clone()), None, None, None];
    let ops = [
        Op::Pack(Pack { x: array, cols: layout.cols, column_order: None, panel }),
        Op::Linear(Linear { w: w.clone(), panels, tiles, epilogue, split }),
    ];
    let mut scratch = Scratch::new();
    for op in &ops {
        for piece in 0..op.pieces() {
            // SAFETY: one thread, in order; the instruction sets of the tests are those available.
            unsafe { op.run(isa, piece, &mut scratch) };
        }
    }
    // SAFETY: nothing writes any more.
    unsafe { out.slice(0, tokens * layout.rows) }.to_vec()
}

/// The sum that a row's kernel computes, in plain loops: spans from zero, odd products of pairs first.
fn twin_of_dot(w: &[u16], x: &[f32]) -> f32 {
    let flush = |v: f32| if v.abs() < f32::MIN_POSITIVE { 0.0 } else { v };
    let value = |bits: u16| flush(f32::from_bits(u32::from(bits) << 16));
    let mut sum = 0.0;
    for (w, x) in w.chunks(SPAN).zip(x.chunks(SPAN)) {
        let mut acc = 0.0f32;
        for (w, x) in w.chunks(2).zip(x.chunks(2)) {
            for i in (0..w.len()).rev() {
                acc = flush(value(w[i]) * value(to_bf16(x[i]) as u16) + acc);
            }
        }
        sum += acc;
    }
    sum
}

#[test]
fn products_are_right_on_every_instruction_set() {
    let mut random = Random::new();
    for (rows, cols) in [(1, 1), (5, 7), (16, 16), (33, 65), (40, 511), (70, 1027)] {
        for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
            let weights = random.values(rows * cols);
            let data = encode(encoding, &weights);
            let mut decoded = vec![0.0; rows * cols];
            encoding.decode_row(&data, &mut decoded);
            let w = pack(encoding, rows, cols, &data);
            let tokens = 1 + random.next() as usize % 27;
            let x = random.values(tokens * cols);
            let mut fused: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let out = product(isa, &w, &x, tokens, Rounding::Full);
                for (i, &got) in out.iter().enumerate() {
                    let (t, r) = (i / rows, i % rows);
                    let terms = x[t * cols..][..cols].iter().zip(&decoded[r * cols..][..cols]);
                    let (sum, size) = terms.fold((0.0f64, 0.0f64), |(sum, size), (&x, &w)| {
                        let term = f64::from(x) * f64::from(w);
                        (sum + term, size + term.abs())
                    });
                    let error = (f64::from(got) - sum).abs();
                    assert!(error <= 3e-6 * size, "{isa} {encoding} {rows}x{cols} token {t} row {r}: {got} not {sum}");
                }
                // All that fuse multiply and add agree bit for bit.
                if isa != Isa::Scalar {
                    assert_eq!(&out, fused.get_or_insert_with(|| out.clone()), "{isa}");
                }
            }
        }
    }
}

#[test]
fn dot_products_match_their_twin() {
    let mut random = Random::new();
    for (rows, cols) in [(1, 1), (17, 3), (32, 129), (50, 1301)] {
        let weights = random.values(rows * cols);
        let data = encode(Encoding::Bf16, &weights);
        let bits: Vec<u16> = data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        let w = pack(Encoding::Bf16, rows, cols, &data);
        let tokens = 1 + random.next() as usize % 27;
        let x = random.values(tokens * cols);
        for isa in Isa::available() {
            let out = product(isa, &w, &x, tokens, Rounding::Pairs);
            for (i, &got) in out.iter().enumerate() {
                let (t, r) = (i / rows, i % rows);
                let want = twin_of_dot(&bits[r * cols..][..cols], &x[t * cols..][..cols]);
                assert!(
                    (got - want).abs() <= 2e-6 * want.abs().max(1.0),
                    "{isa} {rows}x{cols} token {t} row {r}: {got} not {want}"
                );
            }
        }
    }
}

#[test]
fn one_token_or_many_give_the_same_bits() {
    let mut random = Random::new();
    for (encoding, rounding) in
        [(Encoding::Bf16, Rounding::Pairs), (Encoding::Bf16, Rounding::Full), (Encoding::F16, Rounding::Full)]
    {
        let (rows, cols, tokens) = (96, 1100, 40);
        let w = pack(encoding, rows, cols, &encode(encoding, &random.values(rows * cols)));
        let x = random.values(tokens * cols);
        for isa in Isa::available() {
            let all = product(isa, &w, &x, tokens, rounding);
            for n in 1..=13 {
                for first in (0..tokens - n).step_by(n) {
                    let part = product(isa, &w, &x[first * cols..(first + n) * cols], n, rounding);
                    assert_eq!(part, all[first * rows..(first + n) * rows], "{isa}, {n} tokens from {first}");
                }
            }
        }
    }
}

/// The sum that a row's kernel computes for a block format, in plain loops over decoded values: integers are exact, so
/// only the order of the f32 operations matters.
fn twin_of_int8(encoding: Encoding, row: &[u8], x: &[f32]) -> f64 {
    let mut w = vec![0.0; x.len()];
    encoding.decode_row(row, &mut w);
    let mut sum = 0.0;
    for (w, x) in w.as_chunks::<32>().0.iter().zip(x.as_chunks::<32>().0) {
        let words = to_int8(x);
        let scale = f64::from(f32::from_bits(words[SCALE]));
        let bytes = words[..8].iter().flat_map(|word| word.to_le_bytes()).map(|byte| f64::from(byte as i8));
        sum += w.iter().zip(bytes).map(|(w, x)| f64::from(*w) * x * scale).sum::<f64>();
    }
    sum
}

#[test]
fn block_formats_match_their_twin_on_every_instruction_set() {
    let (rows, tokens) = (70, 17);
    for encoding in Encoding::NAMED.into_iter().filter(|encoding| encoding.block().values > 1) {
        let cols = 1536;
        let mut random = Random::new();
        let bytes = random_blocks(&mut Rng::new(random.next()), encoding, rows, cols);
        let (w, x) = (pack(encoding, rows, cols, &bytes), random.values(tokens * cols));
        let mut fused: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let out = product(isa, &w, &x, tokens, Rounding::Int8);
            for (i, &got) in out.iter().enumerate() {
                let (t, r) = (i / rows, i % rows);
                let x = &x[t * cols..][..cols];
                let row = &bytes[r * encoding.bytes(cols)..][..encoding.bytes(cols)];
                let want = twin_of_int8(encoding, row, x);
                let size = x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                let error = (f64::from(got) - want).abs();
                assert!(error <= 2e-5 * size.max(want.abs()), "{isa} {encoding} token {t} row {r}: {got} not {want}");
            }
            for n in [1, 2, 3, 4, 5, 6, 7, 11] {
                for first in (0..tokens - n).step_by(n) {
                    let part = product(isa, &w, &x[first * cols..(first + n) * cols], n, Rounding::Int8);
                    assert_eq!(
                        part,
                        out[first * rows..(first + n) * rows],
                        "{isa} {encoding}, {n} tokens from {first}"
                    );
                }
            }
            // All that fuse multiply and add agree bit for bit.
            if isa != Isa::Scalar {
                let first = fused.get_or_insert_with(|| out.clone());
                assert_eq!(&out, first, "{isa} {encoding}");
            }
        }
    }
}

#[test]
fn int8_rounds_to_nearest_and_spares_the_rest_from_what_is_not_finite() {
    let mut x = [0.0; 32];
    assert_eq!(to_int8(&x), [0; INT8_WORDS]);
    (x[3], x[4], x[20]) = (127.0, -2.5, 1.4);
    let words = to_int8(&x);
    assert_eq!(f32::from_bits(words[SCALE]), 1.0);
    assert_eq!([words[0], words[1], words[5]], [127 << 24, 254, 1]);
    for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        x[9] = damage;
        assert!(f32::from_bits(to_int8(&x)[SCALE]).is_nan());
    }
    // A quotient that overflows.
    assert_eq!(to_int8(&[1e-45; 32]), [0; INT8_WORDS]);
    assert_eq!(f32::from_bits(to_int8(&[-3e38; 32])[SCALE]), 3e38 / 127.0);
}

/// `e^x` of sixteen values.
struct Exp {
    x: [f32; LANES],
}

impl Kernel for Exp {
    type Scratch = [f32; LANES];

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, _: usize, out: &mut [f32; LANES]) {
        // SAFETY: both arrays have sixteen values.
        unsafe { s.store(exp(s, s.load(self.x.as_ptr())), out.as_mut_ptr()) }
    }
}

#[test]
fn exponentials_are_right_to_two_units() {
    for isa in Isa::available() {
        let at = |x: f32| {
            let mut out = [0.0; LANES];
            // SAFETY: the instruction set is available.
            unsafe { simd::run(isa, &Exp { x: [x; LANES] }, 0, &mut out) };
            out[LANES - 1]
        };
        for i in -8_730..=8_830 {
            let x = i as f32 * 0.01 + 0.001;
            let want = f64::from(x).exp();
            let error = (f64::from(at(x)) - want).abs() / want;
            assert!(error <= 2.4e-7, "{isa}: e^{x} off by {error:e}");
        }
        assert_eq!(at(0.0), 1.0, "{isa}");
        assert_eq!([at(f32::NEG_INFINITY), at(-90.0), at(f32::MIN)], [0.0; 3], "{isa}");
        assert!(at(f32::NAN).is_nan() && at(f32::INFINITY).is_finite() && at(1e9) > 1e38, "{isa}");
    }
}

/// Sixteen values to f16 and back.
struct Half {
    x: [f32; LANES],
}

impl Kernel for Half {
    type Scratch = ([u16; LANES], [f32; LANES]);

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, _: usize, (bits, back): &mut Self::Scratch) {
        // SAFETY: all arrays have sixteen values.
        unsafe {
            s.store_f16(s.load(self.x.as_ptr()), bits.as_mut_ptr());
            s.store(s.load_f16(bits.as_ptr()), back.as_mut_ptr());
        }
    }
}

#[test]
fn halves_round_to_nearest_and_saturate() {
    let mut random = Random::new();
    for isa in Isa::available() {
        for _ in 0..2000 {
            let mut x = [0.0; LANES];
            x.fill_with(|| f32::from_bits(random.next() as u32));
            let mut out = Default::default();
            // SAFETY: the instruction set is available.
            unsafe { simd::run(isa, &Half { x }, 0, &mut out) };
            for (i, &x) in x.iter().enumerate() {
                let want = half::f16::from_f32(if x.is_nan() { x } else { x.clamp(-65504.0, 65504.0) });
                if x.is_nan() {
                    assert!(half::f16::from_bits(out.0[i]).is_nan() && out.1[i].is_nan(), "{isa}: {x}");
                } else {
                    assert_eq!((out.0[i], out.1[i]), (want.to_bits(), want.to_f32()), "{isa}: {x}");
                }
            }
        }
    }
}

#[test]
fn rows_decode_to_what_was_packed() {
    let mut random = Random::new();
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        for role in [WeightRole::Linear, WeightRole::GateUp] {
            let (rows, cols) = (42, 19);
            let data = encode(encoding, &random.values(rows * cols));
            let mut want = vec![0.0; rows * cols];
            encoding.decode_row(&data, &mut want);
            let whole = MatrixPart::whole(encoding, rows, cols, &data).unwrap();
            let parts = [whole.cut(0..11, 0..cols).unwrap(), whole.cut(11..rows, 0..cols).unwrap()];
            let view = WeightView { name: "test", role, parts: &parts };
            let w = Matrix::pack(&view, |count, f| {
                (0..count).for_each(f);
                Ok(())
            })
            .unwrap();
            let mut row = vec![0.0; cols];
            for r in 0..rows {
                w.decode_row(r, &mut row);
                assert_eq!(row, want[r * cols..][..cols], "{encoding} {role:?} row {r}");
            }
            w.decode_row(rows, &mut row);
            assert_eq!(row, vec![0.0; cols]);
        }
    }
}
