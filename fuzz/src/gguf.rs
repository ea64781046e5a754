//! GGUF files: their headers only, and as checkpoints whose tensors are read.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use qwen_core::Checkpoint;
use qwen_core::backend::RowReader;
use qwen_core::checkpoint::gguf::Header;

/// The tensors of an accepted file are within it, do not overlap, and have as many bytes as their shapes need.
pub fn header(file: &[u8]) {
    let Ok(header) = Header::parse(Path::new("model.gguf"), file) else { return };
    let mut end = 0;
    for tensor in &header.tensors {
        assert!(tensor.range.start >= end && tensor.range.end <= file.len() as u64, "{tensor:?}");
        end = tensor.range.end;
        if let Some(encoding) = tensor.encoding() {
            let (cols, rows) = tensor.shape.split_last().map_or((1, &[][..]), |(cols, rows)| (*cols, rows));
            let bytes = encoding.block().matrix_bytes(rows.iter().product(), cols);
            assert_eq!(bytes, Some(tensor.bytes()), "{tensor:?}");
        }
    }
    for (key, value) in header.metadata.iter() {
        assert_eq!(header.metadata.get(key), Some(value));
    }
}

/// A file as a checkpoint: if it is accepted, every tensor is read and decoded, or refused.
pub fn tensors(file: &[u8]) {
    let path = scratch();
    // A new file: overwriting one makes some file systems wait for the disk.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, file).expect("the scratch folder takes files");
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    assert!(checkpoint.config().num_parameters() > 0 && checkpoint.gguf_metadata().is_some());
    for info in checkpoint.tensors() {
        let Ok(tensor) = checkpoint.tensor(&info.name) else { continue };
        assert_eq!(tensor.to_f32().len(), info.shape.iter().product::<usize>(), "{info:?}");
        let [rows, cols] = info.shape[..] else { continue };
        // A matrix without rows may have columns beyond all memory: nothing of it is ever read.
        if rows == 0 {
            continue;
        }
        let matrix = checkpoint.matrix(&info.name, rows, cols).expect("it has this shape");
        let mut reader = RowReader::new(&matrix);
        let mut values = vec![0.0; cols];
        for row in 0..rows {
            let bytes = reader.row(row).expect("a row that lies in the file");
            matrix.encoding.decode_row(bytes, &mut values);
        }
    }
}

/// A file of this process.
fn scratch() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("qwen-fuzz-gguf-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        folder.join("model.gguf")
    })
}
