//! A driver that runs nothing: it hands out addresses and checks what it is asked, so that the launches of models too
//! large for any machine at hand can be looked over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Driver, Fault, GraphId, Launch, Outcome, host};
use crate::card_info::CardInfo;
use crate::gpu::taken_bytes;
use crate::kernel::Kernel;

/// The first address that is handed out.
const FIRST: u64 = 1 << 32;

/// What was asked of a [`Recorder`] so far.
#[derive(Debug, Default, Clone)]
pub(crate) struct Asked {
    /// Live memory by its address: what it is for, and its bytes.
    live: BTreeMap<u64, (String, usize)>,
    next: u64,
    prepared: HashSet<Kernel>,
    /// The arrays of the launches that are being captured.
    capturing: Option<Vec<(u64, usize)>>,
    /// Those of each graph.
    graphs: HashMap<GraphId, Vec<(u64, usize)>>,
    next_graph: GraphId,
    /// Whether memory may neither be taken nor given back.
    frozen: bool,
    /// Whether the next wait finds that the context is lost.
    lost: bool,
    /// Calls that were made when they may not be, and cannot fail themselves.
    pub(crate) violations: Vec<String>,
    /// Kernels that were launched by name, in order, those of a capture included.
    pub(crate) launched: Vec<Kernel>,
    pub(crate) graphs_launched: usize,
}

impl Asked {
    /// Bytes of a card's memory that live arrays take.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live.values().map(|(_, bytes)| taken_bytes(*bytes)).sum()
    }
}

/// The driver. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    info: CardInfo,
    asked: Arc<Mutex<Asked>>,
}

impl Recorder {
    /// A card of this compute capability, with as much memory as one likes.
    pub(crate) fn new(compute_capability: (u32, u32)) -> Self {
        let max_shared_bytes = match compute_capability {
            (7, 5) => 64 << 10,
            (8, 0) => 163 << 10,
            (9, 0) => 227 << 10,
            _ => 99 << 10,
        };
        let info = CardInfo {
            ordinal: 0,
            name: "recorder".into(),
            compute_capability,
            multiprocessors: 132,
            memory: 1 << 50,
            max_shared_bytes,
            driver: (12, 1),
        };
        let asked = Asked { next: FIRST, ..Asked::default() };
        Recorder { info, asked: Arc::new(Mutex::new(asked)) }
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Asked {
        self.lock().clone()
    }

    /// From now on memory may neither be taken nor given back, or may again.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.lock().frozen = frozen;
    }

    /// The next wait finds that a kernel has faulted.
    pub(crate) fn lose(&self) {
        self.lock().lost = true;
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap()
    }

    fn outside_of_capture(&self, what: &str) -> Outcome<()> {
        match self.lock().capturing.is_some() {
            true => Err(Fault::Refused(format!("{what} during a capture"))),
            false => Ok(()),
        }
    }

    fn within(&self, what: &str, address: u64, bytes: usize) -> Outcome<()> {
        let asked = self.lock();
        let array = asked.live.range(..=address).next_back();
        match array {
            Some((start, (_, held))) if address + bytes as u64 <= start + *held as u64 => Ok(()),
            _ => Err(Fault::Refused(format!("{what} of {bytes} bytes at {address:#x}, which are not all taken"))),
        }
    }

    fn check(&self, launch: &Launch) -> std::result::Result<(), String> {
        let Launch { kernel, grid: [x, y, z], params, touched } = launch;
        if *x >= 1 << 31 || *y > 65_535 || *z > 65_535 || x * y.min(&1) * z.min(&1) == 0 {
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
        let asked = self.lock();
        if !asked.prepared.contains(kernel) {
            return Err("it was never prepared".into());
        }
        for touched in touched {
            match asked.live.get(&touched.array.address) {
                Some((_, bytes)) if *bytes >= touched.bytes => {}
                Some((what, bytes)) => {
                    return Err(format!("`{}`: {} bytes of {what}, which has {bytes}", touched.name, touched.bytes));
                }
                None => return Err(format!("`{}` is not alive", touched.name)),
            }
        }
        for (field, address) in params.addresses(kernel.fields()) {
            if address != 0 && !touched.iter().any(|touched| touched.array.address == address) {
                return Err(format!("`{field}` is no array that the launch keeps"));
            }
        }
        Ok(())
    }
}

impl Driver for Recorder {
    fn info(&self) -> &CardInfo {
        &self.info
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(self.info.memory)
    }

    fn alloc(&self, what: &str, bytes: usize) -> Outcome<u64> {
        self.outside_of_capture("memory was taken")?;
        let mut asked = self.lock();
        if asked.frozen {
            return Err(Fault::Refused(format!("{bytes} bytes for {what} were taken within a step")));
        }
        if asked.live_bytes() + bytes as u64 > self.info.memory {
            return Err(Fault::OutOfMemory);
        }
        let address = asked.next;
        // A gap, so that what runs over the end is in nothing.
        asked.next += (bytes as u64 + 256).next_multiple_of(256);
        asked.live.insert(address, (what.into(), bytes));
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let mut asked = self.lock();
        let known = asked.live.remove(&address).is_some();
        if asked.frozen || asked.capturing.is_some() || !known {
            asked.violations.push(format!("memory at {address:#x} was given back, known: {known}"));
        }
    }

    fn pin(&self, bytes: usize) -> Outcome<NonNull<u8>> {
        self.outside_of_capture("memory was pinned")?;
        if self.lock().frozen {
            return Err(Fault::Refused(format!("{bytes} bytes were pinned within a step")));
        }
        host::take(bytes)
    }

    unsafe fn unpin(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: as the caller says.
        unsafe { host::give(start, bytes) }
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
        let mut asked = self.lock();
        asked.launched.push(launch.kernel);
        if let Some(captured) = &mut asked.capturing {
            captured.extend(launch.touched.iter().map(|touched| (touched.array.address, touched.bytes)));
        }
        Ok(())
    }

    fn begin_capture(&self) -> Outcome<()> {
        self.outside_of_capture("a capture began")?;
        self.lock().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Outcome<GraphId> {
        let mut asked = self.lock();
        let Some(captured) = asked.capturing.take() else {
            return Err(Fault::Refused("no capture had begun".into()));
        };
        let id = asked.next_graph;
        asked.next_graph += 1;
        asked.graphs.insert(id, captured);
        Ok(id)
    }

    unsafe fn launch_graph(&self, graph: GraphId) -> Outcome<()> {
        self.outside_of_capture("a graph was launched")?;
        let mut asked = self.lock();
        asked.graphs_launched += 1;
        let Some(arrays) = asked.graphs.get(&graph) else {
            return Err(Fault::Refused(format!("there is no graph {graph}")));
        };
        let alive = |(start, bytes): &(u64, usize)| asked.live.get(start).is_some_and(|(_, held)| held >= bytes);
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
