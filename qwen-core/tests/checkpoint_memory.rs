//! The memory that loading takes: in its own process, since memory is counted per process.
#![cfg(target_os = "linux")]

mod common;

use common::{TempFolder, safetensors};
use qwen_core::Checkpoint;
use qwen_core::backend::RowReader;
use qwen_core::checkpoint::Tensor;
use qwen_core::memory::{available_memory, resident_bytes};

const MIB: usize = 1 << 20;

#[test]
fn tensors_take_memory_only_while_they_are_held() {
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
    assert!(resident() < before + MIB, "opening reads headers only");

    let mut peak = 0;
    let mut checksum = 0u64;
    for info in checkpoint.tensors() {
        let tensor = checkpoint.tensor(&info.name).expect("a tensor");
        checksum += touch(&tensor);
        peak = peak.max(resident() - before);
    }
    eprintln!("peak {} MiB over the start for {} MiB of tensors", peak / MIB, tensors * each / MIB);
    assert!(peak < each + 2 * MIB, "one tensor at a time, found {peak} bytes");
    // The allocator may keep the memory of the last one.
    assert!(resident() < before + each + 2 * MIB, "given back");

    let again = touch(&checkpoint.tensor("t0").expect("t0"));
    assert_eq!(again * tensors as u64, checksum, "tensors can be read again");

    // A matrix is read as its rows are asked for.
    let bytes = tensors * each;
    let (rows, cols) = (2048, bytes / 4 / 2048);
    let entry = format!(r#"{{"m": {{"dtype": "F32", "shape": [{rows}, {cols}], "data_offsets": [0, {bytes}]}}}}"#);
    let mut file = safetensors(&entry, 0);
    file.resize(file.len() + bytes, 7);
    let folder = folder.with("model.safetensors", file);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let before = resident();
    let matrix = checkpoint.matrix("m", rows, cols).expect("a matrix");
    let mut reader = RowReader::new(&matrix);
    for row in 0..rows {
        assert_eq!(reader.row(row).expect("a row").len(), 4 * cols);
    }
    assert!(resident() < before + 2 * MIB, "some rows at a time");
    assert!(available_memory().is_some());
}

/// Read from every page; the sum is that of the same bytes in each tensor.
fn touch(tensor: &Tensor<'_>) -> u64 {
    tensor.data.iter().step_by(1000).map(|&byte| u64::from(byte)).sum()
}
