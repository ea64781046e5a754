//! The memory that the kernels of a step need in addition to the model's buffers: allocated once, with the sizes of
//! [`crate::geometry::WorkspaceSizes`].

use qwen_core::Result;

use crate::geometry::WorkspaceSizes;
use crate::runtime::array::Array;
use crate::runtime::device::Device;

/// An array of the workspace. If nothing was planned, as for a single operation in a test, it is allocated on first
/// use, and reallocated when a larger one is needed.
#[derive(Debug, Default)]
pub(crate) struct WorkspaceArray(Option<(Array, u64)>);

impl WorkspaceArray {
    fn new(device: &Device, what: &str, words: u64) -> Result<Self> {
        Ok(WorkspaceArray(if words > 0 { Some((device.array(what, words)?, words)) } else { None }))
    }

    /// The array, with at least `needed` words. If it has to be allocated, it gets `most` words.
    pub(crate) fn array(&mut self, device: &Device, what: &str, needed: u64, most: u64) -> Result<Array> {
        match &self.0 {
            Some((array, held)) if *held >= needed => Ok(array.clone()),
            _ => {
                let array = device.array(what, most.max(needed))?;
                self.0 = Some((array.clone(), most.max(needed)));
                Ok(array)
            }
        }
    }
}

/// All arrays of the workspace.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Partial results of attention.
    pub(crate) partials: WorkspaceArray,
    /// Activations as f16.
    pub(crate) f16_values: WorkspaceArray,
    /// Their scales, one per row.
    pub(crate) f16_scales: WorkspaceArray,
    /// Activations as signed bytes.
    pub(crate) signed_rows: WorkspaceArray,
}

impl Workspace {
    /// Allocate the workspace.
    ///
    /// # Errors
    /// When the device lacks the memory.
    pub(crate) fn new(device: &Device, sizes: &WorkspaceSizes) -> Result<Self> {
        Ok(Workspace {
            partials: WorkspaceArray::new(device, "partial results of attention", sizes.partials)?,
            f16_values: WorkspaceArray::new(device, "activations as f16", sizes.f16_values)?,
            f16_scales: WorkspaceArray::new(device, "scales of activations", sizes.f16_scales)?,
            signed_rows: WorkspaceArray::new(device, "activations as bytes", sizes.signed_rows)?,
        })
    }
}
