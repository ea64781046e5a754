//! The reference backend passes the suite that it is the measure of: its own comparisons hold trivially, the ones about
//! guards, steps, determinism, batch-invariance and composed forms do not.

use qwen_conformance::Recording;
use qwen_core::backend::reference::Reference;

qwen_conformance::conformance_tests! {
    reference => || Ok(Reference::new()),
    // Each step of a key but the first is replayed: what the transformer issues depends on nothing but the key.
    recording => || Ok(Recording::new()),
}
