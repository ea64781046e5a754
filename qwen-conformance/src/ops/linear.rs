//! `linear` and `linear_add`: shapes, encodings, stacked and cut matrices, biases, outliers.

use std::ops::Range;

use super::{Form, Inputs, RAGGED_ROWS, rms};
use crate::op::{Allowed, Cost, Guarded, Op, Output};
use crate::random::{Rng, encode, random_blocks};
use crate::rig::Rig;
use crate::tolerance;
use qwen_core::backend::composed;
use qwen_core::backend::{self, Backend, MatrixPart, WeightRole, WeightShape, WeightView};
use qwen_core::error::Result;
use qwen_core::{Encoding, Precision};

const SEED: u64 = 1;

/// A matrix with random values of deviation `1 / sqrt(cols)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// What it is for.
    pub role: WeightRole,
    /// Encoding and rows of each part.
    pub parts: Vec<(Encoding, usize)>,
    /// Columns of all parts.
    pub cols: usize,
    /// Whether each part is cut out of a larger stored matrix, which is NaN elsewhere and begins at an odd address.
    pub cut: bool,
    /// Whether the columns of parts in block formats are stored in another order, and not the same one in each.
    pub shuffled: bool,
}

impl Matrix {
    /// A plain matrix of one part.
    pub fn new(encoding: Encoding, rows: usize, cols: usize) -> Self {
        Matrix { role: WeightRole::Linear, parts: vec![(encoding, rows)], cols, cut: false, shuffled: false }
    }

    /// A matrix of several parts for `role`.
    pub fn stacked(role: WeightRole, parts: &[(Encoding, usize)], cols: usize) -> Self {
        Matrix { role, parts: parts.to_vec(), cols, cut: false, shuffled: false }
    }

    /// Rows of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|(encoding, rows)| encoding.bytes(rows * self.cols)).sum()
    }

    /// Its shape.
    pub fn shape(&self) -> WeightShape {
        WeightShape { role: self.role, parts: self.parts.clone(), cols: self.cols }
    }

    /// The encoding whose products are least precise in Fast: block formats, then those rounded to 16 bits.
    pub fn worst_encoding(&self) -> Encoding {
        if let Some((blocks, _)) = self.parts.iter().find(|(encoding, _)| is_blocks(*encoding)) {
            return *blocks;
        }
        let rounded = self.parts.iter().map(|(encoding, _)| *encoding).find(|encoding| *encoding != Encoding::Bf16);
        rounded.unwrap_or(Encoding::Bf16)
    }

    /// Pack it.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn load<B: Backend>(&self, b: &mut B) -> Result<B::Weight> {
        let orders: Vec<Vec<u32>> =
            (0..self.parts.len()).map(|index| Rng::of(&[SEED, index as u64]).permutation(self.cols)).collect();
        let stored: Vec<(Encoding, usize, Vec<u8>)> = self
            .parts
            .iter()
            .enumerate()
            .map(|(index, &(encoding, rows))| (encoding, rows, self.stored(index, encoding, rows)))
            .collect();
        let mut parts = Vec::new();
        for ((encoding, rows, bytes), order) in stored.iter().zip(&orders) {
            let part = match self.cut {
                false => MatrixPart::whole(*encoding, *rows, self.cols, bytes)?,
                true => {
                    let [before, after] = margins(*encoding);
                    let whole = MatrixPart::whole(*encoding, rows + 3, self.cols + before + after, &bytes[1..])?;
                    whole.cut(2..2 + rows, before..before + self.cols)?
                }
            };
            let shuffled = self.shuffled && is_blocks(*encoding);
            parts.push(if shuffled { part.with_column_order(order.as_slice())? } else { part });
        }
        b.load(&WeightView { name: "conformance.weight", role: self.role, parts: &parts })
    }

    fn stored(&self, index: usize, encoding: Encoding, rows: usize) -> Vec<u8> {
        let seed = [SEED, index as u64, rows as u64, self.cols as u64];
        let [before, after] = margins(encoding);
        let (stored_rows, stride) = (rows + 3, before + self.cols + after);
        if is_blocks(encoding) {
            let blocks = random_blocks(&mut Rng::of(&seed), encoding, rows, self.cols);
            if !self.cut {
                return blocks;
            }
            // Bytes of all ones are a NaN in f16.
            let (row, stride) = (encoding.bytes(self.cols), encoding.bytes(stride));
            let mut bytes = vec![0xFF; 1 + stored_rows * stride];
            for (i, values) in blocks.chunks_exact(row).enumerate() {
                bytes[1 + (i + 2) * stride + encoding.bytes(before)..][..row].copy_from_slice(values);
            }
            return bytes;
        }
        let values = Rng::of(&seed).normals(rows * self.cols, 1.0 / (self.cols as f32).sqrt());
        if !self.cut {
            return encode(encoding, &values);
        }
        let mut all = vec![f32::NAN; stored_rows * stride];
        for (row, values) in values.chunks_exact(self.cols).enumerate() {
            all[(row + 2) * stride + before..][..self.cols].copy_from_slice(values);
        }
        let mut bytes = vec![0];
        bytes.extend(encode(encoding, &all));
        bytes
    }
}

/// Whether a matrix in `encoding` consists of blocks of several values.
fn is_blocks(encoding: Encoding) -> bool {
    encoding.block().values > 1
}

/// Columns before and after a rectangle that is cut out of a larger matrix.
fn margins(encoding: Encoding) -> [usize; 2] {
    let block = encoding.block().values;
    if block == 1 { [3, 2] } else { [block, 2 * block] }
}

/// `linear`, or `linear_add` if there is a residual.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The matrix.
    pub matrix: Matrix,
    /// The tokens, as rows of an endless list.
    pub rows: Range<usize>,
    /// The activations.
    pub inputs: Inputs,
    /// The deviation of the biases, if there are any.
    pub bias: Option<f32>,
    /// Run `linear_add` in this form.
    pub residual: Option<Form>,
}

impl Linear {
    /// `rows` rows through a plain matrix without biases.
    pub fn new(encoding: Encoding, rows: usize, cols: usize, outs: usize) -> Self {
        Self::of(Matrix::new(encoding, outs, cols), rows)
    }

    /// `rows` rows through `matrix`.
    pub fn of(matrix: Matrix, rows: usize) -> Self {
        Linear { matrix, rows: 0..rows, inputs: Inputs::Normal, bias: None, residual: None }
    }
}

/// The buffers of a [`Linear`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    w: B::Weight,
    bias: Option<Guarded<B>>,
    scratch: Guarded<B>,
    out: Guarded<B>,
}

impl Op for Linear {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let (rows, cols, outs) = (self.rows.len(), self.matrix.cols, self.matrix.rows());
        let bias = if self.bias.is_some() { outs } else { 0 };
        Cost {
            bytes: (self.matrix.bytes() + 4 * (rows * (cols + outs) + bias)) as u64,
            flops: 2 * (rows * cols * outs) as u64,
        }
    }

    fn allowed(&self, precision: Precision, _output: &str) -> Allowed {
        let (encoding, cols) = (self.matrix.worst_encoding(), self.matrix.cols);
        let tolerance = match self.inputs {
            Inputs::Outliers => tolerance::linear_outliers(precision, encoding, cols),
            // A handful of products does not average out either.
            _ if cols < 32 => tolerance::linear_outliers(precision, encoding, cols),
            // Values of formats with an offset have a nonzero mean, so the errors of a token are correlated over all
            // outputs.
            _ if is_blocks(encoding) => tolerance::linear(precision, encoding, cols, self.rows.len()),
            _ => tolerance::linear(precision, encoding, cols, self.rows.len() * self.matrix.rows()),
        };
        let x = rms(&self.inputs.rows(SEED, self.rows.clone(), cols));
        let added = f64::from(self.bias.unwrap_or(0.0)).hypot(if self.residual.is_some() { 1.0 } else { 0.0 });
        Allowed::Rms { tolerance, floor: x.hypot(added) }
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        let (cols, outs) = (self.matrix.cols, self.matrix.rows());
        let bias = self.bias.map(|scale| Rng::of(&[SEED, outs as u64]).normals(outs, scale));
        let len = self.rows.len() * outs;
        Ok(OnDevice {
            x: Guarded::new(b, &self.inputs.rows(SEED, self.rows.clone(), cols))?,
            w: self.matrix.load(b)?,
            bias: bias.map(|values| Guarded::new(b, &values)).transpose()?,
            scratch: Guarded::output(b, len)?,
            out: match self.residual {
                Some(_) => Guarded::new(b, &Inputs::Normal.rows(SEED + 1, self.rows.clone(), outs))?,
                None => Guarded::output(b, len)?,
            },
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let (rows, outs) = (self.rows.len(), self.matrix.rows());
        let OnDevice { x, w, bias, scratch, out } = on;
        let (x, scratch, out) = (&x.buffer, &mut scratch.buffer, &mut out.buffer);
        match self.residual {
            None => b.linear(backend::Linear { x, w, bias: bias.as_ref().map(|bias| &bias.buffer), out, rows }),
            Some(Form::Own) => {
                b.linear_add(backend::LinearAdd { group: None, x, w, scratch, residual: out, hidden_size: outs, rows })
            }
            Some(Form::Composed) => composed::linear_add(
                b,
                backend::LinearAdd { group: None, x, w, scratch, residual: out, hidden_size: outs, rows },
            ),
        }
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.rows.len(), self.matrix.rows())]
    }
}

const ENCODINGS: [Encoding; 3] = [Encoding::F32, Encoding::F16, Encoding::Bf16];

fn shapes<B: Backend>(rig: &mut Rig<'_, B>, encoding: Encoding) -> Result<()> {
    for rows in RAGGED_ROWS {
        rig.check(&Linear::new(encoding, rows, 96, 50))?;
    }
    for cols in [1, 2, 3, 7, 15, 17, 31, 33, 63, 65, 100, 127, 129, 255, 257, 1023] {
        rig.check(&Linear::new(encoding, 4, cols, 35))?;
    }
    for outs in [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 48, 65] {
        rig.check(&Linear::new(encoding, 5, 67, outs))?;
    }
    // Projections of the 0.5B model.
    for (rows, cols, outs) in [(1, 896, 1152), (2, 896, 896), (1, 4864, 896)] {
        rig.check(&Linear::new(encoding, rows, cols, outs))?;
    }
    Ok(())
}

/// F32 weights over ragged shapes.
pub fn f32<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    shapes(rig, Encoding::F32)
}

/// F16 weights over ragged shapes.
pub fn f16<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    shapes(rig, Encoding::F16)
}

/// BF16 weights over ragged shapes.
pub fn bf16<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    shapes(rig, Encoding::Bf16)
}

/// Parts of different encodings and odd heights, for every role.
pub fn stacked_parts<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let [a, b, c] = ENCODINGS;
    for role in [WeightRole::Qkv, WeightRole::GateUp, WeightRole::Linear, WeightRole::Embedding] {
        for parts in [vec![(c, 70)], vec![(c, 19), (c, 19)], vec![(a, 8), (b, 8)], vec![(c, 40), (c, 40)]] {
            rig.check(&Linear::of(Matrix::stacked(role, &parts, 65), 3))?;
        }
    }
    for parts in [vec![(c, 5), (a, 1), (b, 9)], vec![(b, 28), (c, 4), (c, 4)], vec![(a, 17), (c, 16), (b, 33)]] {
        rig.check(&Linear::of(Matrix::stacked(WeightRole::Qkv, &parts, 48), 17))?;
        rig.check(&Linear::of(Matrix::stacked(WeightRole::Linear, &parts, 33), 1))?;
    }
    Ok(())
}

/// Rectangles cut out of larger matrices, as ranks hold them.
pub fn cut_rectangles<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in ENCODINGS {
        for (rows, cols, outs) in [(1, 64, 16), (3, 33, 17), (17, 96, 50), (2, 7, 3)] {
            let cut = Matrix { cut: true, ..Matrix::new(encoding, outs, cols) };
            rig.check(&Linear::of(cut.clone(), rows))?;
            let parts = vec![(encoding, outs), (encoding, 5), (encoding, 5)];
            rig.check(&Linear::of(Matrix { role: WeightRole::Qkv, parts, ..cut }, rows))?;
        }
    }
    Ok(())
}

/// Biases, small and in the hundreds.
pub fn biases<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in ENCODINGS {
        for scale in [1.0, 300.0] {
            for (rows, cols, outs) in [(1, 96, 50), (5, 64, 16), (17, 33, 35)] {
                rig.check(&Linear { bias: Some(scale), ..Linear::new(encoding, rows, cols, outs) })?;
            }
        }
    }
    Ok(())
}

/// Activations of which some exceed the range of f16.
pub fn outliers<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in ENCODINGS {
        for (rows, cols, outs) in [(1, 96, 50), (17, 256, 33), (33, 65, 16)] {
            rig.check(&Linear { inputs: Inputs::Outliers, ..Linear::new(encoding, rows, cols, outs) })?;
        }
    }
    rig.check(&Linear { inputs: Inputs::Zero, ..Linear::new(Encoding::Bf16, 3, 96, 50) })
}

/// `linear_add` in its own and in its composed form.
pub fn add_to_residual<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in ENCODINGS {
        for rows in RAGGED_ROWS {
            for form in [Form::Own, Form::Composed] {
                rig.check(&Linear { residual: Some(form), ..Linear::new(encoding, rows, 65, 48) })?;
            }
        }
        for (cols, outs) in [(33, 17), (896, 35), (1023, 16)] {
            for form in [Form::Own, Form::Composed] {
                rig.check(&Linear { residual: Some(form), ..Linear::new(encoding, 3, cols, outs) })?;
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
    for encoding in ENCODINGS {
        for (cols, outs) in [(65, 50), (256, 35), (1000, 16)] {
            for residual in [None, Some(Form::Own)] {
                let of = |rows: Range<usize>| Linear { rows, residual, ..Linear::new(encoding, 0, cols, outs) };
                let whole = rig.run(&of(0..70))?;
                for part in [0..1, 1..2, 15..16, 69..70, 0..2, 3..6, 4..8, 5..13, 0..16, 1..18, 20..53, 0..64, 6..70] {
                    rig.check_same_rows((&of(part.clone()), 0..part.len()), (&whole, part))?;
                }
            }
        }
    }
    Ok(())
}
