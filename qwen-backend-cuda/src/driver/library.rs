//! The emulator's library: the kernels' sources compiled by g++ with emulator/, loaded and called.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::hash::{Hash, Hasher};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

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
pub struct Kernels(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes of each kernel's parameters.
    params_sizes: BTreeMap<String, usize>,
    /// Copies of the library that run nothing now.
    idle: Mutex<Vec<Copy>>,
    returned: Condvar,
    seen: Mutex<Seen>,
}

/// What the tests ask for after kernels ran, and say before.
#[derive(Debug, Default)]
struct Seen {
    /// Where threads waited since the last call of [`Kernels::waits`].
    waited: BTreeSet<String>,
    /// Kernels that ran since the last call of [`Kernels::launched`].
    launched: BTreeSet<String>,
    /// The wait that launches skip; empty for none.
    without: CString,
}

/// The library, loaded from a file of its own: its state is global, so that each copy runs one kernel at a time.
#[derive(Debug)]
struct Copy {
    emulate: Emulate,
    waits: Listing,
    without: unsafe extern "C" fn(*const c_char),
    /// Keeps the functions loaded.
    library: Library,
}

impl Copy {
    fn open(path: &Path) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: a library made by build.sh runs nothing when it is loaded, and its functions have these types.
        unsafe {
            let library = Library::new(path)?;
            Ok(Copy {
                emulate: *library.get(b"emulate")?,
                waits: *library.get(b"emulated_waits")?,
                without: *library.get(b"emulate_without")?,
                library,
            })
        }
    }

    /// Bytes of the parameters of each kernel, by name.
    fn params_sizes(&self) -> std::result::Result<BTreeMap<String, usize>, libloading::Error> {
        // SAFETY: the functions have these types; the second only reads the name.
        unsafe {
            let names: Listing = *self.library.get(b"emulated_kernels")?;
            let size: unsafe extern "C" fn(*const c_char) -> c_int = *self.library.get(b"emulated_params_size")?;
            let sized = |name: String| {
                let bytes = size(CString::new(name.as_str()).ok()?.as_ptr());
                Some((name, usize::try_from(bytes).ok()?))
            };
            Ok(listed(names).into_iter().filter_map(sized).collect())
        }
    }
}

/// The lines that a function of the library returns.
fn listed(function: Listing) -> Vec<String> {
    // SAFETY: with a null pointer it only returns the size it needs; the second call has a buffer of that size.
    let text = unsafe {
        let needed = function(std::ptr::null_mut(), 0);
        let mut text = vec![0_u8; needed.max(1) as usize];
        function(text.as_mut_ptr().cast(), text.len() as c_ulong);
        text
    };
    lines(&text)
}

type Listing = unsafe extern "C" fn(*mut c_char, c_ulong) -> c_int;

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

    /// Load a library that emulator/build.sh made, as often as the machine has cores. A process does so once.
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
        let mut idle = vec![Copy::open(path).map_err(invalid)?];
        let params_sizes = idle[0].params_sizes().map_err(invalid)?;
        for number in 1..std::thread::available_parallelism().map_or(1, NonZero::get) {
            // The same file would be the same library. Once it is loaded, its name is not needed.
            let copy = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
            std::fs::copy(path, &copy).map_err(|error| Error::Io { path: copy.clone(), error })?;
            let opened = Copy::open(&copy);
            let _ = std::fs::remove_file(&copy);
            idle.push(opened.map_err(invalid)?);
        }
        let shared = Shared { params_sizes, idle: Mutex::new(idle), returned: Condvar::new(), seen: Mutex::default() };
        Ok(Kernels(Arc::new(shared)))
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
        std::mem::take(&mut lock(&self.0.seen).waited)
    }

    /// The names of all kernels.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.params_sizes.keys().cloned().collect()
    }

    /// The names of the kernels that ran since the last call.
    pub fn launched(&self) -> BTreeSet<String> {
        std::mem::take(&mut lock(&self.0.seen).launched)
    }

    /// Skip the wait `FILE:LINE` from now on, or none, so that a test can show that each wait is needed.
    pub fn without(&self, wait: Option<&str>) {
        lock(&self.0.seen).without = CString::new(wait.unwrap_or_default()).unwrap_or_default();
    }

    /// Bytes of a kernel's parameters; `None` if the library has no such kernel.
    pub(crate) fn params_size(&self, kernel: Kernel) -> Option<usize> {
        self.0.params_sizes.get(&kernel.to_string()).copied()
    }

    /// Call a copy of the library that is idle, or wait for one.
    fn with_copy<T>(&self, call: impl FnOnce(&Copy) -> T) -> T {
        let mut idle = lock(&self.0.idle);
        let copy = loop {
            match idle.pop() {
                Some(copy) => break copy,
                None => idle = self.0.returned.wait(idle).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(idle);
        let result = call(&copy);
        lock(&self.0.idle).push(copy);
        self.0.returned.notify_one();
        result
    }

    /// Run a kernel.
    ///
    /// # Safety
    /// As [`super::Driver::launch`].
    pub(super) unsafe fn run(&self, launch: &Recorded, reverse: bool) -> Outcome<()> {
        let name = launch.kernel.to_string();
        let c_name = CString::new(name.as_str()).unwrap_or_default();
        let block = [launch.kernel.threads() as c_uint, 1, 1];
        let mut message = [0_u8; 512];
        let without = lock(&self.0.seen).without.clone();
        let (failed, waits) = self.with_copy(|copy| {
            // SAFETY: as the caller says; the text is copied, the message truncated to the buffer.
            let failed = unsafe {
                (copy.without)(without.as_ptr());
                (copy.emulate)(
                    c_name.as_ptr(),
                    launch.grid.as_ptr(),
                    block.as_ptr(),
                    launch.kernel.shared_bytes() as c_uint,
                    launch.params.as_ptr().cast(),
                    c_int::from(reverse),
                    message.as_mut_ptr().cast(),
                    message.len() as c_ulong,
                )
            };
            (failed, listed(copy.waits))
        });
        let mut seen = lock(&self.0.seen);
        seen.waited.extend(waits);
        seen.launched.insert(name);
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
