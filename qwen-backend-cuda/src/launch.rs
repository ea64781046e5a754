//! Builds the launch of a kernel and checks it: every array belongs to this backend and is long enough, every size fits
//! in the kernels' 32 bits, every grid is within the limits of a GPU.

use qwen_core::Result;

use crate::driver::{Accessed, Array, Command, Launch};
use crate::gpu::Gpu;
use crate::kernel::Kernel;
use crate::params::{Address, Params};
use crate::sizes::{kernel_size, product};

/// The most blocks of a grid along x, y and z, on every GPU.
const MAX_BLOCKS: [usize; 3] = [(1 << 31) - 1, 65_535, 65_535];

/// The arguments of a launch, checked one by one.
#[derive(Debug)]
pub(crate) struct Args<'a> {
    gpu: &'a Gpu,
    op: &'static str,
    accessed: Vec<Accessed>,
}

impl<'a> Args<'a> {
    /// Begin the launch of a kernel of the operation `op`.
    pub(crate) fn new(gpu: &'a Gpu, op: &'static str) -> Self {
        Args { gpu, op, accessed: Vec::new() }
    }

    /// The address of `array`, of which the kernel reads or writes the first bytes, as many as the product of `bytes`.
    pub(crate) fn take(&mut self, name: &'static str, array: &Array, bytes: &[usize]) -> Result<Address> {
        self.gpu.check_owner(self.op, array)?;
        let bytes = product(name, bytes)?;
        if bytes > array.bytes {
            let reason = format!("`{name}` holds {} bytes, {bytes} are needed", array.bytes);
            return Err(self.gpu.error(self.op, reason));
        }
        self.accessed.push(Accessed { name, array: array.clone(), bytes });
        Ok(Address(array.address))
    }

    /// The same of an array that may be missing: null if it is.
    pub(crate) fn take_if(&mut self, name: &'static str, array: Option<&Array>, bytes: &[usize]) -> Result<Address> {
        array.map_or(Ok(Address::NULL), |array| self.take(name, array, bytes))
    }

    /// A size as a kernel parameter.
    pub(crate) fn size(&self, size: usize) -> Result<u32> {
        let refused = || self.gpu.error(self.op, format!("a size of {size}, kernels count to {}", i32::MAX));
        kernel_size(size).ok_or_else(refused)
    }

    /// The command to launch `kernel`; `None` if its grid has no blocks.
    pub(crate) fn launch(self, kernel: Kernel, grid: [usize; 3], params: &impl Params) -> Result<Option<Command>> {
        if grid.contains(&0) {
            return Ok(None);
        }
        if let Some(axis) = (0..3).find(|axis| grid[*axis] > MAX_BLOCKS[*axis]) {
            let (axis, blocks, most) = (["x", "y", "z"][axis], grid[axis], MAX_BLOCKS[axis]);
            return Err(self.gpu.error(self.op, format!("{blocks} blocks along {axis}, a GPU takes {most}")));
        }
        let (grid, params) = (grid.map(|size| size as u32), params.pack());
        debug_assert_eq!(params.len(), kernel.fields().iter().map(|field| field.bytes).sum::<usize>(), "{kernel}");
        let launch = Launch { kernel, grid, params, accessed: self.accessed };
        Ok(Some(Command::Launch(self.op, launch)))
    }
}
