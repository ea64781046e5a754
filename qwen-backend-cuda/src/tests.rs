//! What only the inside shows: errors of a machine without a driver.

use qwen_core::Error;

use crate::{CudaBackend, CudaOptions, cards};

#[test]
fn a_machine_without_a_driver_says_so() {
    if !cards().is_empty() {
        eprintln!("skipped: there is a card");
        return;
    }
    let error = CudaBackend::new(CudaOptions::new()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    println!("{error}");
    assert!(crate::free_bytes(0).is_err());
}
