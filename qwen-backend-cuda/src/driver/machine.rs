//! The NVIDIA GPUs of this machine, as the driver's library reports them. The library is opened at run time.
//!
//! cudarc panics if the library or one of its functions is missing, so everything is checked before it is used: that
//! there is a driver, that it is new enough to have all functions and to read the compiled kernels, and that the GPU
//! exists and can run them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use qwen_core::{Error, Result};

use super::Entered;
use crate::device::DeviceProperties;

/// The version of CUDA that a driver has to support: the first with PTX 8.1, in which the kernels are compiled.
const DRIVER: (u32, u32) = (12, 1);

/// The lowest compute capability that the compiled kernels run on.
const CAPABILITY: (u32, u32) = (7, 5);

/// The NVIDIA GPUs of this machine, in CUDA's order. None is opened.
///
/// # Errors
/// [`Error::Unsupported`] when there is no driver, one that is too old, or one that finds no GPU.
///
/// ```
/// match qwen_backend_cuda::devices() {
///     Ok(devices) => devices.iter().for_each(|device| println!("{device}")),
///     Err(error) => println!("{error}"),
/// }
/// ```
pub fn devices() -> Result<Vec<DeviceProperties>> {
    guarded(all)
}

fn all() -> Result<Vec<DeviceProperties>> {
    let driver = start()?;
    let count = result::device::get_count().map_err(|error| refused("counting GPUs", error))?;
    match count {
        ..=0 => Err(no_gpu()),
        _ => (0..count as usize).map(|ordinal| describe(ordinal, driver)).collect(),
    }
}

/// The properties of the GPU with this number. It is not opened.
///
/// # Errors
/// [`Error::Unsupported`] when there is no driver, no such GPU, or one that the kernels do not run on, with what was
/// found.
///
/// ```
/// if let Ok(device) = qwen_backend_cuda::device(0) {
///     assert_eq!(device.ordinal, 0);
/// }
/// ```
pub fn device(ordinal: usize) -> Result<DeviceProperties> {
    guarded(|| Ok(find(ordinal)?.1))
}

/// Free bytes of the memory of the GPU with this number. A context is opened to find out, so the memory of the context
/// is excluded.
///
/// # Errors
/// As [`crate::CudaBackend::new`].
///
/// ```
/// if let Ok(free) = qwen_backend_cuda::free_bytes(0) {
///     println!("{free} bytes are free");
/// }
/// ```
pub fn free_bytes(ordinal: usize) -> Result<u64> {
    guarded(|| {
        let (device, info) = find(ordinal)?;
        // SAFETY: the driver named the device; the context is released below.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|error| refused(&info, error))?;
        // SAFETY: the context was just retained.
        let free = unsafe { enter(context) }.and_then(|_entered| result::mem_get_info());
        // SAFETY: retained above.
        unsafe { result::primary_ctx::release(device) }.map_err(|error| refused(&info, error))?;
        free.map(|(free, _)| free as u64).map_err(|error| refused(&info, error))
    })
}

/// Make `context` current on this thread until the result is dropped.
///
/// # Safety
/// The context is retained for as long.
pub(super) unsafe fn enter(context: sys::CUcontext) -> std::result::Result<Entered, DriverError> {
    // SAFETY: as the caller says.
    unsafe { sys::cuCtxPushCurrent_v2(context) }.result()?;
    fn leave() {
        let mut left = std::ptr::null_mut();
        // SAFETY: the context was pushed on this thread, and every one pushed since has been popped.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut left) };
    }
    Ok(Entered::new(leave))
}

/// The result of `run`, or an error if it panics: cudarc panics if a function of the library is missing.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let reason = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a function of it is missing");
        Err(Error::unsupported("this NVIDIA driver", reason))
    })
}

/// Start the driver. Returns the version of CUDA that it supports.
fn start() -> Result<(u32, u32)> {
    // SAFETY: it only opens the driver's library by name.
    if !unsafe { sys::is_culib_present() } {
        let reason = "no NVIDIA driver was found on this machine: install one, or choose another device";
        return Err(Error::unsupported("CUDA", reason));
    }
    let mut version = 0;
    // SAFETY: it may be called before initialisation, and writes one number.
    let known = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    known.map_err(|error| refused("the driver", error))?;
    let driver = new_enough(version)?;
    started(result::init())?;
    Ok(driver)
}

/// Decode the driver's version number of CUDA, refusing one that is too old.
fn new_enough(version: i32) -> Result<(u32, u32)> {
    let driver = ((version / 1000) as u32, (version % 1000 / 10) as u32);
    if driver < DRIVER {
        let (needed, found) = (format!("{}.{}", DRIVER.0, DRIVER.1), format!("{}.{}", driver.0, driver.1));
        let reason =
            format!("it supports CUDA {found}, {needed} is needed: install a driver of the series 530 or later");
        return Err(Error::unsupported("this NVIDIA driver", reason));
    }
    Ok(driver)
}

fn started(initialised: std::result::Result<(), DriverError>) -> Result<()> {
    initialised.map_err(|error| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => no_gpu(),
        _ => refused("the driver", error),
    })
}

fn no_gpu() -> Error {
    Error::unsupported("CUDA", format!("the driver finds no GPU that this process may use{}", hidden()))
}

/// That the environment may hide GPUs from this process, if it does.
fn hidden() -> String {
    const VARIABLE: &str = "CUDA_VISIBLE_DEVICES";
    std::env::var_os(VARIABLE).map_or_else(String::new, |seen| format!(" ({VARIABLE} is `{}`)", seen.display()))
}

/// The GPU with this number, if it exists and the kernels run on it.
fn chosen(devices: &[DeviceProperties], ordinal: usize) -> Result<&DeviceProperties> {
    let Some(info) = devices.get(ordinal) else {
        let listed: Vec<String> = devices.iter().map(ToString::to_string).collect();
        let reason = format!("there is only {}{}", listed.join("; "), hidden());
        return Err(Error::unsupported(format!("CUDA GPU {ordinal}"), reason));
    };
    if info.compute_capability < CAPABILITY {
        let reason = format!("the kernels need compute capability {}.{} or more", CAPABILITY.0, CAPABILITY.1);
        return Err(Error::unsupported(info.to_string(), reason));
    }
    Ok(info)
}

/// The GPU with this number, if the kernels run on it.
pub(super) fn find(ordinal: usize) -> Result<(sys::CUdevice, DeviceProperties)> {
    let info = chosen(&all()?, ordinal)?.clone();
    let device = result::device::get(ordinal as i32).map_err(|error| refused(&info, error))?;
    Ok((device, info))
}

fn describe(ordinal: usize, driver: (u32, u32)) -> Result<DeviceProperties> {
    let facts = || {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the driver named the device.
        let attribute =
            |attribute| unsafe { result::device::get_attribute(device, attribute) }.map(|value| value as u32);
        Ok(DeviceProperties {
            ordinal,
            name: result::device::get_name(device)?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // SAFETY: the driver named the device.
            memory: unsafe { result::device::total_mem(device) }? as u64,
            max_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            driver,
        })
    };
    facts().map_err(|error| refused(&format!("GPU {ordinal}"), error))
}

pub(super) fn refused(what: &(impl ToString + ?Sized), error: DriverError) -> Error {
    if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return Error::OutOfMemory { device: what.to_string(), what: "the driver's context".into(), bytes: 0 };
    }
    Error::Device { device: what.to_string(), op: "open".into(), reason: reason_of(error) }
}

/// The driver's description of an error.
pub(super) fn reason_of(error: DriverError) -> String {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
    };
    match (text(error.error_name()), text(error.error_string())) {
        (name, _) if name.is_empty() => format!("CUDA error {}", error.0 as u32),
        (name, reason) => format!("{reason} ({name})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(ordinal: usize, compute_capability: (u32, u32)) -> DeviceProperties {
        DeviceProperties {
            ordinal,
            name: format!("gpu {ordinal}"),
            compute_capability,
            multiprocessors: 1,
            memory: 1 << 30,
            max_shared_bytes: 64 << 10,
            driver: DRIVER,
        }
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        match result.unwrap_err() {
            error @ Error::Unsupported { .. } => error.to_string(),
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn an_old_driver_is_refused_with_its_version_and_the_one_needed() {
        assert_eq!(new_enough(12_010).unwrap(), (12, 1));
        assert_eq!(new_enough(13_020).unwrap(), (13, 2));
        let refused = refusal(new_enough(11_080));
        assert!(refused.contains("CUDA 11.8") && refused.contains("12.1") && refused.contains("530"), "{refused}");
    }

    #[test]
    fn a_driver_without_a_gpu_is_refused() {
        started(Ok(())).unwrap();
        assert!(refusal(started(Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)))).contains("no GPU"));
    }

    #[test]
    fn a_gpu_that_is_absent_or_too_old_is_refused_with_those_found() {
        let devices = [gpu(0, (9, 0)), gpu(1, (7, 0))];
        assert_eq!(chosen(&devices, 0).unwrap(), &devices[0]);
        let absent = refusal(chosen(&devices, 2));
        assert!(absent.contains("CUDA GPU 2") && absent.contains("gpu 0") && absent.contains("gpu 1"), "{absent}");
        let old = refusal(chosen(&devices, 1));
        assert!(old.contains("compute capability 7.0") && old.contains("7.5 or more"), "{old}");
    }

    #[test]
    fn a_context_without_memory_is_out_of_memory() {
        let error = refused("gpu 0", DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(matches!(&error, Error::OutOfMemory { .. }) && error.to_string().contains("context"), "{error}");
    }

    #[test]
    fn a_missing_function_of_the_driver_is_an_error() {
        let refused = refusal(guarded(|| -> Result<()> { panic!("no cuSomething") }));
        assert!(refused.contains("cuSomething"), "{refused}");
    }
}
