//! Models with weights in blocks on the driver that records: launches within their arrays, kernels by their numbers of
//! tokens, and the bytes that a token reads.

use qwen_core::backend::collective::Shard;
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Config, Encoding, Precision};

use super::{Harness, Stored, Zeros, every_launch, shape};
use crate::CudaOptions;
use crate::kernel::Kernel;

/// Formats that files are published in.
fn published(config: &Config) -> [Stored; 4] {
    let fallback = !config.hidden_size.is_multiple_of(256) || !config.intermediate_size.is_multiple_of(256);
    [
        Stored::Q4KM { fallback },
        Stored::As(Encoding::Q8_0),
        Stored::Groups { ordered: true },
        Stored::Groups { ordered: false },
    ]
}

fn harness(stored: Stored, config: &Config, capability: (u32, u32), precision: Precision) -> Harness {
    let options = CudaOptions::new().precision(precision);
    Harness::stored(stored, config, 8_192, capability, &options, Shard::WHOLE)
}

fn every_format(name: &str, capabilities: &[(u32, u32)]) {
    let config = shape(name);
    for stored in published(&config) {
        for capability in capabilities {
            println!("{name} in {stored:?}, compute capability {capability:?}");
            every_launch(harness(stored, &config, *capability, Precision::Fast));
        }
    }
}

#[test]
fn small_shapes_in_blocks_launch_within_their_arrays() {
    every_format("0.5B", &[(9, 0), (7, 5)]);
    every_format("1.5B", &[(8, 6)]);
    let config = shape("0.5B");
    every_launch(harness(Stored::Q4KM { fallback: true }, &config, (9, 0), Precision::Exact));
}

#[test]
fn large_shapes_in_blocks_launch_within_their_arrays() {
    every_format("7B", &[(9, 0)]);
    every_format("72B", &[(9, 0)]);
}

#[test]
fn kernels_over_blocks_are_chosen_by_precision_capability_and_size() {
    let config = shape("1.5B");
    let stored = Stored::Q4KM { fallback: false };
    let launched = |capability, precision, tokens| {
        let mut harness = harness(stored, &config, capability, precision);
        let kernels = harness.execute(&[(tokens, 0)], true).unwrap();
        kernels.iter().map(Kernel::to_string).collect::<Vec<_>>()
    };
    for (capability, precision, tokens, expected) in [
        ((9, 0), Precision::Fast, 3, "q4_k_dot_t4"),
        ((9, 0), Precision::Fast, 12, "q4_k_mma_n2"),
        ((9, 0), Precision::Fast, 40, "q4_k_mma_n8"),
        ((9, 0), Precision::Fast, 300, "q4_k_mma_tile"),
        ((7, 5), Precision::Fast, 300, "q4_k_dot_t4"),
        ((9, 0), Precision::Exact, 300, "q4_k_matvec_t4"),
    ] {
        let names = launched(capability, precision, tokens);
        assert!(names.iter().any(|name| name == expected), "{capability:?}, {precision:?}, {tokens} tokens: {names:?}");
        // The embedding table is the head, too, whose one row is a matrix-vector product.
        let head = if precision == Precision::Fast { "q6_k_dot_t1" } else { "q6_k_matvec_t1" };
        assert!(names[0] == "q6_k_embed" && names.iter().any(|name| name == head), "{names:?}");
    }
}

#[test]
fn a_token_reads_each_matrix_once_as_it_is_in_the_file() {
    for name in ["0.5B", "7B"] {
        let config = shape(name);
        for stored in published(&config) {
            // Kernel by kernel, as a recorded step does not tell what it reads.
            let options = CudaOptions::new().precision(Precision::Fast).wait_after_each_kernel(true);
            let mut harness = Harness::stored(stored, &config, 4096, (9, 0), &options, Shard::WHOLE);
            let before = harness.driver.calls().matrix_bytes;
            assert!(!harness.decode(1, 512).unwrap().is_empty());
            let read = harness.driver.calls().matrix_bytes - before;
            harness.check();
            let (spec, source) = (ModelSpec::new(&config), Zeros(stored, Vec::new()));
            let mut shapes: Vec<_> = spec.weights().iter().map(|weight| weight.shape(&source).unwrap()).collect();
            // The first is the embedding table; a step reads all of it if it is the head as well.
            if !config.tie_word_embeddings {
                shapes.remove(0);
            }
            let file: u64 = shapes.iter().map(|shape| shape.stored_bytes().unwrap()).sum();
            let share = read as f64 / file as f64;
            println!("{name} in {stored:?}: {read} bytes a token, {share:.4} of the file's");
            assert!((1.0..=1.05).contains(&share), "{name} in {stored:?}: {read} of {file} bytes");
        }
    }
}
