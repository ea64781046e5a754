//! The conformance suite on every set of capabilities, in both precisions.
//!
//! The adapter is `$QWEN_WGPU_ADAPTER`, part of its name; software Vulkan (`llvmpipe`) if that is not set.

mod common;

use common::{backend, best};
use qwen_backend_wgpu::CapabilitySet;
use qwen_conformance::Suite;
use qwen_core::Precision;

qwen_conformance::conformance_tests! {
    tiny_exact => || backend(CapabilitySet::Tiny, Precision::Exact),
    tiny_fast => Suite::new(|| backend(CapabilitySet::Tiny, Precision::Fast)).fast_depends_on_the_batch(),
    minimal_exact => || backend(CapabilitySet::Minimal, Precision::Exact),
    minimal_fast => Suite::new(|| backend(CapabilitySet::Minimal, Precision::Fast)).fast_depends_on_the_batch(),
    default_exact => || backend(CapabilitySet::Default, Precision::Exact),
    default_fast => Suite::new(|| backend(CapabilitySet::Default, Precision::Fast)).fast_depends_on_the_batch(),
    best_exact => || best(Precision::Exact),
    best_fast => Suite::new(|| best(Precision::Fast)).fast_depends_on_the_batch(),
}
