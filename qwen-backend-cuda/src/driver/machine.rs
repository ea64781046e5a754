//! What there is on this machine, asked of the driver's library, which is looked for when the program runs.
//!
//! cudarc panics where the library or one of its functions is missing, so that a machine is looked over before
//! anything else is asked of it: is there a driver, is it new enough to have all functions and to read the compiled
//! kernels, is there such a card, can it run them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use qwen_core::{Error, Result};

use super::Entered;
use crate::card_info::CardInfo;

/// The version of CUDA that a driver has to speak: the compiled kernels are PTX 8.1, which came with it.
const DRIVER: (u32, u32) = (12, 1);

/// The least compute capability that the compiled kernels run on.
const CAPABILITY: (u32, u32) = (7, 5);

/// The cards of this machine. None is opened.
///
/// # Errors
/// [`Error::Unsupported`] when there is no driver, or one that is too old.
pub(crate) fn cards() -> Result<Vec<CardInfo>> {
    guarded(all)
}

fn all() -> Result<Vec<CardInfo>> {
    let driver = start()?;
    let count = result::device::get_count().map_err(|error| refused("counting cards", error))?;
    match count {
        ..=0 => Err(no_card()),
        _ => (0..count as usize).map(|ordinal| describe(ordinal, driver)).collect(),
    }
}

/// A card by its number.
///
/// # Errors
/// [`Error::Unsupported`] as [`super::card::Card::open`].
pub(crate) fn info(ordinal: usize) -> Result<CardInfo> {
    guarded(|| Ok(find(ordinal)?.1))
}

/// Bytes of a card's memory that are free.
///
/// # Errors
/// As [`super::card::Card::open`].
pub(crate) fn free_bytes(ordinal: usize) -> Result<u64> {
    guarded(|| {
        let (device, info) = find(ordinal)?;
        // SAFETY: the device is one that the driver named; what is retained is released below.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|error| refused(&info, error))?;
        // SAFETY: the context was just retained.
        let free = unsafe { enter(context) }.and_then(|_entered| result::mem_get_info());
        // SAFETY: retained above.
        unsafe { result::primary_ctx::release(device) }.map_err(|error| refused(&info, error))?;
        free.map(|(free, _)| free as u64).map_err(|error| refused(&info, error))
    })
}

/// Make `context` that of this thread until the result is dropped.
///
/// # Safety
/// The context is retained for as long.
pub(super) unsafe fn enter(context: sys::CUcontext) -> std::result::Result<Entered, DriverError> {
    // SAFETY: as the caller says.
    unsafe { sys::cuCtxPushCurrent_v2(context) }.result()?;
    fn leave() {
        let mut left = std::ptr::null_mut();
        // SAFETY: a context was pushed on this thread before, and what was pushed since is popped.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut left) };
    }
    Ok(Entered::new(leave))
}

/// What `run` says, or an error where it panics: cudarc does where a function of the library is missing.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let reason = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a function of it is missing");
        Err(Error::unsupported("this NVIDIA driver", reason))
    })
}

/// Start the driver: the version of CUDA that it speaks.
fn start() -> Result<(u32, u32)> {
    // SAFETY: it opens the driver's library by its name, as every use of it does.
    if !unsafe { sys::is_culib_present() } {
        let reason = "no NVIDIA driver was found on this machine: install one, or choose another device";
        return Err(Error::unsupported("CUDA", reason));
    }
    let mut version = 0;
    // SAFETY: it may be called before anything else, and writes one number.
    let known = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    known.map_err(|error| refused("the driver", error))?;
    let driver = new_enough(version)?;
    started(result::init())?;
    Ok(driver)
}

/// The version of CUDA, major and minor, in a driver's number of it.
fn new_enough(version: i32) -> Result<(u32, u32)> {
    let driver = ((version / 1000) as u32, (version % 1000 / 10) as u32);
    if driver < DRIVER {
        let (needed, found) = (format!("{}.{}", DRIVER.0, DRIVER.1), format!("{}.{}", driver.0, driver.1));
        let reason = format!("it speaks CUDA {found}, {needed} is needed: install a driver of the series 530 or later");
        return Err(Error::unsupported("this NVIDIA driver", reason));
    }
    Ok(driver)
}

fn started(initialised: std::result::Result<(), DriverError>) -> Result<()> {
    initialised.map_err(|error| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => no_card(),
        _ => refused("the driver", error),
    })
}

fn no_card() -> Error {
    Error::unsupported("CUDA", "the driver finds no card that this process may use")
}

/// The card with this number among those there are, if the kernels run on it.
fn chosen(cards: &[CardInfo], ordinal: usize) -> Result<&CardInfo> {
    let Some(info) = cards.get(ordinal) else {
        let listed: Vec<String> = cards.iter().map(ToString::to_string).collect();
        let reason = format!("there is only {}", listed.join("; "));
        return Err(Error::unsupported(format!("CUDA card {ordinal}"), reason));
    };
    if info.compute_capability < CAPABILITY {
        let reason = format!("the kernels need compute capability {}.{} or more", CAPABILITY.0, CAPABILITY.1);
        return Err(Error::unsupported(info.to_string(), reason));
    }
    Ok(info)
}

/// The card with this number, if the kernels run on it.
pub(super) fn find(ordinal: usize) -> Result<(sys::CUdevice, CardInfo)> {
    let info = chosen(&all()?, ordinal)?.clone();
    let device = result::device::get(ordinal as i32).map_err(|error| refused(&info, error))?;
    Ok((device, info))
}

fn describe(ordinal: usize, driver: (u32, u32)) -> Result<CardInfo> {
    let facts = || {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the driver named the device.
        let attribute =
            |attribute| unsafe { result::device::get_attribute(device, attribute) }.map(|value| value as u32);
        Ok(CardInfo {
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
    facts().map_err(|error| refused(&format!("card {ordinal}"), error))
}

pub(super) fn refused(what: &(impl ToString + ?Sized), error: DriverError) -> Error {
    if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return Error::OutOfMemory { device: what.to_string(), what: "the driver's context".into(), bytes: 0 };
    }
    Error::Device { device: what.to_string(), op: "open".into(), reason: reason_of(error) }
}

/// What the driver says of an error.
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

    fn card(ordinal: usize, compute_capability: (u32, u32)) -> CardInfo {
        CardInfo {
            ordinal,
            name: format!("card {ordinal}"),
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
    fn an_old_driver_is_refused_with_what_it_speaks_and_what_is_needed() {
        assert_eq!(new_enough(12_010).unwrap(), (12, 1));
        assert_eq!(new_enough(13_020).unwrap(), (13, 2));
        let refused = refusal(new_enough(11_080));
        assert!(refused.contains("CUDA 11.8") && refused.contains("12.1") && refused.contains("530"), "{refused}");
    }

    #[test]
    fn a_driver_without_a_card_is_refused() {
        started(Ok(())).unwrap();
        assert!(refusal(started(Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)))).contains("no card"));
    }

    #[test]
    fn a_card_that_is_not_there_or_too_old_is_refused_with_what_there_is() {
        let cards = [card(0, (9, 0)), card(1, (7, 0))];
        assert_eq!(chosen(&cards, 0).unwrap(), &cards[0]);
        let absent = refusal(chosen(&cards, 2));
        assert!(absent.contains("CUDA card 2") && absent.contains("card 0") && absent.contains("card 1"), "{absent}");
        let old = refusal(chosen(&cards, 1));
        assert!(old.contains("compute capability 7.0") && old.contains("7.5 or more"), "{old}");
    }

    #[test]
    fn a_context_that_has_no_memory_is_out_of_memory() {
        let error = refused("card 0", DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(matches!(&error, Error::OutOfMemory { .. }) && error.to_string().contains("context"), "{error}");
    }

    #[test]
    fn a_missing_function_of_the_driver_is_no_panic() {
        let refused = refusal(guarded(|| -> Result<()> { panic!("no cuSomething") }));
        assert!(refused.contains("cuSomething"), "{refused}");
    }
}
