//! How much memory a model takes on a device, computed before anything is loaded and without opening the device.

use std::fmt;

use super::layout::{KvSpec, ModelShape};
use super::matrix::WeightShape;
use crate::backend::Limits;
use crate::error::Result;
use crate::numerics::encoding::Encoding;

/// The sizes of a model's parts on a device: [`crate::model::plan::Plan`] adds them up.
///
/// The default bodies return the stored sizes, for devices that keep data as in the files. A refusal is
/// [`crate::Error::Unsupported`] with the figures: what the device cannot hold, however much memory it has.
///
/// ```
/// use qwen_core::backend::WeightShape;
/// use qwen_core::{Encoding, Footprint, Result};
///
/// /// A device that decodes all matrices to f32.
/// #[derive(Debug)]
/// struct Decoded;
///
/// impl Footprint for Decoded {
///     fn weight_bytes(&self, shape: &WeightShape) -> Result<u64> {
///         Ok(4 * (shape.rows() * shape.cols) as u64)
///     }
/// }
///
/// let shape = WeightShape { role: qwen_core::backend::WeightRole::Linear, parts: vec![(Encoding::Bf16, 8)], cols: 4 };
/// assert_eq!(Decoded.weight_bytes(&shape)?, 2 * shape.stored_bytes()?);
/// # Ok::<(), qwen_core::Error>(())
/// ```
pub trait Footprint: fmt::Debug + Send + Sync {
    /// Bytes that [`crate::Backend::load`] takes on the device for a matrix of this shape.
    ///
    /// # Errors
    /// When the device cannot hold such a matrix.
    fn weight_bytes(&self, shape: &WeightShape) -> Result<u64> {
        shape.stored_bytes()
    }

    /// Bytes that [`crate::Backend::kv`] takes on the device. A device that supports K/V in block encodings overrides
    /// it; the default refuses them.
    ///
    /// # Errors
    /// When the device cannot hold such a store.
    fn kv_bytes(&self, spec: &KvSpec) -> Result<u64> {
        spec.check_encodings("this device", &[Encoding::F32, Encoding::F16])?;
        Ok(spec.stored_bytes())
    }

    /// The most bytes that the kernels of a step use in addition to the model's buffers.
    ///
    /// # Errors
    /// When the device cannot hold the buffers of the model for steps this large.
    fn workspace_bytes(&self, limits: &Limits, shape: &ModelShape) -> Result<u64> {
        let _ = (limits, shape);
        Ok(0)
    }

    /// Bytes of the device's memory that a matrix of `stored` bytes takes while it is packed, in addition to its packed
    /// form: by default the stored matrix, as for a device that shares the host's memory.
    fn staging_bytes(&self, stored: u64) -> u64 {
        stored
    }

    /// Whether [`crate::Backend::gate_up_silu`] needs no scratch buffer, so that none is allocated.
    fn fuses_gate_up(&self) -> bool {
        false
    }
}

/// The footprint of a device that keeps weights and K/V as stored, with K/V in F32 or F16 only, and needs no further
/// memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredSizes;

impl Footprint for StoredSizes {}
