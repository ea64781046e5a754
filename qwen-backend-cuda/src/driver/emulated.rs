//! Kernels on the processor: a library that g++ makes of their sources (emulator/), called in place of a card's driver.
//!
//! Everything runs as it is asked for. Memory is the host's, filled with NaNs at first, with guard words before and
//! after each array that are looked at after every kernel: one that wrote beyond an array is named with it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libloading::Library;
use qwen_core::{Error, Result};

use super::{Driver, Fault, GraphId, Launch, Outcome, host};
use crate::card_info::CardInfo;
use crate::kernel::Kernel;
use crate::params::Packed;

/// Bytes of the guard on either side of an array, and what they are filled with: as f32 a NaN, as an index none.
const GUARD: usize = host::ALIGN;
const GUARD_BYTE: u8 = 0xff;

/// Guards begin otherwise than what kernels poison with, so that a copy of poison is seen, too.
const GUARD_WORD: [u8; 4] = [0x5a, 0xa5, 0xff, 0xff];

/// The kernels compiled for the processor.
///
/// ```no_run
/// use qwen_backend_cuda::emulator::{EmulatedCard, Kernels};
/// use qwen_backend_cuda::{CudaBackend, CudaOptions};
/// let kernels = Kernels::build(&std::env::temp_dir())?;
/// let card = EmulatedCard::new(&kernels).compute_capability(9, 0);
/// let backend = CudaBackend::new(CudaOptions::new().emulated(card))?;
/// # let _ = backend;
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Kernels(Arc<Mutex<Calls>>);

/// The functions of the library. Its state is global: calls of a process are made one after the other.
#[derive(Debug)]
struct Calls {
    emulate: Emulate,
    params_size: unsafe extern "C" fn(*const c_char) -> c_int,
    waits: unsafe extern "C" fn(*mut c_char, c_ulong) -> c_int,
    without: unsafe extern "C" fn(*const c_char),
    /// Where threads waited since somebody asked.
    waited: BTreeSet<String>,
    /// Keeps the functions there.
    _library: Library,
}

impl Calls {
    /// Where threads of the last kernel waited.
    fn last_waits(&self) -> Vec<String> {
        // SAFETY: without room it only says how many bytes it needs; then it is given as many.
        let text = unsafe {
            let needed = (self.waits)(std::ptr::null_mut(), 0);
            let mut text = vec![0_u8; needed.max(1) as usize];
            (self.waits)(text.as_mut_ptr().cast(), text.len() as c_ulong);
            text
        };
        lines(&text)
    }
}

type Emulate = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    c_uint,
    *const c_void,
    c_int,
    *mut c_char,
    c_ulong,
) -> c_int;

impl Kernels {
    /// Compile the kernels into `folder`, unless it holds them already, and load them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no compiler; [`Error::InvalidFile`] with what it says of the sources.
    pub fn build(folder: &Path) -> Result<Self> {
        Self::load(&compile(folder)?)
    }

    /// Load a library that emulator/build.sh made.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when it is no such library.
    pub fn load(path: &Path) -> Result<Self> {
        let invalid =
            |error: libloading::Error| Error::InvalidFile { path: path.to_path_buf(), reason: error.to_string() };
        // SAFETY: the library is the one that build.sh makes; it does nothing when it is loaded, and its functions have
        // these types.
        unsafe {
            let library = Library::new(path).map_err(invalid)?;
            Ok(Kernels(Arc::new(Mutex::new(Calls {
                emulate: *library.get(b"emulate").map_err(invalid)?,
                params_size: *library.get(b"emulated_params_size").map_err(invalid)?,
                waits: *library.get(b"emulated_waits").map_err(invalid)?,
                without: *library.get(b"emulate_without").map_err(invalid)?,
                waited: BTreeSet::new(),
                _library: library,
            }))))
        }
    }

    /// Where threads waited for each other or for a copy since this was asked last, as `FILE:LINE`.
    pub fn waits(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.calls().waited)
    }

    /// Pass over the wait `FILE:LINE` from now on, or over none: to show that it is needed and its absence found.
    pub fn without(&self, wait: Option<&str>) {
        let wait = CString::new(wait.unwrap_or_default()).unwrap_or_default();
        // SAFETY: it copies the text.
        unsafe { (self.calls().without)(wait.as_ptr()) }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a kernel's parameters; none where the library has no such kernel.
    pub(crate) fn params_size(&self, kernel: Kernel) -> Option<usize> {
        let name = CString::new(kernel.to_string()).ok()?;
        // SAFETY: it reads the name.
        usize::try_from(unsafe { (self.calls().params_size)(name.as_ptr()) }).ok()
    }

    /// Run a kernel.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(&self, launch: &Recorded, reverse: bool) -> Outcome<()> {
        let name = CString::new(launch.kernel.to_string()).unwrap_or_default();
        let block = [launch.kernel.threads() as c_uint, 1, 1];
        let mut message = [0_u8; 512];
        let mut calls = self.calls();
        // SAFETY: as the caller says; the message is cut to its room.
        let failed = unsafe {
            (calls.emulate)(
                name.as_ptr(),
                launch.grid.as_ptr(),
                block.as_ptr(),
                launch.kernel.shared_bytes() as c_uint,
                launch.params.as_ptr().cast(),
                c_int::from(reverse),
                message.as_mut_ptr().cast(),
                message.len() as c_ulong,
            )
        };
        let waits = calls.last_waits();
        calls.waited.extend(waits);
        match failed {
            0 => Ok(()),
            // As on a card, whose context a fault takes with it.
            _ => Err(Fault::Lost(lines(&message).join(" "))),
        }
    }
}

fn lines(text: &[u8]) -> Vec<String> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).lines().map(str::to_string).collect()
}

/// The library of these sources in `folder`.
fn compile(folder: &Path) -> Result<PathBuf> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = crate_folder.join("emulator/build.sh");
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    let mut hasher = DefaultHasher::new();
    for sources in ["kernels", "emulator"] {
        let sources = crate_folder.join(sources);
        let entries = std::fs::read_dir(&sources).map_err(io(&sources))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.is_file());
        files.sort();
        for file in files {
            (&file, std::fs::read(&file).map_err(io(&file))?).hash(&mut hasher);
        }
    }
    let library = folder.join(format!("qwen-cuda-kernels-{:016x}.so", hasher.finish()));
    if library.exists() {
        return Ok(library);
    }
    // Another process may be at it: each makes its own, and the last one stays.
    let unfinished = folder.join(format!("qwen-cuda-kernels-{}.tmp", std::process::id()));
    let ran = Command::new("sh").arg(&script).arg(&unfinished).output();
    let output =
        ran.map_err(|error| Error::unsupported("the emulator of CUDA kernels", format!("no shell: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(match output.status.code() {
            Some(126 | 127) => Error::unsupported("the emulator of CUDA kernels", format!("no g++: {}", text.trim())),
            _ => Error::InvalidFile { path: script, reason: text },
        });
    }
    std::fs::rename(&unfinished, &library).map_err(io(&library))?;
    Ok(library)
}

/// A card that is none: what it says of itself, and how its threads run.
#[derive(Debug, Clone)]
pub struct EmulatedCard {
    kernels: Kernels,
    compute_capability: (u32, u32),
    reverse: bool,
}

impl EmulatedCard {
    /// A card of compute capability 9.0 whose threads run in order.
    pub fn new(kernels: &Kernels) -> Self {
        EmulatedCard { kernels: kernels.clone(), compute_capability: (9, 0), reverse: false }
    }

    /// What the card says it can do: decides which kernels are taken.
    pub fn compute_capability(mut self, major: u32, minor: u32) -> Self {
        self.compute_capability = (major, minor);
        self
    }

    /// Run the threads of a block backwards. A missing barrier that one order hides shows in the other.
    pub fn reverse(mut self, reverse: bool) -> Self {
        self.reverse = reverse;
        self
    }
}

/// A launch without what it keeps alive: a graph's owner keeps that.
#[derive(Debug, Clone)]
struct Recorded {
    kernel: Kernel,
    grid: [u32; 3],
    params: Packed,
}

#[derive(Debug)]
struct Allocation {
    what: String,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: memory like that of a vector, owned by the driver's table.
unsafe impl Send for Allocation {}

#[derive(Debug, Default)]
struct State {
    /// By the address of the array, behind its guard.
    allocations: BTreeMap<u64, Allocation>,
    capturing: Option<Vec<Recorded>>,
    graphs: HashMap<GraphId, Vec<Recorded>>,
    next_graph: GraphId,
}

/// The driver of an [`EmulatedCard`].
#[derive(Debug)]
pub(crate) struct Emulated {
    info: CardInfo,
    card: EmulatedCard,
    state: Mutex<State>,
}

impl Emulated {
    pub(crate) fn new(card: EmulatedCard) -> Self {
        let info = CardInfo {
            ordinal: 0,
            name: "emulated".into(),
            compute_capability: card.compute_capability,
            multiprocessors: 4,
            memory: 1 << 30,
            max_shared_bytes: if card.compute_capability >= (8, 0) { 99 << 10 } else { 64 << 10 },
            driver: (12, 1),
        };
        Emulated { info, card, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run a kernel and look at all guards.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(&self, state: &State, launch: &Recorded) -> Outcome<()> {
        // SAFETY: as the caller says.
        unsafe { self.card.kernels.run(launch, self.card.reverse) }?;
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
        let start = host::take(bytes + 2 * GUARD)?;
        // SAFETY: so many bytes were just taken.
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
        // SAFETY: taken by `new` with so many bytes, given back once.
        unsafe { host::give(self.start, self.bytes + 2 * GUARD) }
    }
}

impl Driver for Emulated {
    fn info(&self) -> &CardInfo {
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
        host::take(bytes)
    }

    unsafe fn unpin(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: as the caller says.
        unsafe { host::give(start, bytes) }
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
        match self.card.kernels.params_size(kernel) {
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
