//! Commands that are queued and not submitted yet: kernels, recorded steps, and the host's writes before them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::runtime::array::Array;
use crate::runtime::pipelines::Kernel;

/// The host's upper bound for the values of an array of indices.
#[derive(Debug, Default)]
pub(crate) struct LargestValue {
    written: AtomicU32,
    by_kernel: AtomicBool,
}

impl LargestValue {
    /// The host writes `values`.
    pub(crate) fn write(&self, values: &[u32]) {
        self.written.store(values.iter().copied().max().unwrap_or(0), Ordering::Relaxed);
    }

    /// A kernel writes values that the host does not know, now or whenever its recorded step is replayed.
    pub(crate) fn write_by_kernel(&self) {
        self.by_kernel.store(true, Ordering::Relaxed);
    }

    /// No value is larger.
    pub(crate) fn get(&self) -> u32 {
        match self.by_kernel.load(Ordering::Relaxed) {
            true => u32::MAX,
            false => self.written.load(Ordering::Relaxed),
        }
    }
}

/// The grid of a kernel.
#[derive(Debug, Clone)]
pub(crate) enum Grid {
    /// Constant.
    Fixed([u32; 3]),
    /// One along z for each partition of `partition` positions of the longest context, which changes from step to step;
    /// at most `most`.
    Partitions { x: u32, y: u32, longest: Arc<LargestValue>, partition: u32, most: u32 },
}

impl Grid {
    /// A constant grid. Sizes beyond 32 bits saturate: no device has grids that large.
    pub(crate) fn fixed(size: [usize; 3]) -> Self {
        Grid::Fixed(size.map(|size| u32::try_from(size).unwrap_or(u32::MAX)))
    }

    /// The size for the current contexts.
    pub(crate) fn size(&self) -> [u32; 3] {
        match self {
            Grid::Fixed(size) => *size,
            Grid::Partitions { x, y, longest, partition, most } => {
                [*x, *y, longest.get().div_ceil(*partition).min(*most).max(1)]
            }
        }
    }

    /// The most workgroups along one dimension.
    pub(crate) fn longest_side(&self) -> u32 {
        match self {
            Grid::Fixed([x, y, z]) => *x.max(y).max(z),
            Grid::Partitions { x, y, most, .. } => *x.max(y).max(most),
        }
    }
}

/// The work of a kernel, as far as it is counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cost {
    /// Multiply-adds, roughly, with the contexts at the time of its recording.
    pub(crate) multiply_adds: u64,
    /// Bytes of weights that it reads.
    pub(crate) weight_bytes: u64,
    /// Bytes of K/V that it reads per position, and the longest context, which changes from step to step.
    pub(crate) kv: Option<(u64, Arc<LargestValue>)>,
}

/// A kernel with its grid.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    pub(crate) kernel: Kernel,
    pub(crate) grid: Grid,
    pub(crate) cost: Cost,
}

/// The kernels of a step, in order.
#[derive(Debug)]
pub struct RecordedStep(pub(crate) Vec<Dispatch>);

/// A host write: a range of the staged bytes, and its destination.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) array: Array,
    pub(crate) offset: u64,
    pub(crate) staged: u64,
    pub(crate) bytes: u64,
}

/// Commands that are queued but not submitted yet.
#[derive(Debug, Default)]
pub(crate) struct PendingCommands {
    /// The bytes of `writes`.
    pub(crate) staged: Vec<u8>,
    /// All of them precede all kernels.
    pub(crate) writes: Vec<Write>,
    pub(crate) steps: Vec<Arc<RecordedStep>>,
    /// Kernels since the last of `steps`.
    kernels: Vec<Dispatch>,
    /// Multiply-adds of `kernels`.
    multiply_adds: u64,
}

impl PendingCommands {
    /// Queue a kernel.
    pub(crate) fn push(&mut self, dispatch: Dispatch) {
        self.multiply_adds = self.multiply_adds.saturating_add(dispatch.cost.multiply_adds);
        self.kernels.push(dispatch);
    }

    /// Multiply-adds of the kernels since the last recorded step or submission.
    pub(crate) fn multiply_adds(&self) -> u64 {
        self.multiply_adds
    }

    /// Queue a recorded step.
    pub(crate) fn push_step(&mut self, step: Arc<RecordedStep>) {
        self.seal();
        self.steps.push(step);
    }

    /// Whether kernels are queued, which must not see a later host write.
    pub(crate) fn has_kernels(&self) -> bool {
        !self.kernels.is_empty() || !self.steps.is_empty()
    }

    /// Take the kernels since the last recorded step.
    pub(crate) fn take_kernels(&mut self) -> RecordedStep {
        self.multiply_adds = 0;
        RecordedStep(std::mem::take(&mut self.kernels))
    }

    /// Turn the kernels since the last step into a step.
    pub(crate) fn seal(&mut self) {
        if !self.kernels.is_empty() {
            let step = Arc::new(self.take_kernels());
            self.steps.push(step);
        }
    }
}
