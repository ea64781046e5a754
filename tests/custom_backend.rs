//! The conformance suite on the backend of `examples/custom_backend.rs`: a backend needs nothing but `qwen` to pass it.

#[allow(dead_code)]
#[path = "../examples/custom_backend.rs"]
mod custom_backend;

use custom_backend::RowMajor;

qwen::core::conformance_tests! { row_major => || Ok(RowMajor::with_all_cores()) }
