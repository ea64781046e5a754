//! The emulator's library: the kernels' sources compiled by g++ with emulator/, loaded and called.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use libloading::Library;
use qwen_core::{Error, Result};

use super::{Fault, Outcome};
use crate::kernel::Kernel;
use crate::lock::lock;
use crate::params::Packed;

/// A launch without its arrays, which the graph's owner keeps alive.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub(super) kernel: Kernel,
    pub(super) grid: [u32; 3],
    pub(super) params: Packed,
}

/// The kernels, compiled for the CPU.
///
/// ```no_run
/// use qwen_backend_cuda::emulator::{EmulatedGpu, Kernels};
/// use qwen_backend_cuda::{CudaBackend, CudaOptions};
/// let kernels = Kernels::build(&std::env::temp_dir())?;
/// let gpu = EmulatedGpu::new(&kernels).compute_capability(9, 0);
/// let backend = CudaBackend::new(CudaOptions::new().emulated(gpu))?;
/// # let _ = backend;
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Kernels(Arc<Mutex<Calls>>);

/// The functions of the library. Its state is global, so there is one call at a time per process.
#[derive(Debug)]
struct Calls {
    emulate: Emulate,
    params_size: unsafe extern "C" fn(*const c_char) -> c_int,
    names: unsafe extern "C" fn(*mut c_char, c_ulong) -> c_int,
    waits: unsafe extern "C" fn(*mut c_char, c_ulong) -> c_int,
    without: unsafe extern "C" fn(*const c_char),
    /// Where threads waited since the last call of [`Kernels::waits`].
    waited: BTreeSet<String>,
    /// Kernels that ran since the last call of [`Kernels::launched`].
    launched: BTreeSet<String>,
    /// Keeps the functions loaded.
    _library: Library,
}

impl Calls {
    /// Where threads of the last kernel waited.
    fn last_waits(&self) -> Vec<String> {
        listed(self.waits)
    }
}

/// The lines that a function of the library returns.
fn listed(function: unsafe extern "C" fn(*mut c_char, c_ulong) -> c_int) -> Vec<String> {
    // SAFETY: with a null pointer it only returns the size it needs; the second call has a buffer of that size.
    let text = unsafe {
        let needed = function(std::ptr::null_mut(), 0);
        let mut text = vec![0_u8; needed.max(1) as usize];
        function(text.as_mut_ptr().cast(), text.len() as c_ulong);
        text
    };
    lines(&text)
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
    /// [`Error::Unsupported`] when there is no compiler; [`Error::InvalidFile`] with its messages.
    pub fn build(folder: &Path) -> Result<Self> {
        // Tests of one process share one compilation.
        static COMPILING: Mutex<()> = Mutex::new(());
        let _compiling = lock(&COMPILING);
        Self::load(&compile(folder)?)
    }

    /// Load a library that emulator/build.sh made. A process loads it once and shares its state.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when it is not such a library.
    pub fn load(path: &Path) -> Result<Self> {
        static LOADED: Mutex<BTreeMap<PathBuf, Kernels>> = Mutex::new(BTreeMap::new());
        let mut loaded = lock(&LOADED);
        if let Some(kernels) = loaded.get(path) {
            return Ok(kernels.clone());
        }
        let kernels = Self::open(path)?;
        loaded.insert(path.to_path_buf(), kernels.clone());
        Ok(kernels)
    }

    fn open(path: &Path) -> Result<Self> {
        let invalid =
            |error: libloading::Error| Error::InvalidFile { path: path.to_path_buf(), reason: error.to_string() };
        // SAFETY: a library made by build.sh runs nothing when it is loaded, and its functions have these types.
        unsafe {
            let library = Library::new(path).map_err(invalid)?;
            Ok(Kernels(Arc::new(Mutex::new(Calls {
                emulate: *library.get(b"emulate").map_err(invalid)?,
                params_size: *library.get(b"emulated_params_size").map_err(invalid)?,
                names: *library.get(b"emulated_kernels").map_err(invalid)?,
                waits: *library.get(b"emulated_waits").map_err(invalid)?,
                without: *library.get(b"emulate_without").map_err(invalid)?,
                waited: BTreeSet::new(),
                launched: BTreeSet::new(),
                _library: library,
            }))))
        }
    }

    /// The kernels for the unit tests of this crate, which are skipped, with the reason, if they cannot be compiled.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        let tests = std::env::current_exe().unwrap();
        let folder = tests.ancestors().nth(3).unwrap_or(Path::new(".")).join("tmp");
        std::fs::create_dir_all(&folder).unwrap();
        match Self::build(&folder) {
            Err(error @ Error::Unsupported { .. }) => {
                eprintln!("skipped: {error}");
                None
            }
            built => Some(built.unwrap()),
        }
    }

    /// Where threads waited for each other or for a copy since the last call, as `FILE:LINE`.
    pub fn waits(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.calls().waited)
    }

    /// The names of all kernels.
    pub fn names(&self) -> BTreeSet<String> {
        listed(self.calls().names).into_iter().collect()
    }

    /// The names of the kernels that ran since the last call.
    pub fn launched(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.calls().launched)
    }

    /// Skip the wait `FILE:LINE` from now on, or none, so that a test can show that each wait is needed.
    pub fn without(&self, wait: Option<&str>) {
        let wait = CString::new(wait.unwrap_or_default()).unwrap_or_default();
        // SAFETY: it copies the text.
        unsafe { (self.calls().without)(wait.as_ptr()) }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        lock(&self.0)
    }

    /// Bytes of a kernel's parameters; `None` if the library has no such kernel.
    pub(crate) fn params_size(&self, kernel: Kernel) -> Option<usize> {
        let name = CString::new(kernel.to_string()).ok()?;
        // SAFETY: it reads the name.
        usize::try_from(unsafe { (self.calls().params_size)(name.as_ptr()) }).ok()
    }

    /// Run a kernel.
    ///
    /// # Safety
    /// As [`super::Driver::launch`].
    pub(super) unsafe fn run(&self, launch: &Recorded, reverse: bool) -> Outcome<()> {
        let name = CString::new(launch.kernel.to_string()).unwrap_or_default();
        let block = [launch.kernel.threads() as c_uint, 1, 1];
        let mut message = [0_u8; 512];
        let mut calls = self.calls();
        // SAFETY: as the caller says; the message is truncated to the buffer.
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
        calls.launched.insert(launch.kernel.to_string());
        match failed {
            0 => Ok(()),
            // As on a GPU, whose context is lost after a fault.
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
        move |error| Error::Io { path, error }
    };
    let mut hasher = DefaultHasher::new();
    for sources in ["kernels", "kernels/formats", "emulator"] {
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
    // Another process may be compiling, too: each writes its own file, and the last rename wins.
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
