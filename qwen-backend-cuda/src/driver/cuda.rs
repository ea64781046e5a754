//! The real driver, through cudarc's bindings: one GPU, its primary context, one stream.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;
use std::sync::Mutex;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use qwen_core::Result;

use super::machine::{enter, find, guarded, reason_of, refused};
use super::{Driver, Entered, Fault, GraphId, Launch, MARKS, Outcome};
use crate::device::DeviceProperties;
use crate::kernel::Kernel;
use crate::lock::lock;
use crate::modules;

/// Bytes of shared memory that a kernel may use without an attribute.
const SHARED_BYTES: usize = 48 << 10;

/// An open GPU.
pub(crate) struct CudaDriver {
    info: DeviceProperties,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    marks: [sys::CUevent; MARKS],
    loaded: Mutex<Loaded>,
    graphs: Mutex<Graphs>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, sys::CUmodule>,
    kernels: HashMap<Kernel, sys::CUfunction>,
}

#[derive(Default)]
struct Graphs {
    next: GraphId,
    graphs: HashMap<GraphId, sys::CUgraphExec>,
}

// SAFETY: the handles are those of a driver whose functions any thread may call; the state of this type is behind
// mutexes.
unsafe impl Send for CudaDriver {}
// SAFETY: as above.
unsafe impl Sync for CudaDriver {}

impl std::fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaDriver").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Whether the context is lost after this error.
fn is_fatal(result: CUresult) -> bool {
    use CUresult::*;
    matches!(
        result,
        CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

impl From<DriverError> for Fault {
    fn from(error: DriverError) -> Self {
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Fault::OutOfMemory,
            fatal if is_fatal(fatal) => Fault::Lost(reason_of(error)),
            _ => Fault::Refused(reason_of(error)),
        }
    }
}

impl CudaDriver {
    /// Open a GPU: its primary context, which is shared with other uses of CUDA in the program.
    ///
    /// # Errors
    /// [`qwen_core::Error::Unsupported`] when there is no driver, an old one, no such GPU, or one that the kernels do
    /// not run on; [`qwen_core::Error::Device`] when the driver refuses.
    pub(crate) fn open(ordinal: usize) -> Result<Self> {
        guarded(|| {
            let (device, info) = find(ordinal)?;
            // SAFETY: the driver named the device. The context is released when this is dropped.
            let context = unsafe { result::primary_ctx::retain(device) }.map_err(|error| refused(&info, error))?;
            // If it is dropped before it is complete, it releases the parts it has.
            let mut opened = CudaDriver {
                info,
                device,
                context,
                stream: std::ptr::null_mut(),
                marks: [std::ptr::null_mut(); MARKS],
                loaded: Mutex::default(),
                graphs: Mutex::default(),
            };
            opened.set_up().map_err(|error| refused(&opened.info, error))?;
            Ok(opened)
        })
    }

    fn set_up(&mut self) -> std::result::Result<(), DriverError> {
        // SAFETY: the context is retained.
        let _entered = unsafe { enter(self.context) }?;
        self.stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        for mark in &mut self.marks {
            *mark = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        }
        Ok(())
    }

    fn load(&self, kernel: Kernel) -> Outcome<sys::CUfunction> {
        let mut loaded = lock(&self.loaded);
        if let Some(function) = loaded.kernels.get(&kernel) {
            return Ok(*function);
        }
        let name = kernel.to_string();
        let Some(compiled) = modules::of(&name) else {
            return Err(Fault::Refused(format!("this build has no compiled kernel `{name}`")));
        };
        let no_text = || Fault::Refused(format!("the compiled kernel `{name}` holds a zero byte"));
        let module = match loaded.modules.get(compiled.name) {
            Some(module) => *module,
            None => {
                let damaged = || format!("this build's compiled kernels of `{}` are damaged", compiled.name);
                let text = compiled.text().ok_or_else(|| Fault::Refused(damaged()))?;
                let module = compile(&CString::new(text).map_err(|_| no_text())?)?;
                loaded.modules.insert(compiled.name, module);
                module
            }
        };
        let text = CString::new(name.as_str()).map_err(|_| no_text())?;
        // SAFETY: the module stays loaded as long as this lives.
        let function = unsafe { result::module::get_function(module, text) }?;
        if kernel.shared_bytes() > SHARED_BYTES {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is one of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, kernel.shared_bytes() as i32) }?;
        }
        loaded.kernels.insert(kernel, function);
        Ok(function)
    }
}

impl Driver for CudaDriver {
    fn info(&self) -> &DeviceProperties {
        &self.info
    }

    fn free_bytes(&self) -> Option<u64> {
        let _entered = self.enter().ok()?;
        result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn alloc(&self, _what: &str, bytes: usize) -> Outcome<u64> {
        let _entered = self.enter()?;
        // SAFETY: its contents are not read before they are written.
        Ok(unsafe { result::malloc_sync(bytes) }?)
    }

    unsafe fn free(&self, address: u64) {
        // The memory of a lost context is lost with it.
        let entered = self.enter();
        if entered.is_ok() && self.wait().is_ok() {
            // SAFETY: as the caller says; what was queued has run.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn pin(&self, bytes: usize) -> Outcome<NonNull<u8>> {
        let _entered = self.enter()?;
        // SAFETY: it is filled below.
        let start = unsafe { result::malloc_host(bytes, 0) }?.cast::<u8>();
        let start = NonNull::new(start).ok_or_else(|| Fault::Refused("no pinned memory".into()))?;
        // SAFETY: `bytes` bytes were just allocated.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Ok(start)
    }

    unsafe fn unpin(&self, start: NonNull<u8>, _bytes: usize) {
        if let Ok(_entered) = self.enter() {
            // SAFETY: as the caller says.
            let _ = unsafe { result::free_host(start.as_ptr().cast()) };
        }
    }

    unsafe fn zero(&self, to: u64, bytes: usize) -> Outcome<()> {
        let _entered = self.enter()?;
        // SAFETY: as the caller says.
        Ok(unsafe { result::memset_d8_async(to, 0, bytes, self.stream) }?)
    }

    unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Outcome<()> {
        let _entered = self.enter()?;
        // SAFETY: as the caller says.
        Ok(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream) }.result()?)
    }

    unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Outcome<()> {
        let _entered = self.enter()?;
        // SAFETY: as the caller says.
        Ok(unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream) }.result()?)
    }

    fn prepare(&self, kernel: Kernel) -> Outcome<()> {
        let _entered = self.enter()?;
        self.load(kernel).map(|_| ())
    }

    unsafe fn launch(&self, launch: &Launch) -> Outcome<()> {
        let _entered = self.enter()?;
        let (kernel, [x, y, z]) = (launch.kernel, launch.grid);
        let function = self.load(kernel)?;
        // The driver copies the parameters before it returns.
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        let block = (kernel.threads() as u32, 1, 1);
        let shared = kernel.shared_bytes() as u32;
        // SAFETY: as the caller says; the function takes one structure.
        Ok(unsafe { result::launch_kernel(function, (x, y, z), block, shared, self.stream, &mut params) }?)
    }

    fn begin_capture(&self) -> Outcome<()> {
        let _entered = self.enter()?;
        // Of this thread only: other threads may use their own streams meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this.
        Ok(unsafe { result::stream::begin_capture(self.stream, mode) }?)
    }

    fn end_capture(&self) -> Outcome<GraphId> {
        let _entered = self.enter()?;
        // SAFETY: the stream lives as long as this.
        let graph = unsafe { result::stream::end_capture(self.stream) }?;
        // SAFETY: the graph was just made, and is not used after it is instantiated.
        let (executable, destroyed) = unsafe {
            let flags = sys::CUgraphInstantiate_flags(0);
            (result::graph::instantiate(graph, flags), result::graph::destroy(graph))
        };
        let executable = executable?;
        destroyed?;
        let mut graphs = lock(&self.graphs);
        let id = graphs.next;
        graphs.next += 1;
        graphs.graphs.insert(id, executable);
        Ok(id)
    }

    unsafe fn launch_graph(&self, graph: GraphId) -> Outcome<()> {
        let _entered = self.enter()?;
        let Some(executable) = lock(&self.graphs).graphs.get(&graph).copied() else {
            return Err(Fault::Refused(format!("there is no recorded step {graph}")));
        };
        // SAFETY: as the caller says; the graph is alive.
        Ok(unsafe { result::graph::launch(executable, self.stream) }?)
    }

    fn drop_graph(&self, graph: GraphId) {
        if let Some(executable) = lock(&self.graphs).graphs.remove(&graph)
            && let Ok(_entered) = self.enter()
        {
            // SAFETY: it was alive until now; the driver waits until it has run.
            let _ = unsafe { result::graph::exec_destroy(executable) };
        }
    }

    fn mark(&self, mark: usize) -> Outcome<()> {
        let _entered = self.enter()?;
        // SAFETY: events and stream live as long as this.
        Ok(unsafe { result::event::record(self.marks[mark], self.stream) }?)
    }

    fn wait_mark(&self, mark: usize) -> Outcome<()> {
        let _entered = self.enter()?;
        // SAFETY: events live as long as this. One that was never recorded counts as passed.
        Ok(unsafe { result::event::synchronize(self.marks[mark]) }?)
    }

    fn wait(&self) -> Outcome<()> {
        let _entered = self.enter()?;
        // SAFETY: the stream lives as long as this.
        Ok(unsafe { result::stream::synchronize(self.stream) }?)
    }

    fn stream(&self) -> Option<*mut c_void> {
        Some(self.stream.cast())
    }

    fn enter(&self) -> Outcome<Entered> {
        // SAFETY: the context is retained as long as this lives.
        Ok(unsafe { enter(self.context) }?)
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        // These calls fail if the context is lost; it is released anyway.
        if let Ok(_entered) = self.enter() {
            let graphs = std::mem::take(&mut *lock(&self.graphs));
            let loaded = std::mem::take(&mut *lock(&self.loaded));
            // SAFETY: all of these were made in this context and are no longer used: arrays and graphs hold this driver.
            unsafe {
                for (_, graph) in graphs.graphs {
                    let _ = result::graph::exec_destroy(graph);
                }
                for (_, module) in loaded.modules {
                    let _ = result::module::unload(module);
                }
                for mark in self.marks.into_iter().filter(|mark| !mark.is_null()) {
                    let _ = result::event::destroy(mark);
                }
                if !self.stream.is_null() {
                    let _ = result::stream::destroy(self.stream);
                }
            }
        }
        // SAFETY: retained by `open`, released once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Compile a module for the GPU whose context is current.
fn compile(ptx: &CStr) -> Outcome<sys::CUmodule> {
    use sys::CUjit_option_enum::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    let mut log = [0_u8; 2048];
    let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes the size in place of a pointer.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
    let mut module = std::ptr::null_mut();
    // SAFETY: the PTX ends with a zero; there are as many values as options, and the log has the stated size.
    let loaded = unsafe {
        let text = ptx.as_ptr().cast();
        sys::cuModuleLoadDataEx(&mut module, text, 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    match loaded.result().map_err(Fault::from) {
        Ok(()) => Ok(module),
        // With the compiler's log, if there is one.
        Err(Fault::Refused(reason)) => {
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            Err(Fault::Refused(format!("{reason} {}", log.trim()).trim_end().to_string()))
        }
        Err(fault) => Err(fault),
    }
}
