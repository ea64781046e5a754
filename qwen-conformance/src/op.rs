//! One operation with its shapes as data: for cases to compare and for benches to time.

use std::fmt::Debug;
use std::ops::Range;

use qwen_core::Precision;
use qwen_core::backend::Backend;
use qwen_core::error::Result;

/// Guard words after each buffer, which no operation may change.
const GUARD: usize = 256;

/// An operation, its shapes and the seed of its values.
///
/// Its `Debug` form is its name; two operations with the same name have the same values.
pub trait Op: Debug {
    /// The operation's buffers on a device.
    type On<B: Backend>;

    /// The bytes it moves and the operations it computes.
    fn cost(&self) -> Cost;

    /// How far the output named `output` may deviate from the reference.
    fn allowed(&self, precision: Precision, output: &str) -> Allowed;

    /// Allocate its buffers and fill them. Outputs hold garbage afterwards.
    ///
    /// # Errors
    /// What the backend reports.
    fn place<B: Backend>(&self, b: &mut B) -> Result<Self::On<B>>;

    /// Queue it.
    ///
    /// # Errors
    /// What the backend reports.
    fn issue<B: Backend>(&self, b: &mut B, on: &mut Self::On<B>) -> Result<()>;

    /// Its outputs.
    fn outputs<'a, B: Backend>(&self, on: &'a Self::On<B>) -> Vec<Output<'a, B>>;
}

/// The minimum that an operation has to move and compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights, activations and K/V, each counted once.
    pub bytes: u64,
    /// Multiplications and additions.
    pub flops: u64,
}

/// How far an output may deviate from the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Allowed {
    /// Not at all.
    Bits,
    /// By an RMS error.
    Rms {
        /// The error, relative to the larger of the reference's RMS and `floor`.
        tolerance: f64,
        /// The expected RMS of the output, for outputs with so few values that their own RMS is random.
        floor: f64,
    },
}

impl Allowed {
    /// A relative RMS error.
    pub fn rms(tolerance: f64) -> Self {
        Allowed::Rms { tolerance, floor: 0.0 }
    }
}

/// A rectangle of one of an operation's outputs.
#[derive(Debug)]
pub struct Output<'a, B: Backend> {
    /// The name of the argument.
    pub name: &'static str,
    /// Its buffer.
    pub data: Data<'a, B>,
    /// Rows to compare.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
    /// The values of a row to compare.
    pub cols: Range<usize>,
}

impl<'a, B: Backend> Output<'a, B> {
    /// `rows` whole rows of `width` values.
    pub fn rows(name: &'static str, data: &'a Guarded<B>, rows: usize, width: usize) -> Self {
        Output { name, data: Data::Values(data), rows, width, cols: 0..width }
    }
}

/// The two types of buffers.
#[derive(Debug)]
pub enum Data<'a, B: Backend> {
    /// f32 values.
    Values(&'a Guarded<B>),
    /// u32 values.
    Indices(&'a GuardedIndices<B>),
}

/// A buffer of f32 values followed by guard words: NaNs that an operation must neither use nor overwrite.
#[derive(Debug)]
pub struct Guarded<B: Backend> {
    /// The buffer, longer than an operation needs it.
    pub buffer: B::Buffer,
    len: usize,
}

/// A buffer of u32 values followed by guard words.
#[derive(Debug)]
pub struct GuardedIndices<B: Backend> {
    /// The buffer, longer than an operation needs it.
    pub buffer: B::Indices,
    len: usize,
}

/// Guard word `index`: a quiet NaN, or as an index one that is out of range for any table.
fn guard(index: usize) -> u32 {
    0x7FD6_A000 | (index as u32 & 0xFFF)
}

impl<B: Backend> Guarded<B> {
    /// A buffer that holds `values`.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn new(b: &mut B, values: &[f32]) -> Result<Self> {
        let guards = (0..GUARD).map(|index| f32::from_bits(guard(index)));
        let all: Vec<f32> = values.iter().copied().chain(guards).collect();
        let mut buffer = b.alloc(all.len())?;
        b.write(&mut buffer, &all)?;
        Ok(Guarded { buffer, len: values.len() })
    }

    /// A buffer of `len` values for an output, initialised with NaNs.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn output(b: &mut B, len: usize) -> Result<Self> {
        Self::new(b, &vec![f32::from_bits(0x7FC0_0BAD); len])
    }

    /// The values, and the index of the first changed guard word, counted from the first value.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn read(&self, b: &mut B) -> Result<(Vec<f32>, Option<usize>)> {
        let mut all = vec![0.0; self.len + GUARD];
        b.read(&self.buffer, &mut all)?;
        let changed = (0..GUARD).find(|index| all[self.len + index].to_bits() != guard(*index));
        all.truncate(self.len);
        Ok((all, changed.map(|index| self.len + index)))
    }
}

impl<B: Backend> GuardedIndices<B> {
    /// A buffer that holds `values`.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn new(b: &mut B, values: &[u32]) -> Result<Self> {
        let all: Vec<u32> = values.iter().copied().chain((0..GUARD).map(guard)).collect();
        let mut buffer = b.alloc_indices(all.len())?;
        b.write_indices(&mut buffer, &all)?;
        Ok(GuardedIndices { buffer, len: values.len() })
    }

    /// The values, and the index of the first changed guard word, counted from the first value.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn read(&self, b: &mut B) -> Result<(Vec<u32>, Option<usize>)> {
        let mut all = vec![0; self.len + GUARD];
        b.read_indices(&self.buffer, &mut all)?;
        let changed = (0..GUARD).find(|index| all[self.len + index] != guard(*index));
        all.truncate(self.len);
        Ok((all, changed.map(|index| self.len + index)))
    }
}

/// The contents of one output, read back to the host.
#[derive(Debug, Clone)]
pub struct Values {
    /// The name of the argument.
    pub name: &'static str,
    /// Values of a row.
    pub width: usize,
    /// The rows. Indices are stored as bit patterns.
    pub values: Vec<f32>,
    /// The first guard word that the operation overwrote.
    pub overrun: Option<usize>,
}

impl Values {
    /// Some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Values {
        let values = self.values[rows.start * self.width..rows.end * self.width].to_vec();
        Values { values, ..*self }
    }
}

/// Place `op` on `b`, run it once and read its outputs.
///
/// # Errors
/// What the backend reports.
pub fn run<B: Backend, O: Op>(b: &mut B, op: &O) -> Result<Vec<Values>> {
    let mut on = op.place(b)?;
    op.issue(b, &mut on)?;
    read_outputs(b, op, &on)
}

/// Read the outputs of `op`.
///
/// # Errors
/// What the backend reports.
pub fn read_outputs<B: Backend, O: Op>(b: &mut B, op: &O, on: &O::On<B>) -> Result<Vec<Values>> {
    let mut read = Vec::new();
    for Output { name, data, rows, width, cols } in op.outputs(on) {
        let (all, overrun) = match data {
            Data::Values(data) => data.read(b)?,
            Data::Indices(data) => {
                let (indices, overrun) = data.read(b)?;
                (indices.into_iter().map(f32::from_bits).collect(), overrun)
            }
        };
        let values = all.chunks_exact(width.max(1)).take(rows).flat_map(|row| &row[cols.clone()]).copied().collect();
        read.push(Values { name, width: cols.len(), values, overrun });
    }
    Ok(read)
}
