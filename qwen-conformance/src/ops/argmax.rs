//! `argmax`.

use super::{Form, Inputs};
use crate::op::{Allowed, Cost, Data, Guarded, GuardedIndices, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use qwen_core::Precision;
use qwen_core::backend::composed;
use qwen_core::backend::{self, Backend};
use qwen_core::error::Result;

/// The contents of the rows of an [`Argmax`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Normal values, with larger ones beyond the valid range.
    Normal,
    /// Only a few distinct values, so that the largest occurs often.
    Ties,
    /// All values equal; positive and negative zeros in the last row.
    Equal,
    /// NaN or an infinity somewhere in every row except the first.
    NonFinite,
    /// NaN and infinities only beyond the valid values.
    NonFiniteBeyond,
}

/// `argmax` in one of its forms.
#[derive(Debug, Clone)]
pub struct Argmax {
    /// Values of a row.
    pub width: usize,
    /// Valid values of a row.
    pub valid: usize,
    /// Rows.
    pub rows: usize,
    /// What they hold.
    pub values: Rows,
    /// Which form to run.
    pub form: Form,
}

/// The buffers of an [`Argmax`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    out: GuardedIndices<B>,
}

impl Argmax {
    fn row(&self, index: usize) -> Vec<f32> {
        let mut rng = Rng::of(&[9, index as u64, self.width as u64]);
        let mut row = Inputs::Normal.rows(9, index..index + 1, self.width);
        // In every second row the largest value is negative.
        row.iter_mut().for_each(|value| *value -= 20.0 * (index % 2) as f32);
        row[self.valid..].fill(100.0);
        let anywhere = rng.below(self.valid);
        match self.values {
            Rows::Normal if index % 3 == 2 => row[self.valid - 1] = 50.0,
            Rows::Normal => {}
            Rows::Ties => row.iter_mut().for_each(|value| *value = value.round()),
            Rows::Equal if index + 1 == self.rows => {
                row.iter_mut().enumerate().for_each(|(i, value)| *value = if i % 2 == 0 { -0.0 } else { 0.0 });
            }
            Rows::Equal => row.fill(-3.5),
            Rows::NonFinite => match index % 5 {
                0 => {}
                1 => row[anywhere] = f32::NAN,
                2 => row[anywhere] = f32::INFINITY,
                3 => row[anywhere] = f32::NEG_INFINITY,
                _ => row[self.valid - 1] = -f32::NAN,
            },
            Rows::NonFiniteBeyond => {
                let beyond = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                row[self.valid..].iter_mut().enumerate().for_each(|(i, value)| *value = beyond[i % 3]);
            }
        }
        row
    }
}

impl Op for Argmax {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let len = (self.rows * self.valid) as u64;
        Cost { bytes: 4 * len, flops: len }
    }

    fn allowed(&self, _precision: Precision, _output: &str) -> Allowed {
        Allowed::Bits
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        let values: Vec<f32> = (0..self.rows).flat_map(|row| self.row(row)).collect();
        Ok(OnDevice { x: Guarded::new(b, &values)?, out: GuardedIndices::new(b, &vec![0xBAD; self.rows])? })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let (x, out) = (&on.x.buffer, &mut on.out.buffer);
        match self.form {
            Form::Own => b.argmax(backend::Argmax { x, out, width: self.width, valid: self.valid, rows: self.rows }),
            Form::Composed => {
                composed::argmax(b, backend::Argmax { x, out, width: self.width, valid: self.valid, rows: self.rows })
            }
        }
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output { name: "out", data: Data::Indices(&on.out), rows: self.rows, width: 1, cols: 0..1 }]
    }
}

fn rows_of<B: Backend>(rig: &mut Rig<'_, B>, values: Rows) -> Result<()> {
    for form in [Form::Own, Form::Composed] {
        for (width, valid, rows) in [
            (1, 1, 1),
            (2, 1, 3),
            (7, 7, 0),
            (33, 31, 5),
            (64, 64, 8),
            (257, 200, 13),
            (1000, 999, 17),
            (1025, 1024, 11),
            (5000, 4097, 10),
            (151_936, 151_665, 6),
        ] {
            rig.check(&Argmax { width, valid, rows, values, form })?;
        }
    }
    Ok(())
}

/// Values beyond the valid ones are ignored, however large.
pub fn valid_columns<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    rows_of(rig, Rows::Normal)
}

/// The lowest index among equals.
pub fn ties<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    rows_of(rig, Rows::Ties)?;
    rows_of(rig, Rows::Equal)
}

/// Rows with a NaN or an infinity among their valid values.
pub fn non_finite<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    rows_of(rig, Rows::NonFinite)?;
    rows_of(rig, Rows::NonFiniteBeyond)
}
