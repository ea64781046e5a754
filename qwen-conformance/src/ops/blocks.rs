//! `linear`, `linear_add` and `embed` with matrices in block formats: every format over ragged shapes, parts in several
//! formats, reordered columns, cuts at block boundaries. Cases are skipped, with the backend's reason, if it has no
//! kernels for a format.

use std::ops::Range;

use super::embed::Embed;
use super::linear::{Linear, Matrix};
use super::{Form, Inputs, RAGGED_ROWS};
use crate::random::Rng;
use crate::rig::Rig;
use qwen_core::Encoding;
use qwen_core::backend::{Backend, WeightRole};
use qwen_core::error::{Error, Result};
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};

const INT4: Encoding = Encoding::Group(GroupEncoding { bits: GroupBits::Four, group_size: 64 });
const INT8: Encoding = Encoding::Group(GroupEncoding { bits: GroupBits::Eight, group_size: 32 });

/// One of each kind of packing: with and without offsets, halves, planes and tables.
const SOME: [Encoding; 9] = [
    Encoding::Q4_0,
    Encoding::Q5_1,
    Encoding::Q8_0,
    Encoding::Q2K,
    Encoding::Q4K,
    Encoding::Q6K,
    Encoding::Iq4Xs,
    Encoding::Iq2Xs,
    INT4,
];

/// The backend's reason, if it has no kernels for one of `encodings`.
fn refusal<B: Backend>(rig: &Rig<'_, B>, encodings: &[Encoding]) -> Result<Option<String>> {
    let footprint = rig.b.footprint();
    for &encoding in encodings {
        match footprint.weight_bytes(&Matrix::new(encoding, 16, encoding.block().values).shape()) {
            Ok(_) => {}
            Err(error @ Error::Unsupported { .. }) => return Ok(Some(error.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn every_shape<B: Backend>(rig: &mut Rig<'_, B>, encoding: Encoding) -> Result<()> {
    if let Some(reason) = refusal(rig, &[encoding])? {
        return rig.skip(&reason);
    }
    let block = encoding.block().values;
    for rows in RAGGED_ROWS {
        rig.check(&Linear::new(encoding, rows, 3 * block, 50))?;
    }
    for blocks in [1, 2, 5, 1024 / block + 1] {
        rig.check(&Linear::new(encoding, 4, blocks * block, 35))?;
        rig.check(&Linear::new(encoding, 1, blocks * block, 33))?;
    }
    for outs in [1, 2, 3, 15, 16, 17, 31, 32, 33, 48, 65] {
        rig.check(&Linear::new(encoding, 5, 2 * block, outs))?;
    }
    // More tokens than a few tiles hold, and as many columns as projections of the 0.5B model.
    let cols = 1024 / block * block;
    for (rows, outs) in [(70, 48), (1, 160), (2, 96)] {
        rig.check(&Linear::new(encoding, rows, cols, outs))?;
    }
    for (vocab, blocks, len) in [(50, 1, 1), (16, 3, 5), (257, 2, 33)] {
        let mut rng = Rng::of(&[vocab as u64, blocks as u64]);
        let mut ids: Vec<u32> = (0..len).map(|_| rng.below(vocab) as u32).collect();
        ids[0] = vocab as u32 - 1;
        let table = Matrix { role: WeightRole::Embedding, ..Matrix::new(encoding, vocab, blocks * block) };
        rig.check(&Embed { table, ids })?;
    }
    Ok(())
}

macro_rules! formats {
    ($($name:ident $encoding:expr;)*) => {$(
        #[doc = concat!("Every shape in `", stringify!($name), "`.")]
        ///
        /// # Errors
        /// What the backend reports.
        pub fn $name<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
            every_shape(rig, $encoding)
        }
    )*};
}

formats! {
    q4_0 Encoding::Q4_0;
    q4_1 Encoding::Q4_1;
    q5_0 Encoding::Q5_0;
    q5_1 Encoding::Q5_1;
    q8_0 Encoding::Q8_0;
    q2_k Encoding::Q2K;
    q3_k Encoding::Q3K;
    q4_k Encoding::Q4K;
    q5_k Encoding::Q5K;
    q6_k Encoding::Q6K;
    iq4_nl Encoding::Iq4Nl;
    iq4_xs Encoding::Iq4Xs;
    iq2_xxs Encoding::Iq2Xxs;
    iq2_xs Encoding::Iq2Xs;
    iq2_s Encoding::Iq2S;
    iq3_xxs Encoding::Iq3Xxs;
    iq3_s Encoding::Iq3S;
    int4_groups INT4;
    int8_groups INT8;
}

/// Parts in different encodings, for every role: gate and up, or query, key and value.
pub fn mixed_parts<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig, &SOME)? {
        return rig.skip(&reason);
    }
    let (k4, k6, q8, f32, bf16) = (Encoding::Q4K, Encoding::Q6K, Encoding::Q8_0, Encoding::F32, Encoding::Bf16);
    for rows in [1, 3, 17] {
        for parts in [
            vec![(k4, 64), (k4, 32), (k6, 32)],
            vec![(k4, 33), (q8, 7), (q8, 7)],
            vec![(q8, 5), (f32, 20), (bf16, 40)],
            vec![(bf16, 16), (k6, 1), (bf16, 16)],
        ] {
            rig.check(&Linear::of(Matrix::stacked(WeightRole::Qkv, &parts, 512), rows))?;
            rig.check(&Linear::of(Matrix::stacked(WeightRole::Linear, &parts, 256), rows))?;
        }
        for (gate, up) in [(k4, k6), (k6, k4), (q8, bf16), (f32, k4), (bf16, f32)] {
            for width in [48, 33] {
                let parts = [(gate, width), (up, width)];
                rig.check(&Linear::of(Matrix::stacked(WeightRole::GateUp, &parts, 768), rows))?;
            }
        }
    }
    Ok(())
}

/// Columns stored in another order, a different one for each part.
pub fn column_orders<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig, &[INT4, INT8])? {
        return rig.skip(&reason);
    }
    for rows in [1, 5, 33] {
        for parts in [vec![(INT4, 40)], vec![(INT8, 33)], vec![(INT4, 32), (INT4, 16), (INT8, 16)]] {
            let matrix = Matrix { shuffled: true, ..Matrix::stacked(WeightRole::Linear, &parts, 576) };
            rig.check(&Linear::of(matrix, rows))?;
        }
    }
    Ok(())
}

/// Rectangles cut out of larger matrices at block boundaries.
pub fn cut_rectangles<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig, &SOME)? {
        return rig.skip(&reason);
    }
    for encoding in SOME {
        let cols = 2 * encoding.block().values;
        for (rows, outs) in [(1, 16), (3, 17), (17, 50)] {
            let cut = Matrix { cut: true, ..Matrix::new(encoding, outs, cols) };
            rig.check(&Linear::of(cut.clone(), rows))?;
            let parts = vec![(encoding, outs), (encoding, 5), (encoding, 5)];
            rig.check(&Linear::of(Matrix { role: WeightRole::Qkv, parts, ..cut }, rows))?;
        }
    }
    Ok(())
}

/// Activations with a few that are far larger than the others, and zeros.
pub fn outliers<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig, &SOME)? {
        return rig.skip(&reason);
    }
    for encoding in SOME {
        let cols = 512 / encoding.block().values * encoding.block().values;
        for inputs in [Inputs::Outliers, Inputs::Zero, Inputs::Tiny] {
            for (rows, outs) in [(1, 50), (17, 33)] {
                rig.check(&Linear { inputs, ..Linear::new(encoding, rows, cols, outs) })?;
            }
        }
    }
    Ok(())
}

/// A row with a non-finite value has no finite result, and no other row changes.
pub fn non_finite<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig, &SOME)? {
        return rig.skip(&reason);
    }
    for encoding in SOME {
        let (cols, outs) = (512 / encoding.block().values * encoding.block().values, 40);
        let w = Matrix::new(encoding, outs, cols).load(&mut rig.b)?;
        for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let clean = Inputs::Normal.rows(1, 0..6, cols);
            let mut damaged = clean.clone();
            damaged[2 * cols + cols / 3] = damage;
            let mut outputs = [vec![0.0; 6 * outs], vec![0.0; 6 * outs]];
            for (values, result) in [&clean, &damaged].into_iter().zip(&mut outputs) {
                let (mut x, mut out) = (rig.b.alloc(values.len())?, rig.b.alloc(result.len())?);
                rig.b.write(&mut x, values)?;
                rig.b.linear(qwen_core::backend::Linear { x: &x, w: &w, bias: None, out: &mut out, rows: 6 })?;
                rig.b.read(&out, result)?;
            }
            let [clean, damaged] = outputs;
            let what = format!("{encoding}, {damage} in row 2");
            let finite = damaged[2 * outs..3 * outs].iter().filter(|value| value.is_finite()).count();
            let outcome = if finite == 0 { Ok(()) } else { Err(format!("{finite} finite results")) };
            rig.note(|| what.clone(), outcome);
            let same = |rows: Range<usize>| {
                clean[rows.start * outs..rows.end * outs] == damaged[rows.start * outs..rows.end * outs]
            };
            let untouched = if rig.is_batch_invariant() { same(0..2) && same(3..6) } else { true };
            rig.note(|| what, if untouched { Ok(()) } else { Err("other rows changed".into()) });
        }
    }
    Ok(())
}

/// `linear_add` in its own and in its composed form.
pub fn add_to_residual<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig, &SOME)? {
        return rig.skip(&reason);
    }
    for encoding in SOME {
        for rows in [0, 1, 5, 17] {
            for form in [Form::Own, Form::Composed] {
                let linear = Linear::new(encoding, rows, 2 * encoding.block().values, 48);
                rig.check(&Linear { residual: Some(form), ..linear })?;
            }
        }
    }
    Ok(())
}

/// A row has the same bits alone and among others.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    let all = Encoding::NAMED.into_iter().filter(|encoding| encoding.block().values > 1).chain([INT4, INT8]);
    let all: Vec<Encoding> = all.collect();
    if let Some(reason) = refusal(rig, &all)? {
        return rig.skip(&reason);
    }
    for encoding in all {
        let block = encoding.block().values;
        for (cols, outs) in [(block, 50), (1536 / block * block, 35)] {
            let of = |rows: Range<usize>| Linear { rows, ..Linear::new(encoding, 0, cols, outs) };
            let whole = rig.run(&of(0..70))?;
            for part in [0..1, 1..2, 69..70, 0..2, 3..6, 4..8, 5..13, 1..18, 20..53, 6..70] {
                rig.check_same_rows((&of(part.clone()), 0..part.len()), (&whole, part))?;
            }
        }
    }
    Ok(())
}
