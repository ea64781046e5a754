//! The reference backend passes its own suite: comparisons with itself hold trivially, but those about guards, steps,
//! determinism, batch-invariance and composed forms do not.

use qwen_conformance::Recording;
use qwen_core::backend::reference::Reference;

qwen_conformance::conformance_tests! {
    reference => || Ok(Reference::new()),
    // Each step of a key except the first is replayed: what the transformer issues depends only on the key.
    recording => || Ok(Recording::new()),
}
