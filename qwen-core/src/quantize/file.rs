//! A whole model in one GGUF file, tensor by tensor.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::Path;

use super::weights::QuantizedWeights;
use crate::backend::MatrixPart;
use crate::checkpoint::gguf::{GgufWriter, Metadata, NewTensor, Value, names};
use crate::error::{Error, Result};
use crate::model::source::WeightSource;
use crate::model::spec::ModelSpec;
use crate::numerics::encoding::Encoding;
use crate::numerics::float_env::FloatEnv;

/// The version of the block formats, which readers require.
const QUANTIZATION_VERSION: u32 = 2;

/// Bytes of rows to quantise per thread at a time.
const PIECE_BYTES: usize = 1 << 20;

/// The progress of writing a file.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The tensor being written, by its name in the file.
    pub tensor: &'a str,
    /// The encoding it is written in.
    pub encoding: Encoding,
    /// Bytes of tensors written so far.
    pub done_bytes: u64,
    /// Bytes of all tensors.
    pub total_bytes: u64,
}

/// A tensor of the model by its published name, with its rows and columns; a vector has no rows.
struct Listed {
    name: String,
    rows: Option<usize>,
    cols: usize,
}

/// Write `weights` to the GGUF file `path` and return its length in bytes. `metadata` describes the model
/// ([`describe`](crate::checkpoint::gguf::describe)) and its vocabulary; keys about the encodings are added here.
///
/// Rows are quantised by `threads` threads, a megabyte each at a time, so that little memory is used. The file appears
/// under its name once it is complete ([`GgufWriter`]).
///
/// ```no_run
/// use qwen_core::Checkpoint;
/// use qwen_core::checkpoint::gguf::describe;
/// use qwen_core::quantize::{QuantizedWeights, TensorMix, write_gguf};
///
/// let checkpoint = Checkpoint::open("Qwen2.5-1.5B-Instruct")?;
/// let weights = QuantizedWeights::new(&checkpoint, TensorMix::Q4KM)?;
/// let metadata = describe(checkpoint.config(), checkpoint.generation_config())?;
/// let threads = std::thread::available_parallelism().unwrap_or(std::num::NonZero::<usize>::MIN);
/// write_gguf("qwen2.5-1.5b-q4_k_m.gguf", &weights, metadata, threads, &mut |progress| {
///     println!("{}: {} of {}", progress.tensor, progress.done_bytes, progress.total_bytes);
/// })?;
/// # Ok::<(), qwen_core::Error>(())
/// ```
///
/// # Errors
/// Errors of the checkpoint about its tensors; [`Error::InvalidTensor`] for values out of their encoding's range;
/// [`Error::Io`] for the file being written. An existing file is then left as it was.
pub fn write_gguf(
    path: impl AsRef<Path>,
    weights: &QuantizedWeights<'_>,
    mut metadata: Metadata,
    threads: NonZero<usize>,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<u64> {
    let _float_env = FloatEnv::enter();
    metadata.insert("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    match weights.mix().file_type() {
        Some(number) => metadata.insert("general.file_type", Value::U32(number)),
        None => metadata.remove("general.file_type"),
    };
    let listed = tensors(&ModelSpec::new(weights.checkpoint().config()));
    let new: Vec<NewTensor> = listed.iter().map(|tensor| new_tensor(weights, tensor)).collect::<Result<_>>()?;
    let total_bytes = weights.total_bytes()?;
    let mut done_bytes = 0;
    let mut writer = GgufWriter::create(path, &metadata, new.clone())?;
    for (Listed { name, rows, cols }, new) in listed.iter().zip(&new) {
        let mut write = |bytes: &[u8]| {
            writer.write(bytes)?;
            done_bytes += bytes.len() as u64;
            progress(&Progress { tensor: &new.name, encoding: new.encoding, done_bytes, total_bytes });
            Ok(())
        };
        match rows {
            Some(rows) => write_rows(&weights.matrix(name, *rows, *cols)?, threads, &mut write)?,
            None => {
                let bytes: Vec<u8> =
                    weights.vector(name, *cols)?.iter().flat_map(|value| value.to_le_bytes()).collect();
                write(&bytes)?;
            }
        }
    }
    writer.finish()
}

/// The tensors of the model, in the order of its layers.
fn tensors(spec: &ModelSpec) -> Vec<Listed> {
    let matrices = |weight: crate::model::spec::WeightSpec| {
        weight.cuts.into_iter().map(|cut| Listed { name: cut.tensor, rows: Some(cut.shape.0), cols: cut.shape.1 })
    };
    let vector = |name: String, cols| Listed { name, rows: None, cols };
    let mut all: Vec<Listed> = matrices(spec.embed_tokens()).collect();
    for layer in spec.layers.clone() {
        all.push(vector(spec.input_layernorm(layer), spec.hidden_size));
        all.extend(matrices(spec.qkv_proj(layer)));
        all.extend(spec.qkv_bias(layer).map(|(name, len, _)| vector(name, len)));
        all.extend(matrices(spec.o_proj(layer)));
        all.push(vector(spec.post_attention_layernorm(layer), spec.hidden_size));
        all.extend(matrices(spec.gate_up_proj(layer)));
        all.extend(matrices(spec.down_proj(layer)));
    }
    all.push(vector(spec.norm().into(), spec.hidden_size));
    if !spec.tie_word_embeddings {
        all.extend(matrices(spec.lm_head()));
    }
    all
}

fn new_tensor(weights: &QuantizedWeights<'_>, tensor: &Listed) -> Result<NewTensor> {
    let Listed { name, rows, cols } = tensor;
    let Some(in_file) = names::gguf(name) else {
        return Err(Error::unsupported(format!("tensor `{name}` in GGUF"), "GGUF has no name for it"));
    };
    Ok(match rows {
        Some(rows) => NewTensor { name: in_file, encoding: weights.encoding(name)?, shape: vec![*rows, *cols] },
        None => NewTensor { name: in_file, encoding: Encoding::F32, shape: vec![*cols] },
    })
}

/// Pass the bytes of `part` to `write`, in order: each thread computes a piece, then all pieces are written.
fn write_rows(
    part: &MatrixPart<'_>,
    threads: NonZero<usize>,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let at_once = (PIECE_BYTES / part.row_bytes.max(1)).max(1);
    let pieces: Vec<usize> = (0..part.rows).step_by(at_once).collect();
    let mut buffers = vec![Vec::new(); threads.get()];
    for starts in pieces.chunks(threads.get()) {
        let rows = |start: usize| start..(start + at_once).min(part.rows);
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let work = |(start, buffer): (&usize, &mut Vec<u8>)| {
                let rows = rows(*start);
                // The floating-point state is per thread.
                let _float_env = FloatEnv::enter();
                buffer.resize(rows.len() * part.row_bytes, 0);
                let mut read = Vec::new();
                let bytes = part.read(rows, &mut read)?;
                buffer.copy_from_slice(bytes);
                Ok(())
            };
            let handles: Vec<_> =
                starts.iter().zip(&mut buffers).map(|piece| scope.spawn(move || work(piece))).collect();
            // A panic is a bug, and is passed on to the caller.
            let join =
                |handle: std::thread::ScopedJoinHandle<'_, _>| handle.join().unwrap_or_else(|p| resume_unwind(p));
            handles.into_iter().map(join).collect()
        });
        results.into_iter().collect::<Result<()>>()?;
        for (_, buffer) in starts.iter().zip(&buffers) {
            write(buffer)?;
        }
    }
    Ok(())
}
