//! The conformance suite on every set of capabilities, in both precisions.
//!
//! The adapter is `$QWEN_WGPU_ADAPTER`, a part of its name; software Vulkan (`llvmpipe`) when that is not set.

mod common;

use common::backend;
use qwen_backend_wgpu::{CapabilitySet, WgpuBackend};
use qwen_core::conformance::Suite;
use qwen_core::{Error, Precision, Result};

/// As long as no kernel takes an experimental feature, the largest set is the default one: not run twice.
fn best(precision: Precision) -> Result<WgpuBackend> {
    let (best, default) = (backend(CapabilitySet::Best, precision)?, backend(CapabilitySet::Default, precision)?);
    if best.features() != default.features() {
        return Ok(best);
    }
    Err(Error::unsupported("the set `Best`", "it adds nothing to `Default`, which is run"))
}

qwen_core::conformance_tests! {
    tiny_exact => || backend(CapabilitySet::Tiny, Precision::Exact),
    tiny_fast => Suite::new(|| backend(CapabilitySet::Tiny, Precision::Fast)).fast_depends_on_the_batch(),
    minimal_exact => || backend(CapabilitySet::Minimal, Precision::Exact),
    minimal_fast => Suite::new(|| backend(CapabilitySet::Minimal, Precision::Fast)).fast_depends_on_the_batch(),
    default_exact => || backend(CapabilitySet::Default, Precision::Exact),
    default_fast => Suite::new(|| backend(CapabilitySet::Default, Precision::Fast)).fast_depends_on_the_batch(),
    best_exact => || best(Precision::Exact),
    best_fast => Suite::new(|| best(Precision::Fast)).fast_depends_on_the_batch(),
}
