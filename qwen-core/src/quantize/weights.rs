//! A checkpoint with a mix applied: a source of weights whose matrices are quantised while they are read.

use std::borrow::Cow;

use super::importance::Importances;
use super::mix::{ModelFacts, TensorMix};
use super::rows::QuantizedRows;
use crate::backend::MatrixPart;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::source::WeightSource;
use crate::model::spec::ModelSpec;
use crate::numerics::encoding::Encoding;

/// The weights of a 16- or 32-bit checkpoint, with its matrices in the encodings of a mix. Nothing is cached: rows are
/// quantised whenever they are read.
///
/// ```no_run
/// use qwen_core::quantize::{QuantizedWeights, TensorMix};
/// use qwen_core::{Checkpoint, Encoding};
///
/// let checkpoint = Checkpoint::open("Qwen2.5-1.5B-Instruct")?;
/// let weights = QuantizedWeights::new(&checkpoint, TensorMix::Uniform(Encoding::Q8_0))?;
/// println!("{} bytes instead of {}", weights.total_bytes()?, checkpoint.total_bytes());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug)]
pub struct QuantizedWeights<'a> {
    checkpoint: &'a Checkpoint,
    mix: TensorMix,
    facts: ModelFacts,
    importances: Option<&'a Importances>,
}

impl<'a> QuantizedWeights<'a> {
    /// The weights of `checkpoint` in the encodings of `mix`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoding without a quantiser, and for a checkpoint that is already quantised;
    /// [`Error::MissingTensor`] when it lacks a matrix of the model.
    pub fn new(checkpoint: &'a Checkpoint, mix: TensorMix) -> Result<Self> {
        mix.check()?;
        let config = checkpoint.config();
        for tensor in ModelSpec::new(config).weights().iter().flat_map(|weight| &weight.cuts).map(|cut| &cut.tensor) {
            let encoding = checkpoint.encoding(tensor)?;
            if !matches!(encoding, Encoding::F32 | Encoding::F16 | Encoding::Bf16) {
                let what = format!("quantising `{tensor}` ({}), which is in {encoding},", checkpoint.path().display());
                let reason = "it would lose precision twice: use the model in 16 bits, or this one as it is";
                return Err(Error::unsupported(what, reason));
            }
        }
        let facts = ModelFacts {
            num_hidden_layers: config.num_hidden_layers,
            tied: config.tie_word_embeddings,
            has_importances: false,
        };
        Ok(QuantizedWeights { checkpoint, mix, facts, importances: None })
    }

    /// Weight the errors of columns by `importances`. Matrices without importances are quantised as before.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for numbers that are negative or not finite, and if a matrix does not have one per
    /// column.
    pub fn with_importances(mut self, importances: &'a Importances) -> Result<Self> {
        for cut in ModelSpec::new(self.checkpoint.config()).weights().iter().flat_map(|weight| &weight.cuts) {
            let Some(numbers) = importances.get(&cut.tensor) else { continue };
            let bad = numbers.iter().position(|number| !(0.0..=f32::MAX).contains(number));
            if bad.is_some() || numbers.len() != cut.shape.1 {
                let found = bad.map_or(format!("{} numbers", numbers.len()), |at| format!("a bad one at index {at}"));
                let reason =
                    format!("`{}`: expected {} finite numbers from 0 on, found {found}", cut.tensor, cut.shape.1);
                return Err(Error::argument("importances", reason));
            }
        }
        self.facts.has_importances = !importances.is_empty();
        self.importances = Some(importances);
        Ok(self)
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The mix.
    pub fn mix(&self) -> TensorMix {
        self.mix
    }

    /// Bytes of all tensors: the matrices in their new encodings, norms and biases in F32.
    ///
    /// # Errors
    /// As [`WeightSource::encoding`], and [`Error::Unsupported`] if the sum overflows.
    pub fn total_bytes(&self) -> Result<u64> {
        let spec = ModelSpec::new(self.checkpoint.config());
        let matrices = spec
            .weights()
            .iter()
            .try_fold(0_u64, |sum, weight| Ok::<_, Error>(sum.saturating_add(weight.shape(self)?.stored_bytes()?)))?;
        Ok(matrices.saturating_add(spec.vector_bytes()))
    }

    fn quantized(&self, name: &str, cols: usize) -> Encoding {
        self.mix.encoding(name, cols, self.facts)
    }
}

impl WeightSource for QuantizedWeights<'_> {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        let part = self.checkpoint.matrix(name, rows, cols)?;
        let encoding = self.quantized(name, cols);
        if encoding == part.encoding {
            return Ok(part);
        }
        let importance = self.importances.and_then(|importances| importances.get(name));
        let path = Cow::Borrowed(self.checkpoint.path());
        MatrixPart::stored(encoding, rows, cols, QuantizedRows { name: name.into(), path, part, encoding, importance })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.checkpoint.vector(name, len)
    }

    fn encoding(&self, name: &str) -> Result<Encoding> {
        let stored = self.checkpoint.encoding(name)?;
        match self.checkpoint.info(name).map(|info| info.shape.as_slice()) {
            Some([_, cols]) => Ok(self.quantized(name, *cols)),
            _ => Ok(stored),
        }
    }
}
