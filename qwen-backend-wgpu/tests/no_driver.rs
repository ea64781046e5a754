//! Simulates a machine without drivers: a child process of this test, whose Vulkan loader finds no driver.
#![cfg(target_os = "linux")]

use std::process::Command;

use qwen_backend_wgpu::{AdapterChoice, WgpuBackend, WgpuOptions, adapters, hardware_adapters};
use qwen_core::Error;

const CHILD: &str = "QWEN_NO_DRIVER_CHILD";

/// The test in the child.
fn without_drivers() {
    assert!(adapters().is_empty() && hardware_adapters().is_empty());
    for choice in [AdapterChoice::Best, AdapterChoice::Index(0), AdapterChoice::Name("llvmpipe".into())] {
        let error = WgpuBackend::new(WgpuOptions::new().adapter(choice.clone())).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("no driver offers one"), "{text}");
        assert!(choice != AdapterChoice::Best || text.contains("no hardware adapter was found"), "{text}");
        println!("{choice}: {text}");
    }
    println!("all choices were refused");
}

#[test]
fn without_a_driver_every_choice_is_refused_with_what_was_found() {
    if std::env::var_os(CHILD).is_some() {
        return without_drivers();
    }
    let test = "without_a_driver_every_choice_is_refused_with_what_was_found";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        // The old and the new name of the variable.
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .env("VK_DRIVER_FILES", "/nonexistent")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    println!("{told}");
    assert!(child.status.success() && told.contains("all choices were refused"), "{}: {told}", child.status);
}
