//! The adapters that tests run on.

#![allow(dead_code, reason = "each test uses a part")]

use qwen_backend_wgpu::{AdapterChoice, CapabilitySet, WgpuBackend, WgpuOptions};
use qwen_core::{Error, Precision, Result};

/// The options for the adapter that tests run on: `$QWEN_WGPU_ADAPTER`, part of its name, or software Vulkan.
pub(crate) fn options() -> WgpuOptions {
    let name = std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
    WgpuOptions::new().adapter(AdapterChoice::Name(name)).pipeline_cache(false)
}

/// A backend on that adapter.
pub(crate) fn backend(capabilities: CapabilitySet, precision: Precision) -> Result<WgpuBackend> {
    WgpuBackend::new(options().capabilities(capabilities).precision(precision))
}

/// A backend with the largest set of capabilities, if that has more features than the default one.
pub(crate) fn best(precision: Precision) -> Result<WgpuBackend> {
    let (best, default) = (backend(CapabilitySet::Best, precision)?, backend(CapabilitySet::Default, precision)?);
    if best.features() != default.features() {
        return Ok(best);
    }
    Err(Error::unsupported("the set `Best`", "this adapter offers no cooperative matrices of f16"))
}
