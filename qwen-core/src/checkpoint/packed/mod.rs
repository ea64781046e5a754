//! GPTQ and AWQ matrices: several tensors of a file that together are one matrix of the model.
//!
//! Both methods store a matrix `X.weight` as codes (`X.qweight`), scales (`X.scales`) and zero points (`X.qzeros`),
//! packed into 32-bit integers; GPTQ also stores the group of each column (`X.g_idx`). A [`Packed`] is found from
//! headers alone, with all its shapes checked. As a matrix it is rows of [`Encoding::Group`] blocks, converted while
//! they are read (`rows.rs`, into the memory of `held.rs`), and a column order if the columns of a group are not
//! adjacent (`order.rs`). The packing of codes into integers is in `codes.rs`. Not here: `quantization_config`
//! ([`crate::checkpoint::config::Quantization`]).

mod codes;
mod held;
mod order;
mod rows;

use std::sync::Arc;

use std::path::Path;

use self::codes::Packing;
use self::rows::Rows;
use super::Stored;
use crate::backend::MatrixPart;
use crate::checkpoint::config::{QuantMethod, Quantization};
use crate::error::{Error, Result};
use crate::numerics::encoding::{Encoding, GroupEncoding};

/// The name suffix of the tensor whose presence means that a matrix is packed.
pub(super) const CODES: &str = ".qweight";

/// Columns are read in multiples of this many.
const COLUMN_UNIT: usize = 32;

/// The tensors of one matrix, and what their headers say about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    qweight: &'a Stored,
    qzeros: &'a Stored,
    scales: &'a Stored,
    g_idx: Option<&'a Stored>,
    packing: Packing,
    /// Output features.
    rows: usize,
    /// Input features.
    cols: usize,
    groups: usize,
    encoding: GroupEncoding,
}

impl<'a> Packed<'a> {
    /// The matrix `name`, if it is a packed one. `folder` is for errors; `stored` looks tensors up.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] and [`Error::InvalidTensor`] for a part that is missing, or whose type or shape
    /// contradicts the other parts or `quantization`; [`Error::InvalidConfig`] without `quantization`.
    pub(super) fn find(
        name: &str,
        quantization: Option<&Quantization>,
        folder: &Path,
        stored: impl Fn(&str) -> Option<&'a Stored>,
    ) -> Result<Option<Self>> {
        let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
        let Some(qweight) = stored(&format!("{module}{CODES}")) else { return Ok(None) };
        let Some(quantization) = quantization else {
            let reason = format!(
                "is missing, but tensor `{}` of {} is packed: take config.json, or quantize_config.json, from where \
                 the weights come from",
                qweight.info.name,
                qweight.shard.path().display()
            );
            let path = folder.join("config.json");
            return Err(Error::InvalidConfig { path, key: "quantization_config".into(), reason });
        };
        let part = |part: &str| {
            let name = format!("{module}.{part}");
            stored(&name).ok_or_else(|| Error::MissingTensor {
                name,
                path: folder.to_path_buf(),
                instead: String::new(),
            })
        };
        let (qzeros, scales) = (part("qzeros")?, part("scales")?);
        let g_idx = match quantization.method {
            QuantMethod::Gptq { desc_act: true, .. } => Some(part("g_idx")?),
            QuantMethod::Gptq { desc_act: false, .. } => part("g_idx").ok(),
            QuantMethod::Awq => None,
        };
        let packing = Packing::of(quantization);
        let per_integer = packing.codes_per_integer();
        let shape = match (packing, qweight.info.shape.as_slice()) {
            (Packing::Gptq { .. }, [packed, rows]) => packed.checked_mul(per_integer).map(|cols| (*rows, cols)),
            (Packing::Awq, [cols, packed]) => packed.checked_mul(per_integer).map(|rows| (rows, *cols)),
            _ => None,
        };
        let Some((rows, cols)) = shape.filter(|(rows, cols)| *rows > 0 && *cols > 0) else {
            return Err(qweight.mismatch(format!("I32 of two dimensions, {}", packing.dimensions())));
        };
        let bits = quantization.bits;
        let group_size = quantization.group_size.map_or(cols, |size| size as usize);
        if !cols.is_multiple_of(group_size) || !cols.is_multiple_of(COLUMN_UNIT) {
            let what = format!("{cols} columns in groups of {group_size} (tensor `{}`)", qweight.info.name);
            let reason = format!(
                "columns must be whole groups and a multiple of {COLUMN_UNIT}; use the GGUF or 16-bit files of the \
                 same model"
            );
            return Err(Error::unsupported(what, reason));
        }
        let Ok(group_columns) = u32::try_from(group_size) else {
            return Err(qweight.mismatch(format!("I32, {}, of a model", packing.dimensions())));
        };
        let packed = Packed {
            qweight,
            qzeros,
            scales,
            g_idx,
            packing,
            rows,
            cols,
            groups: cols / group_size,
            encoding: GroupEncoding { bits, group_size: group_columns },
        };
        packed.check()?;
        Ok(Some(packed))
    }

    /// Check the parts against each other.
    fn check(&self) -> Result<()> {
        let Packed { groups, rows, cols, .. } = *self;
        let per_integer = self.packing.codes_per_integer();
        let bits = self.encoding.bits.count();
        let belongs = |expected: String| {
            format!(
                "{expected}, for {bits}-bit codes of {rows} x {cols} values in groups of {}: config.json and the \
                 tensors of a module belong to one checkpoint",
                self.encoding.group_size
            )
        };
        let of_shape = |part: &Stored, dtypes: &[&str], shape: &[usize]| match dtypes
            .contains(&part.info.dtype.as_str())
            && part.info.shape == shape
        {
            true => Ok(()),
            false => Err(part.mismatch(belongs(format!("{} {shape:?}", dtypes.join(" or "))))),
        };
        if self.qweight.info.dtype != "I32" || !rows.is_multiple_of(per_integer) {
            let expected = format!("I32, {}, in multiples of {per_integer} output features", self.packing.dimensions());
            return Err(self.qweight.mismatch(expected));
        }
        of_shape(self.qzeros, &["I32"], &[groups, rows / per_integer])?;
        of_shape(self.scales, &["F16", "BF16", "F32"], &[groups, rows])?;
        match self.g_idx {
            Some(g_idx) => of_shape(g_idx, &["I32"], &[cols]),
            None => Ok(()),
        }
    }

    /// The encoding of the matrix's rows.
    pub(super) fn encoding(&self) -> Encoding {
        Encoding::Group(self.encoding)
    }

    /// The error that `name` is not a single tensor.
    pub(super) fn not_a_tensor(&self, name: &str) -> Error {
        let (codes, path) = (&self.qweight.info.name, self.qweight.shard.path().to_path_buf());
        let found = format!("a matrix of {} in parts, `{codes}` and others: ask for it as a matrix", self.encoding());
        Error::InvalidTensor { name: name.to_owned(), path, expected: "one tensor".into(), found }
    }

    /// The column order, if the columns of a group are not adjacent. Reads `g_idx`.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for groups that do not exist; [`Error::Unsupported`] for groups of unequal sizes;
    /// [`Error::Io`].
    pub(super) fn column_order(&self) -> Result<Option<Arc<[u32]>>> {
        match self.g_idx {
            Some(g_idx) => order::column_order(g_idx, self.groups, self.encoding.group_size as usize),
            None => Ok(None),
        }
    }

    /// The matrix, which must be of `rows` x `cols`. Reads only `g_idx`; the rest is read with the rows.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] with both shapes if they differ, and for groups that do not exist;
    /// [`Error::Unsupported`] for groups of unequal sizes; [`Error::Io`].
    pub(super) fn matrix(self, rows: usize, cols: usize) -> Result<MatrixPart<'a>> {
        if (self.rows, self.cols) != (rows, cols) {
            let [first, second] = self.packing.qweight_shape(rows, cols);
            let expected = format!("I32 [{first}, {second}], which is {rows} x {cols} as config.json says");
            return Err(self.qweight.mismatch(expected));
        }
        let order = self.column_order()?;
        let part = MatrixPart::stored(self.encoding(), rows, cols, Rows::new(self, order.clone()))?;
        match order {
            Some(order) => part.with_column_order(order),
            None => Ok(part),
        }
    }
}
