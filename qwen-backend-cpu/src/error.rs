//! Errors of this device.

use qwen_core::Error;

/// The error of operation `op`, with what is wrong and what to do about it.
pub(crate) fn device_error(op: &str, reason: String) -> Error {
    Error::Device { device: "cpu".into(), op: op.into(), reason }
}
