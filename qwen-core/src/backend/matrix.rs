//! Matrices as checkpoints store them: what [`crate::Backend::load`] packs and what a plan is made of.
//!
//! A stored matrix is rows of whole blocks ([`Encoding::block`]), in memory or in a file that is read while it is packed.
//! All arithmetic on its sizes is checked here, once: a backend's read of a part succeeds or is a typed error. Not
//! here: which tensors a model needs (`model/spec.rs`), and the layouts that kernels compute with (each backend).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// Bytes that are read when they are needed, such as those of a tensor in a file. Several threads read at once.
pub trait ReadBytes: fmt::Debug + Send + Sync {
    /// Fill `out` with the bytes from `offset` on, counted from the first byte of the tensor.
    ///
    /// # Errors
    /// [`Error::Io`] with the file, the tensor and the offset.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// A source of the same bytes at the same offsets, of which only those in `bytes` will be read, so that a source
    /// that keeps a converted form can keep less of it. `None`, the default, if that makes no difference.
    fn narrowed<'a>(&self, bytes: Range<u64>) -> Option<Arc<dyn ReadBytes + 'a>>
    where
        Self: 'a,
    {
        let _ = bytes;
        None
    }
}

impl<T: ReadBytes + ?Sized> ReadBytes for &T {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        T::read_at(self, offset, out)
    }
}

/// One stored matrix of a checkpoint, row-major, or a rectangle cut out of it.
///
/// ```
/// use qwen_core::Encoding;
/// use qwen_core::backend::MatrixPart;
///
/// let bytes: Vec<u8> = (0..24).collect();
/// let matrix = MatrixPart::whole(Encoding::Bf16, 3, 4, &bytes)?;
/// let mut buffer = Vec::new();
/// assert_eq!(matrix.read(1..2, &mut buffer)?, [8, 9, 10, 11, 12, 13, 14, 15]);
/// // The right half of the last two rows.
/// let cut = matrix.cut(1..3, 2..4)?;
/// assert_eq!(cut.read(0..2, &mut buffer)?, [12, 13, 14, 15, 20, 21, 22, 23]);
/// assert!(matrix.cut(1..3, 2..5).is_err());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct MatrixPart<'a> {
    /// The encoding of its values.
    pub encoding: Encoding,
    /// Rows of the rectangle (output features).
    pub rows: usize,
    /// Columns of the rectangle (input features): whole blocks.
    pub cols: usize,
    /// Bytes from the beginning of one row to that of the next.
    pub row_bytes: usize,
    /// If columns are stored in another order: stored column `j` is multiplied with input feature `column_order[j]`.
    /// Quantisers that sort columns by importance need it.
    pub column_order: Option<Arc<[u32]>>,
    /// Byte offset of the rectangle's first row.
    start: u64,
    data: Data<'a>,
}

/// Where the bytes are.
#[derive(Debug, Clone)]
enum Data<'a> {
    Memory(&'a [u8]),
    Stored(Arc<dyn ReadBytes + 'a>),
}

impl<'a> MatrixPart<'a> {
    /// A whole matrix of `rows` x `cols` in memory.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when rows are not whole blocks or `data` is shorter than the shape says.
    pub fn whole(encoding: Encoding, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self> {
        MatrixPart::strided(encoding, rows, cols, row_bytes(encoding, cols)?, data)
    }

    /// A matrix in memory with a row stride of `row_bytes` bytes: more than a row has, or fewer, if rows overlap.
    ///
    /// # Errors
    /// As [`MatrixPart::whole`].
    pub fn strided(encoding: Encoding, rows: usize, cols: usize, row_bytes: usize, data: &'a [u8]) -> Result<Self> {
        let part =
            MatrixPart { encoding, rows, cols, row_bytes, column_order: None, start: 0, data: Data::Memory(data) };
        let needed = part.end()?;
        if needed > data.len() as u64 {
            let reason = format!("{rows} x {cols} values in {encoding} need {needed} bytes, found {}", data.len());
            return Err(Error::argument("data", reason));
        }
        Ok(part)
    }

    /// A whole matrix of `rows` x `cols` that is read from `source`, from its first byte on, row by row. The part and
    /// its clones own the source; it is dropped with the last of them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when rows are not whole blocks or the size overflows.
    pub fn stored(encoding: Encoding, rows: usize, cols: usize, source: impl ReadBytes + 'a) -> Result<Self> {
        let row_bytes = row_bytes(encoding, cols)?;
        let data = Data::Stored(Arc::new(source));
        let part = MatrixPart { encoding, rows, cols, row_bytes, column_order: None, start: 0, data };
        part.end()?;
        Ok(part)
    }

    /// The same matrix with its columns stored in another order (see [`MatrixPart::column_order`]).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless `order` has every column once.
    pub fn with_column_order(self, order: impl Into<Arc<[u32]>>) -> Result<Self> {
        let order = order.into();
        let mut seen = vec![false; self.cols];
        let fresh = |&col: &u32| seen.get_mut(col as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if order.len() != self.cols || !order.iter().all(fresh) {
            let reason = format!("{} entries are not a permutation of {} columns", order.len(), self.cols);
            return Err(Error::argument("column_order", reason));
        }
        Ok(MatrixPart { column_order: Some(order), ..self })
    }

    /// The rectangle of the rows `rows` and the columns `cols`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when it is not inside this one; [`Error::Unsupported`] when its columns do not begin
    /// and end at block boundaries, and for a subset of the columns of a matrix that stores them in another order.
    pub fn cut(&self, rows: Range<usize>, cols: Range<usize>) -> Result<MatrixPart<'a>> {
        let within = |range: &Range<usize>, size| range.start <= range.end && range.end <= size;
        if !within(&rows, self.rows) || !within(&cols, self.cols) {
            let reason = format!("rows {rows:?}, columns {cols:?} of a {} x {} matrix", self.rows, self.cols);
            return Err(Error::argument("cut", reason));
        }
        if self.column_order.is_some() && cols != (0..self.cols) {
            let reason = "its columns are stored in another order, so those of a rank are spread over all of them; use \
                          one rank, or a file that was quantised without act-order (desc_act)";
            return Err(Error::unsupported(format!("columns {cols:?} of a matrix in {}", self.encoding), reason));
        }
        let bytes = column_bytes(self.encoding, cols.clone())?;
        let start = offset(self.start, rows.start, self.row_bytes)
            .and_then(|start| start.checked_add(bytes.start as u64))
            .ok_or_else(|| self.overflow())?;
        let mut cut = MatrixPart { rows: rows.len(), cols: cols.len(), start, ..self.clone() };
        if let Data::Stored(source) = &self.data
            && let Some(narrowed) = source.narrowed(start..cut.end()?)
        {
            cut.data = Data::Stored(narrowed);
        }
        Ok(cut)
    }

    /// The bytes of the rows `rows`, contiguous: borrowed if they are so in memory, else copied into `buffer`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are no such rows; [`Error::Io`] when they cannot be read.
    pub fn read<'b>(&'b self, rows: Range<usize>, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::argument("rows", format!("{rows:?} of a matrix of {}", self.rows)));
        }
        let row = row_bytes(self.encoding, self.cols)?;
        if rows.is_empty() || row == 0 {
            return Ok(&[]);
        }
        let start = offset(self.start, rows.start, self.row_bytes).ok_or_else(|| self.overflow())?;
        let len = row.checked_mul(rows.len()).ok_or_else(|| self.overflow())?;
        let adjacent = rows.len() == 1 || self.row_bytes == row;
        if let (Data::Memory(data), true) = (&self.data, adjacent) {
            return slice(data, start, len).ok_or_else(|| self.overflow());
        }
        // Existing contents are overwritten, so only new space is zeroed.
        buffer.resize(len, 0);
        let step = if adjacent { len } else { row };
        for (index, out) in buffer.chunks_exact_mut(step).enumerate() {
            let start = offset(start, index, self.row_bytes).ok_or_else(|| self.overflow())?;
            match &self.data {
                Data::Memory(data) => out.copy_from_slice(slice(data, start, row).ok_or_else(|| self.overflow())?),
                Data::Stored(source) => source.read_at(start, out)?,
            }
        }
        Ok(buffer)
    }

    /// The end of the last row.
    fn end(&self) -> Result<u64> {
        let row = row_bytes(self.encoding, self.cols)?;
        let Some(last) = self.rows.checked_sub(1) else { return Ok(self.start) };
        offset(self.start, last, self.row_bytes)
            .and_then(|start| start.checked_add(row as u64))
            .ok_or_else(|| self.overflow())
    }

    fn overflow(&self) -> Error {
        let MatrixPart { encoding, rows, cols, row_bytes, start, .. } = self;
        let reason = format!("{rows} x {cols} values in {encoding}, {row_bytes} bytes a row from byte {start} on");
        Error::argument("matrix", format!("{reason}: beyond its memory, or the size overflows"))
    }
}

/// `start` plus `rows` rows.
fn offset(start: u64, rows: usize, row_bytes: usize) -> Option<u64> {
    (rows as u64).checked_mul(row_bytes as u64)?.checked_add(start)
}

fn slice(data: &[u8], start: u64, len: usize) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    data.get(start..start.checked_add(len)?)
}

fn row_bytes(encoding: Encoding, cols: usize) -> Result<usize> {
    Ok(column_bytes(encoding, 0..cols)?.end)
}

/// The byte range of columns within their row.
///
/// # Errors
/// [`Error::Unsupported`] unless they begin and end at block boundaries.
fn column_bytes(encoding: Encoding, cols: Range<usize>) -> Result<Range<usize>> {
    let block = encoding.block();
    block.byte_range(cols.clone()).ok_or_else(|| {
        let reason = match block.values {
            1 => "their size overflows".to_owned(),
            values => format!("its blocks hold {values} values: columns begin and end at multiples of that"),
        };
        Error::unsupported(format!("columns {cols:?} of a matrix in {encoding}"), reason)
    })
}

/// Reads the rows of a part in order, a few at a time, for backends that take one row after another.
///
/// ```
/// use qwen_core::Encoding;
/// use qwen_core::backend::{MatrixPart, RowReader};
///
/// let bytes: Vec<u8> = (0..12).collect();
/// let matrix = MatrixPart::whole(Encoding::F16, 3, 2, &bytes)?;
/// let mut rows = RowReader::new(&matrix);
/// assert_eq!(rows.row(2)?, [8, 9, 10, 11]);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct RowReader<'a> {
    part: &'a MatrixPart<'a>,
    buffer: Vec<u8>,
    held: Range<usize>,
    decoded: Vec<f32>,
}

impl<'a> RowReader<'a> {
    /// Bytes to read at once: a few dozen rows, so that the cost of system calls is negligible.
    const READ_AHEAD: usize = 256 << 10;

    /// A reader of the rows of `part`.
    pub fn new(part: &'a MatrixPart<'a>) -> Self {
        RowReader { part, buffer: Vec::new(), held: 0..0, decoded: Vec::new() }
    }

    /// The part whose rows it reads.
    pub fn part(&self) -> &'a MatrixPart<'a> {
        self.part
    }

    /// The bytes of row `row`.
    ///
    /// # Errors
    /// As [`MatrixPart::read`].
    pub fn row(&mut self, row: usize) -> Result<&[u8]> {
        if let Data::Memory(_) = self.part.data {
            return self.part.read(row..row.saturating_add(1), &mut self.buffer);
        }
        let bytes = row_bytes(self.part.encoding, self.part.cols)?;
        if !self.held.contains(&row) {
            let ahead = (Self::READ_AHEAD / bytes.max(1)).max(1);
            let rows = row..row.saturating_add(ahead).min(self.part.rows).max(row.saturating_add(1));
            self.held = 0..0;
            self.part.read(rows.clone(), &mut self.buffer)?;
            self.held = rows;
        }
        let at = (row - self.held.start) * bytes;
        Ok(self.buffer.get(at..at + bytes).unwrap_or_default())
    }

    /// Decode row `row` exactly into `out`, as long as the row, in the order of the input features.
    ///
    /// # Errors
    /// As [`MatrixPart::read`].
    pub fn decode(&mut self, row: usize, out: &mut [f32]) -> Result<()> {
        let encoding = self.part.encoding;
        let Some(order) = &self.part.column_order else {
            encoding.decode_row(self.row(row)?, out);
            return Ok(());
        };
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.resize(out.len(), 0.0);
        encoding.decode_row(self.row(row)?, &mut decoded);
        for (&col, &value) in order.iter().zip(&decoded) {
            if let Some(out) = out.get_mut(col as usize) {
                *out = value;
            }
        }
        self.decoded = decoded;
        Ok(())
    }
}

/// What a matrix is for, so that a backend may choose a layout that suits its fused operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightRole {
    /// The token embedding, which a tied model also uses as its output head.
    Embedding,
    /// The query, key and value projections, stacked in this order.
    Qkv,
    /// The gate and up projections of the MLP, stacked in this order.
    GateUp,
    /// Any other projection.
    Linear,
}

/// A matrix to load: one or more stored matrices with the same number of columns, stacked by rows.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    /// The name for errors, e.g. `model.layers.3.self_attn.qkv_proj`.
    pub name: &'a str,
    /// What it is for.
    pub role: WeightRole,
    /// The stored matrices, top to bottom.
    pub parts: &'a [MatrixPart<'a>],
}

impl WeightView<'_> {
    /// Rows of all parts together (output features).
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).fold(0, usize::saturating_add)
    }

    /// Columns (input features).
    pub fn cols(&self) -> usize {
        self.parts.first().map_or(0, |part| part.cols)
    }

    /// Its shape.
    pub fn shape(&self) -> WeightShape {
        let parts = self.parts.iter().map(|part| (part.encoding, part.rows)).collect();
        WeightShape { role: self.role, parts, cols: self.cols() }
    }

    /// Check that the matrix is not empty, that all parts have the same columns, and that only block formats reorder
    /// columns.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the shape of an empty matrix, or with the first part that differs.
    pub fn check(&self) -> Result<()> {
        let (rows, cols) = (self.rows(), self.cols());
        if rows == 0 || cols == 0 {
            return Err(Error::argument("weight", format!("`{}` is a matrix of {rows} x {cols}", self.name)));
        }
        if let Some(part) =
            self.parts.iter().find(|part| part.column_order.is_some() && part.encoding.block().values == 1)
        {
            let reason = format!("`{}` has a matrix in {} with columns in another order", self.name, part.encoding);
            return Err(Error::argument("column_order", reason));
        }
        match self.parts.iter().enumerate().find(|(_, part)| part.cols != cols) {
            None => Ok(()),
            Some((index, part)) => {
                let reason = format!("part {index} of `{}` has {} columns, the first {cols}", self.name, part.cols);
                Err(Error::argument("parts", reason))
            }
        }
    }
}

/// The shape of a matrix to load, known from headers only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightShape {
    /// What it is for.
    pub role: WeightRole,
    /// Encoding and rows of each part.
    pub parts: Vec<(Encoding, usize)>,
    /// Columns of all parts.
    pub cols: usize,
}

impl WeightShape {
    /// Rows of all parts together.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| *rows).fold(0, usize::saturating_add)
    }

    /// Bytes of the parts as stored in the files.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when rows are not whole blocks or the size overflows.
    pub fn stored_bytes(&self) -> Result<u64> {
        self.parts.iter().try_fold(0u64, |sum, (encoding, rows)| {
            let row = column_bytes(*encoding, 0..self.cols)?.end as u64;
            row.checked_mul(*rows as u64).and_then(|bytes| sum.checked_add(bytes)).ok_or_else(|| {
                let what = format!("a matrix of {} x {} values in {encoding}", self.rows(), self.cols);
                Error::unsupported(what, "its size overflows 64 bits")
            })
        })
    }
}
