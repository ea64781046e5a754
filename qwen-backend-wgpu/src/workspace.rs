//! The memory that kernels of a step take beside the buffers of the model: allocated once, as
//! [`crate::geometry::WorkspaceSizes`] plans it.

use qwen_core::Result;

use crate::geometry::WorkspaceSizes;
use crate::runtime::array::Array;
use crate::runtime::device::Device;

/// An array of the workspace. Where nothing was planned, as for a single operation of a test, it is made when it is first
/// needed, and made anew when a larger one is.
#[derive(Debug, Default)]
pub(crate) struct WorkspaceArray(Option<(Array, u64)>);

impl WorkspaceArray {
    fn new(device: &Device, what: &str, words: u64) -> Result<Self> {
        Ok(WorkspaceArray(if words > 0 { Some((device.array(what, words)?, words)) } else { None }))
    }

    /// The array, which holds at least `needed` words. If it has to be made it holds `most` words.
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
    /// Their scales, one a row.
    pub(crate) f16_scales: WorkspaceArray,
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
        })
    }
}
