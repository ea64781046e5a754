//! Whole checkpoints against recorded results, on the largest and the smallest set of capabilities.

mod common;

use common::backend;
use qwen_backend_wgpu::CapabilitySet;
use qwen_core::Precision;
use qwen_core::conformance::goldens::{Goldens, folder};

/// Prompts that are longer take minutes on software Vulkan.
const LONGEST: usize = 200;

fn run(capabilities: CapabilitySet, precision: Precision) {
    let Some(folder) = folder() else { return };
    let goldens = Goldens::open(folder).unwrap();
    for case in goldens.cases() {
        let result = goldens.run(case, backend(capabilities, precision).unwrap(), LONGEST).unwrap();
        println!("{capabilities:?} {result}");
        assert!(result.holds() || result.prompts == 0, "{result}");
    }
}

#[test]
fn default_exact() {
    run(CapabilitySet::Default, Precision::Exact);
}

#[test]
fn default_fast() {
    run(CapabilitySet::Default, Precision::Fast);
}

#[test]
fn tiny_exact() {
    run(CapabilitySet::Tiny, Precision::Exact);
}

#[test]
fn tiny_fast() {
    run(CapabilitySet::Tiny, Precision::Fast);
}
