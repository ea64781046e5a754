//! The macros of the `log` crate, or, without the feature `log`, macros that do nothing.
//!
//! With the feature and without a logger an event costs one comparison.

#[cfg(feature = "log")]
pub(crate) use log::{debug, info, warn};

/// Checks the arguments and drops them.
#[cfg(not(feature = "log"))]
macro_rules! discard {
    ($($argument:tt)*) => {
        if false {
            let _ = format!($($argument)*);
        }
    };
}

/// Whether anybody would see debug events: for those whose figures have to be fetched first.
#[cfg(feature = "log")]
pub(crate) fn wants_debug() -> bool {
    log::log_enabled!(log::Level::Debug)
}

#[cfg(not(feature = "log"))]
pub(crate) fn wants_debug() -> bool {
    false
}

#[cfg(not(feature = "log"))]
pub(crate) use {discard as debug, discard as info, discard as warn};
