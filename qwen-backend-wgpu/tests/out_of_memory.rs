//! A driver without memory left: a child process limits its own address space, so that software Vulkan, which uses the
//! process's memory, cannot map any more.
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;

use common::backend;
use qwen_backend_wgpu::{CapabilitySet, WgpuBackend};
use qwen_core::backend::{Backend, Linear, MatrixPart, WeightRole, WeightView};
use qwen_core::{Encoding, Error, Precision, Result};

const CHILD: &str = "QWEN_OUT_OF_MEMORY_CHILD";
/// Bytes beyond those in use that the child may still allocate: some matrices, and some memory for the host.
const HEADROOM: u64 = (1 << 30) + (192 << 20);
/// The shape of a large matrix, of 128 MiB.
const LARGE: (usize, usize) = (8192, 8192);

/// Limit the address space of this process.
fn limit_address_space(limit: &str) -> bool {
    let pid = std::process::id().to_string();
    Command::new("prlimit")
        .args(["--pid", &pid, &format!("--as={limit}:unlimited")])
        .status()
        .is_ok_and(|s| s.success())
}

/// Bytes of this process's address space.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A matrix of ones, cut out of `ones`.
fn load(
    backend: &mut WgpuBackend,
    name: &str,
    (rows, cols): (usize, usize),
    ones: &[u8],
) -> Result<<WgpuBackend as Backend>::Weight> {
    let parts = [MatrixPart::whole(Encoding::Bf16, rows, cols, ones)?];
    backend.load(&WeightView { name, role: WeightRole::Linear, parts: &parts })
}

fn multiply(backend: &mut WgpuBackend, weight: &<WgpuBackend as Backend>::Weight) -> Result<Vec<f32>> {
    let (mut x, mut out) = (backend.alloc(64)?, backend.alloc(8)?);
    backend.write(&mut x, &[0.5; 64])?;
    backend.linear(Linear { x: &x, w: weight, bias: None, out: &mut out, rows: 1 })?;
    let mut read = vec![0.0; 8];
    backend.read(&out, &mut read)?;
    Ok(read)
}

/// The test in the child, under its limit.
fn exhaust() {
    let ones = [0x80, 0x3f].repeat(LARGE.0 * LARGE.1);
    let mut device = backend(CapabilitySet::Default, Precision::Fast).unwrap();
    let small = load(&mut device, "small", (8, 64), &ones).unwrap();
    assert_eq!(multiply(&mut device, &small).unwrap(), [32.0; 8]);
    let mut held = vec![load(&mut device, "large", LARGE, &ones).unwrap()];
    assert!(limit_address_space(&(address_space() + HEADROOM).to_string()));

    let (name, error) = loop {
        let name = format!("model.layers.{}.mlp.down_proj", held.len());
        match load(&mut device, &name, LARGE, &ones) {
            Ok(weight) => held.push(weight),
            Err(error) => break (name, error),
        }
        assert!(held.len() < 64, "{} MiB were allocated under a limit of {HEADROOM} bytes", held.len() * 128);
    };
    println!("after {} matrices: {error}", held.len());
    match &error {
        Error::OutOfMemory { what, bytes, .. } => assert!(*what == name && *bytes == 128 << 20, "{error}"),
        other => panic!("{other:?}"),
    }
    // The device is still usable: loaded matrices multiply, and dropped ones free their memory.
    assert_eq!(multiply(&mut device, &small).unwrap(), [32.0; 8]);
    drop(held);
    device.synchronize().unwrap();
    drop(load(&mut device, "again", LARGE, &ones).unwrap());
    // So is the process: it can open the device again.
    drop((small, device));
    let mut device = backend(CapabilitySet::Default, Precision::Fast).unwrap();
    let small = load(&mut device, "small", (8, 64), &ones).unwrap();
    assert_eq!(multiply(&mut device, &small).unwrap(), [32.0; 8]);
    println!("loaded again");
}

#[test]
fn a_driver_without_memory_ends_with_the_name_of_the_matrix() {
    if std::env::var_os(CHILD).is_some() {
        return exhaust();
    }
    match backend(CapabilitySet::Default, Precision::Fast) {
        Err(error) => return println!("skipped: {error}"),
        Ok(device) if !device.adapter().is_software() => return println!("skipped: its memory is not the process's"),
        Ok(_) => {}
    }
    if Command::new("prlimit").arg("--version").output().is_err() {
        return println!("skipped: `prlimit` (util-linux) is not installed");
    }
    let test = "a_driver_without_memory_ends_with_the_name_of_the_matrix";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    println!("{told}");
    assert!(child.status.success() && told.contains("loaded again"), "{}: {told}", child.status);
}
