//! Whole checkpoints against recorded results of an independent implementation.
//!
//! A golden suite is a folder with a `manifest.json` that lists cases. Each has a checkpoint, prompts, and for each
//! prompt the logits that transformers computes in float64 from the same stored weights, with the greedy continuation
//! and its margins. The manifest also has the errors of several other arithmetics on the case, from which the limits
//! follow (docs/numerics.md).
//!
//! [`Goldens::open`] selects the cases with 16- or 32-bit safetensors checkpoints, in the families `dense`, `yarn` and
//! `outliers`; [`Goldens::open_formats`] also those of other formats.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::compare::rms_error;
use qwen_core::backend::Limits;
use qwen_core::backend::composed::argmax_row;
use qwen_core::backend::{Backend, Interrupt};
use qwen_core::checkpoint::{Checkpoint, Header};
use qwen_core::error::{Error, Result};
use qwen_core::model::Model;
use qwen_core::model::batch::BlockId;
use qwen_core::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Encoding, Precision};

/// Tokens per chunk of a long prompt.
const CHUNK: usize = 128;

const BLOCK_SIZE: usize = 16;

/// A golden suite on disk.
#[derive(Debug)]
pub struct Goldens {
    folder: PathBuf,
    cases: Vec<GoldenCase>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    cases: Vec<GoldenCase>,
}

/// A case of the manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct GoldenCase {
    /// Its folder.
    pub name: String,
    /// `dense`, `yarn`, `outliers`, or the format's own.
    pub family: String,
    /// How its checkpoint is stored, e.g. `bf16` or `gguf-q4_0`.
    pub format: String,
    /// The folder of its checkpoint.
    pub weights: String,
    /// The file of its results.
    pub reference: String,
    /// Tokens of each prompt.
    pub prompt_lengths: Vec<usize>,
    /// Tokens of the greedy continuation.
    pub new_tokens: usize,
    /// Errors of several arithmetics.
    pub measured: Measured,
}

/// The relative RMS errors that several arithmetics show on a case.
#[derive(Debug, Clone, Deserialize)]
pub struct Measured {
    /// f64 with exact rotary angles.
    pub plain_f64: f64,
    /// f32.
    pub plain_f32: f64,
    /// Inputs of matrix products and K/V rounded to bf16.
    pub bf16: f64,
    /// Only K/V rounded to f16.
    pub kv_f16: f64,
    /// Inputs of matrix products rounded to signed bytes with a scale per 32 values; quantised weights only.
    #[serde(default)]
    pub act_q8: Option<f64>,
}

/// What a case requires of computed logits, relative to the RMS of the reference's logits.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The largest RMS error.
    pub error: f64,
    /// The margin above which the greedy token has to be the reference's.
    pub margin: f64,
    /// How far below the largest computed logit the logit of the reference's token may still be.
    pub tie: f64,
}

impl GoldenCase {
    /// What the contract requires, with K/V in this encoding or in the precision's default.
    ///
    /// A greedy token has to match if its margin is above twice the largest error. If values are rounded to signed
    /// bytes, in activations or K/V, errors come near their limit, and the difference of two logits has more than one
    /// of them: two logits closer than one error (two, if both are rounded) are a tie. With block formats, and where
    /// inputs of products may be rounded as well, the errors of a prompt's rows also vary by a factor of five: the
    /// margin is then five errors.
    pub fn bounds(&self, precision: Precision, kv_encoding: Option<Encoding>) -> Bounds {
        let error = match kv_encoding {
            None | Some(Encoding::F32) => self.error(precision),
            Some(encoding) => self.error_with(encoding),
        };
        let in_bytes = [self.is_in_blocks() && precision == Precision::Fast, kv_encoding == Some(Encoding::Q8_0)];
        let rounded = in_bytes.into_iter().filter(|rounded| *rounded).count();
        let varies = rounded > 0 && (self.is_in_blocks() || precision == Precision::Fast);
        let margin = if varies { 5.0 } else { 2.0 };
        Bounds { error, margin: margin * error, tie: rounded as f64 * error }
    }

    fn error(&self, precision: Precision) -> f64 {
        let Measured { plain_f64, plain_f32, bf16, kv_f16, act_q8 } = self.measured;
        match (precision, self.family.as_str(), act_q8) {
            (Precision::Exact, ..) => f64::max(1e-5, 3.0 * plain_f32.max(plain_f64)),
            (Precision::Fast, _, Some(act_q8)) if self.is_in_blocks() => 1.2 * act_q8,
            (Precision::Fast, "outliers", _) => 1.2 * kv_f16,
            (Precision::Fast, ..) => 1.2 * bf16,
        }
    }

    /// The largest error with K/V in fewer bits, whatever the precision.
    ///
    /// In Q8_0: with 16-bit weights three times the error of bf16 inputs of products, with block formats 1.8 times the
    /// error of int8 inputs; in the outlier cases, whose keys keep more bits, the limit of [`Precision::Fast`].
    fn error_with(&self, kv_encoding: Encoding) -> f64 {
        let fast = self.error(Precision::Fast);
        match kv_encoding {
            Encoding::Q8_0 if self.family == "outliers" => fast,
            Encoding::Q8_0 if self.is_in_blocks() => 1.5 * fast,
            Encoding::Q8_0 => 2.5 * fast,
            _ => fast,
        }
    }

    /// Whether matrices are stored in a block format.
    fn is_in_blocks(&self) -> bool {
        !["bf16", "f16", "f32"].iter().any(|format| self.format.ends_with(format))
    }
}

/// The result of a backend on a case.
#[derive(Debug, Clone)]
pub struct GoldenResult {
    /// The case.
    pub case: String,
    /// What the backend may round.
    pub precision: Precision,
    /// The relative RMS error of the worst prompt.
    pub error: f64,
    /// What the contract requires.
    pub bounds: Bounds,
    /// Greedy tokens that had to be right, and those that were.
    pub greedy: (usize, usize),
    /// Prompts that were run.
    pub prompts: usize,
    /// How the keys of each layer were stored.
    pub key_encodings: Vec<Encoding>,
}

impl GoldenResult {
    /// Whether the contract is met.
    pub fn holds(&self) -> bool {
        self.error <= self.bounds.error && self.greedy.0 == self.greedy.1 && self.prompts > 0
    }
}

impl fmt::Display for GoldenResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GoldenResult {
            case,
            precision,
            error,
            bounds: Bounds { error: limit, .. },
            greedy: (bound, right),
            prompts,
            key_encodings,
        } = self;
        let count = |encoding| key_encodings.iter().filter(|key| **key == encoding).count();
        let keys = [Encoding::F32, Encoding::F16, Encoding::Q8_0].map(count);
        let verdict = if self.holds() { "" } else { "  FAILED" };
        write!(
            f,
            "{case:<28} {precision:?}  error {error:.2e}  limit {limit:.2e}  greedy {right}/{bound}  \
             {prompts} prompts  layers with keys in F32, F16, Q8_0: {keys:?}{verdict}"
        )
    }
}

/// The golden suite of this machine: `$QWEN_GOLDEN`, else `shared/golden` beside the workspace or above it. Prints to
/// stderr if there is none.
pub fn folder() -> Option<PathBuf> {
    let has_manifest = |folder: &PathBuf| folder.join("manifest.json").exists();
    if let Some(folder) = std::env::var_os("QWEN_GOLDEN").map(PathBuf::from) {
        if has_manifest(&folder) {
            return Some(folder);
        }
        eprintln!("NO GOLDEN SUITE: $QWEN_GOLDEN is {}, which has no manifest.json", folder.display());
        return None;
    }
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared/golden"));
    let found = above.into_iter().find(has_manifest);
    if found.is_none() {
        eprintln!("NO GOLDEN SUITE: $QWEN_GOLDEN is not set, and there is no shared/golden beside the workspace");
    }
    found
}

impl Goldens {
    /// The cases of plain checkpoints of the suite in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::InvalidFile`] for its manifest.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        Goldens::open_formats(folder, |format| matches!(format, "bf16" | "f16" | "f32"))
    }

    /// The cases of the suite in `folder` whose checkpoints are stored in one of these formats.
    ///
    /// # Errors
    /// As [`Goldens::open`].
    pub fn open_formats(folder: impl Into<PathBuf>, formats: impl Fn(&str) -> bool) -> Result<Self> {
        let folder = folder.into();
        let path = folder.join("manifest.json");
        let text = read(&path)?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| Error::InvalidFile { path: path.clone(), reason: error.to_string() })?;
        let cases = manifest.cases.into_iter().filter(|case| formats(&case.format)).collect();
        Ok(Goldens { folder, cases })
    }

    /// The cases that can be run.
    pub fn cases(&self) -> &[GoldenCase] {
        &self.cases
    }

    /// Run a case on the backend `b`, without prompts longer than `longest`.
    ///
    /// # Errors
    /// Errors of the files and of the backend.
    pub fn run<B: Backend>(&self, case: &GoldenCase, b: B, longest: usize) -> Result<GoldenResult> {
        self.run_with(case, b, longest, None)
    }

    /// As [`Goldens::run`], with K/V stored in this encoding instead of the precision's default.
    ///
    /// # Errors
    /// As [`Goldens::run`].
    pub fn run_with<B: Backend>(
        &self,
        case: &GoldenCase,
        mut b: B,
        longest: usize,
        kv_encoding: Option<Encoding>,
    ) -> Result<GoldenResult> {
        let checkpoint = Checkpoint::open(self.folder.join(&case.weights))?;
        let recorded = Recorded::open(self.folder.join(&case.reference))?;
        let config = checkpoint.config();
        let prompts = |len: &&usize| **len <= longest;
        let context = case.prompt_lengths.iter().filter(prompts).max().copied().unwrap_or(0) + case.new_tokens;
        let limits = Limits {
            max_model_len: context,
            max_num_batched_tokens: CHUNK,
            max_num_seqs: 1,
            max_num_logits: CHUNK,
            block_size: BLOCK_SIZE,
            num_blocks: context.div_ceil(BLOCK_SIZE),
            vocab_size: config.vocab_size,
            num_token_ids: config.vocab_size,
        };
        let precision = b.info().precision;
        let mut spec = ModelSpec::new(config);
        if let Some(encoding) = kv_encoding {
            spec = spec.with_kv_encoding(encoding)?;
        }
        let key_encodings = spec.kv(&limits, precision, &checkpoint)?.key_encodings;
        let model = Model::load(&mut b, spec, &limits, &checkpoint, &mut |_, _| Ok(()))?;
        let mut runner = ModelRunner::new(b, model, RopeStages::new(config), limits);
        let mut result = GoldenResult {
            case: case.name.clone(),
            precision,
            error: 0.0,
            bounds: case.bounds(precision, kv_encoding),
            greedy: (0, 0),
            prompts: 0,
            key_encodings,
        };
        for (index, _) in case.prompt_lengths.iter().enumerate().filter(|(_, len)| prompts(len)) {
            run_prompt(&mut runner, &recorded, index, &mut result)?;
        }
        Ok(result)
    }
}

/// Compare the logits of a prompt, then its greedy continuation, each step after the recorded tokens before it.
fn run_prompt(runner: &mut dyn Runner, recorded: &Recorded, index: usize, result: &mut GoldenResult) -> Result<()> {
    let prompt = recorded.integers(&format!("prompt.{index}"))?;
    let rows = recorded.integers(&format!("rows.{index}"))?;
    let expected = recorded.values(&format!("logits.{index}"))?;
    let greedy = recorded.integers(&format!("greedy.{index}"))?;
    let margins = recorded.values(&format!("greedy_margin.{index}"))?;
    let vocab = runner.limits().vocab_size;

    let mut ids: Vec<u32> = prompt.iter().map(|id| *id as u32).collect();
    let (mut got, mut last) = (Vec::new(), Vec::new());
    for first in (0..ids.len()).step_by(CHUNK) {
        let chunk = first..(first + CHUNK).min(ids.len());
        let logits = step(runner, &ids[chunk.clone()], first)?;
        let of_chunk = rows.iter().map(|row| *row as usize).filter(|row| chunk.contains(row));
        got.extend(of_chunk.flat_map(|row| &logits[(row - first) * vocab..][..vocab]));
        last = logits[logits.len() - vocab..].to_vec();
    }
    if got.len() != expected.len() {
        return Err(recorded.invalid(format!("prompt {index}: {} logits, computed {}", expected.len(), got.len())));
    }
    let error = rms_error(&got, &expected);
    result.error = if error.is_nan() { f64::INFINITY } else { result.error.max(error) };
    result.prompts += 1;

    let norm = expected.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / expected.len().max(1) as f64;
    let bound = result.bounds.margin * norm.sqrt();
    let tie = result.bounds.tie * norm.sqrt();
    for (token, margin) in greedy.iter().zip(&margins) {
        let token = *token as u32;
        if f64::from(*margin) > bound {
            result.greedy.0 += 1;
            let best = f64::from(last[argmax_row(&last) as usize]);
            result.greedy.1 += usize::from(best - f64::from(last[token as usize]) <= tie);
        }
        ids.push(token);
        if ids.len() < prompt.len() + greedy.len() {
            last = step(runner, &[token], ids.len() - 1)?;
        }
    }
    Ok(())
}

/// The logits of `ids`, after `computed` positions.
fn step(runner: &mut dyn Runner, ids: &[u32], computed: usize) -> Result<Vec<f32>> {
    let blocks: Vec<BlockId> = (0..runner.limits().num_blocks as u32).map(BlockId).collect();
    let mut batch = Batch::new(BLOCK_SIZE);
    batch.push(SequenceStep {
        input_ids: ids,
        num_computed_tokens: computed,
        block_table: &blocks,
        logits: WantLogits::All,
        rope_stage: 0,
        adapter: None,
    })?;
    let mut output = StepOutput::default();
    runner.execute(&batch, &mut output, &Interrupt::default())?;
    Ok(output.logits)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::Io { path: path.into(), error })
}

/// A file of recorded results.
struct Recorded {
    path: PathBuf,
    bytes: Vec<u8>,
    header: Header,
}

impl Recorded {
    fn open(path: PathBuf) -> Result<Self> {
        let bytes = read(&path)?;
        let header = Header::parse(&path, &bytes)?;
        Ok(Recorded { path, bytes, header })
    }

    fn invalid(&self, reason: String) -> Error {
        Error::InvalidFile { path: self.path.clone(), reason }
    }

    fn data(&self, name: &str, dtype: &str) -> Result<&[u8]> {
        let tensor = self.header.tensors.iter().find(|tensor| tensor.name == name && tensor.dtype == dtype);
        let tensor = tensor.ok_or_else(|| self.invalid(format!("has no {dtype} tensor `{name}`")))?;
        Ok(&self.bytes[tensor.range.start as usize..tensor.range.end as usize])
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.data(name, "I64")?.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.data(name, "F32")?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}
