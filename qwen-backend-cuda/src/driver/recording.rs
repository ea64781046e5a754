//! A driver that runs nothing: it allocates only addresses and checks every call, to test the launches of models too
//! large for the machine.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Driver, Fault, GraphId, Launch, Outcome, host};
use crate::device::DeviceProperties;
use crate::kernel::Kernel;
use crate::sizes::taken_bytes;

/// The first address.
const FIRST: u64 = 1 << 32;

/// The calls that a [`RecordingDriver`] has seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Calls {
    /// Live memory by address: its name and its bytes.
    live: BTreeMap<u64, (String, usize)>,
    next: u64,
    prepared: HashSet<Kernel>,
    /// The arrays of the launches that are being captured.
    capturing: Option<Vec<(u64, usize)>>,
    /// The arrays of each graph.
    graphs: HashMap<GraphId, Vec<(u64, usize)>>,
    next_graph: GraphId,
    /// Whether memory may be neither allocated nor freed.
    frozen: bool,
    /// Whether the next wait finds that the context is lost.
    lost: bool,
    /// Forbidden calls that cannot return an error.
    pub(crate) violations: Vec<String>,
    /// Launched kernels in order, including those of a capture.
    pub(crate) launched: Vec<Kernel>,
    /// Bytes of matrices that the launched products read, once for each.
    pub(crate) matrix_bytes: u64,
    pub(crate) graphs_launched: usize,
}

impl Calls {
    /// Bytes of GPU memory in live arrays.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live.values().map(|(_, bytes)| taken_bytes(*bytes)).sum()
    }
}

/// The driver. Clones share their state.
#[derive(Debug, Clone)]
pub(crate) struct RecordingDriver {
    info: DeviceProperties,
    calls: Arc<Mutex<Calls>>,
}

impl RecordingDriver {
    /// A GPU of this compute capability, with unlimited memory.
    pub(crate) fn new(compute_capability: (u32, u32)) -> Self {
        let max_shared_bytes = match compute_capability {
            (7, 5) => 64 << 10,
            (8, 0) => 163 << 10,
            (9, 0) => 227 << 10,
            _ => 99 << 10,
        };
        let info = DeviceProperties {
            ordinal: 0,
            name: "recorder".into(),
            compute_capability,
            multiprocessors: 132,
            memory: 1 << 50,
            max_shared_bytes,
            driver: (12, 1),
        };
        let calls = Calls { next: FIRST, ..Calls::default() };
        RecordingDriver { info, calls: Arc::new(Mutex::new(calls)) }
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Calls {
        self.lock().clone()
    }

    /// Forbid, or allow again, allocating and freeing memory.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.lock().frozen = frozen;
    }

    /// The next wait reports that a kernel has faulted.
    pub(crate) fn lose(&self) {
        self.lock().lost = true;
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap()
    }

    fn outside_of_capture(&self, what: &str) -> Outcome<()> {
        match self.lock().capturing.is_some() {
            true => Err(Fault::Refused(format!("{what} during a capture"))),
            false => Ok(()),
        }
    }

    fn within(&self, what: &str, address: u64, bytes: usize) -> Outcome<()> {
        let calls = self.lock();
        let array = calls.live.range(..=address).next_back();
        match array {
            Some((start, (_, held))) if address + bytes as u64 <= start + *held as u64 => Ok(()),
            _ => Err(Fault::Refused(format!("{what} of {bytes} bytes at {address:#x}, which are not all taken"))),
        }
    }

    fn check(&self, launch: &Launch) -> std::result::Result<(), String> {
        let Launch { kernel, grid: [x, y, z], params, accessed } = launch;
        if *x >= 1 << 31 || *y > 65_535 || *z > 65_535 || [x, y, z].contains(&&0) {
            return Err(format!("a grid of {x} x {y} x {z}"));
        }
        if kernel.threads() > 1024 || !kernel.threads().is_multiple_of(32) {
            return Err(format!("{} threads", kernel.threads()));
        }
        if kernel.shared_bytes() > self.info.max_shared_bytes as usize {
            return Err(format!("{} bytes of shared memory", kernel.shared_bytes()));
        }
        if kernel.needs_tensor_cores() && !self.info.has_tensor_cores() {
            return Err("there are no such tensor cores".into());
        }
        let calls = self.lock();
        if !calls.prepared.contains(kernel) {
            return Err("it was never prepared".into());
        }
        for access in accessed {
            match calls.live.get(&access.array.address) {
                Some((_, bytes)) if *bytes >= access.bytes => {}
                Some((what, bytes)) => {
                    return Err(format!("`{}`: {} bytes of {what}, which has {bytes}", access.name, access.bytes));
                }
                None => return Err(format!("`{}` is not alive", access.name)),
            }
        }
        for (field, address) in params.addresses(kernel.fields()) {
            if address != 0 && !accessed.iter().any(|access| access.array.address == address) {
                return Err(format!("`{field}` is not an array that the launch keeps"));
            }
        }
        Ok(())
    }
}

impl Driver for RecordingDriver {
    fn info(&self) -> &DeviceProperties {
        &self.info
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(self.info.memory)
    }

    fn alloc(&self, what: &str, bytes: usize) -> Outcome<u64> {
        self.outside_of_capture("memory was taken")?;
        let mut calls = self.lock();
        if calls.frozen {
            return Err(Fault::Refused(format!("{bytes} bytes for {what} were taken within a step")));
        }
        if calls.live_bytes().saturating_add(bytes as u64) > self.info.memory {
            return Err(Fault::OutOfMemory);
        }
        let address = calls.next;
        // A gap, so that an overrun is not in another array.
        calls.next += (bytes as u64 + 256).next_multiple_of(256);
        calls.live.insert(address, (what.into(), bytes));
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let mut calls = self.lock();
        let known = calls.live.remove(&address).is_some();
        if calls.frozen || calls.capturing.is_some() || !known {
            calls.violations.push(format!("memory at {address:#x} was given back, known: {known}"));
        }
    }

    fn pin(&self, bytes: usize) -> Outcome<NonNull<u8>> {
        self.outside_of_capture("memory was pinned")?;
        if self.lock().frozen {
            return Err(Fault::Refused(format!("{bytes} bytes were pinned within a step")));
        }
        host::alloc(bytes)
    }

    unsafe fn unpin(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: as the caller says.
        unsafe { host::free(start, bytes) }
    }

    unsafe fn zero(&self, to: u64, bytes: usize) -> Outcome<()> {
        self.outside_of_capture("zeros were written")?;
        self.within("zeros", to, bytes)
    }

    unsafe fn upload(&self, to: u64, _from: *const u8, bytes: usize) -> Outcome<()> {
        self.outside_of_capture("the host wrote")?;
        self.within("a copy", to, bytes)
    }

    unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Outcome<()> {
        self.outside_of_capture("the host read")?;
        // SAFETY: as the caller says.
        unsafe { to.write_bytes(0, bytes) };
        self.within("a copy", from, bytes)
    }

    fn prepare(&self, kernel: Kernel) -> Outcome<()> {
        self.outside_of_capture("a kernel was prepared")?;
        self.lock().prepared.insert(kernel);
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Outcome<()> {
        self.check(launch).map_err(|reason| Fault::Refused(format!("{}: {reason}", launch.kernel)))?;
        let mut calls = self.lock();
        calls.launched.push(launch.kernel);
        let matrices = launch.accessed.iter().filter(|access| access.name == "w");
        calls.matrix_bytes += matrices.map(|access| access.bytes as u64).sum::<u64>();
        if let Some(captured) = &mut calls.capturing {
            captured.extend(launch.accessed.iter().map(|access| (access.array.address, access.bytes)));
        }
        Ok(())
    }

    fn begin_capture(&self) -> Outcome<()> {
        self.outside_of_capture("a capture began")?;
        self.lock().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Outcome<GraphId> {
        let mut calls = self.lock();
        let Some(captured) = calls.capturing.take() else {
            return Err(Fault::Refused("no capture had begun".into()));
        };
        let id = calls.next_graph;
        calls.next_graph += 1;
        calls.graphs.insert(id, captured);
        Ok(id)
    }

    unsafe fn launch_graph(&self, graph: GraphId) -> Outcome<()> {
        self.outside_of_capture("a graph was launched")?;
        let mut calls = self.lock();
        calls.graphs_launched += 1;
        let Some(arrays) = calls.graphs.get(&graph) else {
            return Err(Fault::Refused(format!("there is no graph {graph}")));
        };
        let alive = |(start, bytes): &(u64, usize)| calls.live.get(start).is_some_and(|(_, held)| held >= bytes);
        match arrays.iter().all(alive) {
            true => Ok(()),
            false => Err(Fault::Refused(format!("graph {graph} has arrays that were given back"))),
        }
    }

    fn drop_graph(&self, graph: GraphId) {
        self.lock().graphs.remove(&graph);
    }

    fn mark(&self, _mark: usize) -> Outcome<()> {
        self.outside_of_capture("a mark was set")
    }

    fn wait_mark(&self, _mark: usize) -> Outcome<()> {
        self.outside_of_capture("a mark was waited for")
    }

    fn wait(&self) -> Outcome<()> {
        self.outside_of_capture("the host waited")?;
        match self.lock().lost {
            true => Err(Fault::Lost("an illegal memory access".into())),
            false => Ok(()),
        }
    }
}
