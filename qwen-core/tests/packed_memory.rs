//! The memory that reading packed matrices takes: in its own process, since memory is counted per process.
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::TempFolder;
use common::packer::config;
use qwen_core::Checkpoint;
use qwen_core::memory::resident_bytes;
use serde_json::json;

const MIB: usize = 1 << 20;
const ROWS: usize = 8192;
const COLS: usize = 16384;
const GROUPS: usize = COLS / 128;

/// An all-zero GPTQ module: a sparse file except for the groups of its columns.
fn write(folder: &TempFolder, shuffled: bool) {
    let mut end = 0;
    let mut entry = |dtype: &str, width: usize, shape: &[usize]| {
        let start = end;
        end += width * shape.iter().product::<usize>();
        json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
    };
    let header = json!({
        "m.qweight": entry("I32", 4, &[COLS / 8, ROWS]),
        "m.qzeros": entry("I32", 4, &[GROUPS, ROWS / 8]),
        "m.scales": entry("F16", 2, &[GROUPS, ROWS]),
        "m.g_idx": entry("I32", 4, &[COLS]),
    })
    .to_string();
    let start = 8 + header.len();
    let file = File::create(folder.path().join("model.safetensors")).expect("a file");
    file.set_len((start + end) as u64).expect("its length");
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0).expect("the length of the header");
    file.write_all_at(header.as_bytes(), 8).expect("the header");
    let group = |col: usize| if shuffled { col % GROUPS } else { col / 128 };
    let g_idx: Vec<u8> = (0..COLS).flat_map(|col| (group(col) as i32).to_le_bytes()).collect();
    file.write_all_at(&g_idx, (start + end - g_idx.len()) as u64).expect("the groups");
}

/// The peak memory of the process since the last call, in bytes.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak").trim();
    let kib: usize = kib.trim_end_matches("kB").trim().parse().expect("a number");
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    Some(kib * 1024)
}

#[test]
fn a_matrix_takes_its_blocks_while_it_is_read_and_nothing_afterwards() {
    let quantization = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true});
    let folder = TempFolder::new().with("config.json", config(&quantization));
    let resident = || resident_bytes().expect("Linux says") as usize;
    if peak().is_none() {
        eprintln!("not run: this system does not let a process reset its peak of memory");
        return;
    }
    let peak = || peak().expect("as before");
    for shuffled in [false, true] {
        write(&folder, shuffled);
        let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
        let before = resident();
        peak();
        let mut part = checkpoint.matrix("m.weight", ROWS, COLS).expect("a matrix");
        assert_eq!(part.column_order.is_some(), shuffled);
        assert!(resident() < before + MIB, "finding it reads no codes");
        let blocks = part.row_bytes * ROWS;
        for threads in [1, 4] {
            let part = part.clone();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let part = &part;
                    scope.spawn(move || {
                        let mut buffer = Vec::new();
                        for first in (16 * thread..ROWS).step_by(16 * threads) {
                            let rows = part.read(first..first + 16, &mut buffer).expect("rows");
                            assert_eq!(rows.len(), 16 * part.row_bytes);
                        }
                    });
                }
            });
        }
        let taken = peak() - before;
        // A range of the file per thread: the lines of 128 columns, each in another place if columns are reordered.
        let stretches = 4 * 128 * if shuffled { 4 * ROWS } else { 4 * ROWS / 8 };
        eprintln!("peak {} MiB for {} MiB of blocks, shuffled: {shuffled}", taken / MIB, blocks / MIB);
        assert!(taken < blocks + stretches + 4 * MIB, "{taken} bytes for {blocks} of blocks");

        // The rows of one of eight ranks.
        part = part.cut(ROWS / 8..ROWS / 4, 0..COLS).expect("a cut");
        let held = resident();
        assert!(held < before + stretches + 6 * MIB, "given back: {} MiB are held", (held - before) / MIB);
        peak();
        part.read(0..16, &mut Vec::new()).expect("rows");
        let taken = peak() - held;
        eprintln!("peak {} MiB for an eighth of the rows", taken / MIB);
        assert!(taken < blocks / 8 + stretches / 4 + 4 * MIB, "{taken} bytes for an eighth of {blocks}");
    }
}
