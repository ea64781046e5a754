//! An emulated GPU: kernels run on the CPU, synchronously.
//!
//! Its memory is host memory, initially filled with NaNs. Guard words before and after each array are checked after
//! every kernel, and one that wrote beyond an array is reported with its name.

use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

use super::library::{Kernels, Recorded};
use super::{Driver, Fault, GraphId, Launch, Outcome, host};
use crate::device::DeviceProperties;
use crate::kernel::Kernel;
use crate::lock::lock;

/// Bytes of the guard on either side of an array, and the byte that fills it: a NaN as f32, out of range as an index.
const GUARD: usize = host::ALIGN;
const GUARD_BYTE: u8 = 0xff;

/// Guards differ from what the emulator poisons memory with, so that a copy of poison is detected, too.
const GUARD_WORD: [u8; 4] = [0x5a, 0xa5, 0xff, 0xff];

/// The properties of an emulated GPU, and how its threads run.
#[derive(Debug, Clone)]
pub struct EmulatedGpu {
    kernels: Kernels,
    compute_capability: (u32, u32),
    reverse: bool,
}

impl EmulatedGpu {
    /// A GPU of compute capability 9.0 whose threads run in order.
    pub fn new(kernels: &Kernels) -> Self {
        EmulatedGpu { kernels: kernels.clone(), compute_capability: (9, 0), reverse: false }
    }

    /// The compute capability, which decides the kernels that the backend chooses.
    pub fn compute_capability(mut self, major: u32, minor: u32) -> Self {
        self.compute_capability = (major, minor);
        self
    }

    /// Run the threads of a block in reverse. One order shows a missing barrier that the other hides.
    pub fn reverse(mut self, reverse: bool) -> Self {
        self.reverse = reverse;
        self
    }
}

#[derive(Debug)]
struct Allocation {
    what: String,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: memory like that of a vector, which only the driver's table owns.
unsafe impl Send for Allocation {}

#[derive(Debug, Default)]
struct State {
    /// Keyed by the address of the array, which follows its guard.
    allocations: BTreeMap<u64, Allocation>,
    capturing: Option<Vec<Recorded>>,
    graphs: HashMap<GraphId, Vec<Recorded>>,
    next_graph: GraphId,
}

/// The driver of an [`EmulatedGpu`].
#[derive(Debug)]
pub(crate) struct Emulated {
    info: DeviceProperties,
    gpu: EmulatedGpu,
    state: Mutex<State>,
}

impl Emulated {
    pub(crate) fn new(gpu: EmulatedGpu) -> Self {
        let info = DeviceProperties {
            ordinal: 0,
            name: "emulated".into(),
            compute_capability: gpu.compute_capability,
            multiprocessors: 4,
            memory: 256 << 20,
            max_shared_bytes: if gpu.compute_capability >= (8, 0) { 99 << 10 } else { 64 << 10 },
            driver: (12, 1),
        };
        Emulated { info, gpu, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Run a kernel and check all guards.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(&self, state: &State, launch: &Recorded) -> Outcome<()> {
        // SAFETY: as the caller says.
        unsafe { self.gpu.kernels.run(launch, self.gpu.reverse) }?;
        for allocation in state.allocations.values() {
            if !allocation.is_whole() {
                let Allocation { what, bytes, .. } = allocation;
                return Err(Fault::Lost(format!("{} wrote beyond `{what}`, an array of {bytes} bytes", launch.kernel)));
            }
        }
        Ok(())
    }
}

impl Allocation {
    fn new(what: &str, bytes: usize) -> Outcome<Self> {
        let start = host::alloc(bytes.checked_add(2 * GUARD).ok_or(Fault::OutOfMemory)?)?;
        // SAFETY: this many bytes were just allocated.
        unsafe {
            start.as_ptr().write_bytes(GUARD_BYTE, bytes + 2 * GUARD);
            for guard in [0, GUARD + bytes] {
                for word in 0..GUARD / 4 {
                    start.as_ptr().add(guard + 4 * word).cast::<[u8; 4]>().write_unaligned(GUARD_WORD);
                }
            }
        }
        Ok(Allocation { what: what.into(), start, bytes })
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64 + GUARD as u64
    }

    fn is_whole(&self) -> bool {
        [0, GUARD + self.bytes].into_iter().all(|guard| {
            // SAFETY: the guards are part of the memory.
            let bytes = unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(guard), GUARD) };
            bytes.as_chunks().0.iter().all(|word| *word == GUARD_WORD)
        })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this size, freed once.
        unsafe { host::free(self.start, self.bytes + 2 * GUARD) }
    }
}

impl Driver for Emulated {
    fn info(&self) -> &DeviceProperties {
        &self.info
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn alloc(&self, what: &str, bytes: usize) -> Outcome<u64> {
        let allocation = Allocation::new(what, bytes)?;
        let address = allocation.address();
        self.state().allocations.insert(address, allocation);
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        self.state().allocations.remove(&address);
    }

    fn pin(&self, bytes: usize) -> Outcome<NonNull<u8>> {
        host::alloc(bytes)
    }

    unsafe fn unpin(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: as the caller says.
        unsafe { host::free(start, bytes) }
    }

    unsafe fn zero(&self, to: u64, bytes: usize) -> Outcome<()> {
        // SAFETY: as the caller says; addresses are those of the host.
        unsafe { (to as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Outcome<()> {
        // SAFETY: as above.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(from, bytes) };
        Ok(())
    }

    unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Outcome<()> {
        // SAFETY: as above.
        unsafe { to.copy_from_nonoverlapping(from as *const u8, bytes) };
        Ok(())
    }

    fn prepare(&self, kernel: Kernel) -> Outcome<()> {
        let expected: usize = kernel.fields().iter().map(|field| field.bytes).sum();
        if kernel.needs_tensor_cores() && !self.info.has_tensor_cores() {
            return Err(Fault::Refused(format!("{kernel} needs compute capability 8.0")));
        }
        match self.gpu.kernels.params_size(kernel) {
            Some(size) if size == expected => Ok(()),
            Some(size) => Err(Fault::Refused(format!("{kernel} takes {size} bytes of parameters, not {expected}"))),
            None => Err(Fault::Refused(format!("there is no kernel `{kernel}`"))),
        }
    }

    unsafe fn launch(&self, launch: &Launch) -> Outcome<()> {
        let recorded = Recorded { kernel: launch.kernel, grid: launch.grid, params: launch.params };
        let mut state = self.state();
        match &mut state.capturing {
            Some(captured) => captured.push(recorded),
            // SAFETY: as the caller says.
            None => unsafe { self.run(&state, &recorded) }?,
        }
        Ok(())
    }

    fn begin_capture(&self) -> Outcome<()> {
        self.state().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Outcome<GraphId> {
        let mut state = self.state();
        let captured = state.capturing.take().unwrap_or_default();
        let id = state.next_graph;
        state.next_graph += 1;
        state.graphs.insert(id, captured);
        Ok(id)
    }

    unsafe fn launch_graph(&self, graph: GraphId) -> Outcome<()> {
        let state = self.state();
        // SAFETY: as the caller says.
        state.graphs.get(&graph).into_iter().flatten().try_for_each(|launch| unsafe { self.run(&state, launch) })
    }

    fn drop_graph(&self, graph: GraphId) {
        self.state().graphs.remove(&graph);
    }

    fn mark(&self, _mark: usize) -> Outcome<()> {
        Ok(())
    }

    fn wait_mark(&self, _mark: usize) -> Outcome<()> {
        Ok(())
    }

    fn wait(&self) -> Outcome<()> {
        Ok(())
    }
}
