//! What loading takes: a test of its own process, since memory is counted by process.
#![cfg(target_os = "linux")]

mod common;

use common::{TempFolder, safetensors};
use qwen_core::Checkpoint;
use qwen_core::checkpoint::TensorView;
use qwen_core::memory::{available_memory, resident_bytes};

const MIB: usize = 1 << 20;

#[test]
fn released_tensors_leave_the_memory_of_the_process() {
    let (tensors, each) = (4, 8 * MIB);
    let entries: Vec<_> = (0..tensors)
        .map(|i| {
            let (start, end) = (i * each, (i + 1) * each);
            format!(r#""t{i}": {{"dtype": "F32", "shape": [{}], "data_offsets": [{start}, {end}]}}"#, each / 4)
        })
        .collect();
    let mut file = safetensors(&format!("{{{}}}", entries.join(",")), 0);
    file.resize(file.len() + tensors * each, 7);
    let folder = TempFolder::new()
        .with("config.json", include_str!("data/config-0.5b-instruct.json"))
        .with("model.safetensors", file);

    let resident = || resident_bytes().expect("Linux says") as usize;
    let before = resident();
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    // Linux maps up to 2 MiB round the first touch of a cached file.
    assert!(resident() < before + each / 2, "opening reads headers alone");

    let mut peak = 0;
    let mut checksum = 0u64;
    for info in checkpoint.tensors() {
        checksum += touch(checkpoint.tensor(&info.name).expect("a tensor"));
        peak = peak.max(resident() - before);
        checkpoint.release(&info.name);
    }
    eprintln!("peak {} MiB over the start for {} MiB of tensors", peak / MIB, tensors * each / MIB);
    assert!(peak < 2 * each + 2 * MIB, "about one tensor at a time, found {peak} bytes");
    assert!(resident() < before + 4 * MIB, "all given back");

    let again = touch(checkpoint.tensor("t0").expect("t0"));
    assert_eq!(again * tensors as u64, checksum, "released tensors can be read again");
    assert!(available_memory().is_some());
}

/// Read from every page; the sum is that of the same bytes in each tensor.
fn touch(tensor: TensorView<'_>) -> u64 {
    tensor.data.iter().step_by(1000).map(|&byte| u64::from(byte)).sum()
}
