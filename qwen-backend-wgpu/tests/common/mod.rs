//! What the tests run on.

#![allow(dead_code, reason = "each test uses a part")]

use qwen_backend_wgpu::{AdapterChoice, CapabilitySet, WgpuBackend, WgpuOptions};
use qwen_core::{Precision, Result};

/// The options of the adapter that tests run on: `$QWEN_WGPU_ADAPTER`, a part of its name, or software Vulkan.
pub(crate) fn options() -> WgpuOptions {
    let name = std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
    WgpuOptions::new().adapter(AdapterChoice::Name(name)).pipeline_cache(false)
}

/// A backend on it.
pub(crate) fn backend(capabilities: CapabilitySet, precision: Precision) -> Result<WgpuBackend> {
    WgpuBackend::new(options().capabilities(capabilities).precision(precision))
}
