//! Files of GPTQ and AWQ tensors: each packed matrix is refused, or read completely, with as many bytes as its blocks
//! have.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use qwen_core::Checkpoint;
use qwen_core::backend::MatrixPart;
use serde_json::{Value, json};

/// How the tensors may be packed.
fn settings() -> [Value; 6] {
    let gptq = |bits: u32, group_size: i32, format: &str, desc_act: bool| {
        json!({
            "quant_method": "gptq", "bits": bits, "group_size": group_size, "checkpoint_format": format,
            "desc_act": desc_act,
        })
    };
    [
        gptq(4, 32, "gptq", false),
        gptq(4, 32, "gptq", true),
        gptq(8, 64, "gptq_v2", false),
        gptq(4, -1, "gptq_v2", true),
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
        json!({"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"}),
    ]
}

/// The first byte chooses the settings, the rest is a safetensors file: read as it is, and with a corrected header
/// length.
pub fn packed(input: &[u8]) {
    let Some((&choice, file)) = input.split_first() else { return };
    read(choice, file);
    if let Some(json) = file.get(8..) {
        let mut depth = 0_i32;
        let end = json.iter().position(|byte| {
            depth += i32::from(*byte == b'{') - i32::from(*byte == b'}');
            depth == 0
        });
        if let Some(end) = end {
            let length = (end as u64 + 1).to_le_bytes();
            read(choice, &[&length, json].concat());
        }
    }
}

fn read(choice: u8, file: &[u8]) {
    let folders = folders();
    let choice = usize::from(choice) % folders.len();
    let folder = &folders[choice];
    // A new file each time: some file systems write a file out to the disk before it is overwritten.
    let weights = folder.join("model.safetensors");
    let _ = fs::remove_file(&weights);
    fs::write(weights, file).expect("the scratch folder takes files");
    let Ok(checkpoint) = Checkpoint::open(folder) else { return };
    let awq = settings()[choice]["quant_method"] == "awq";
    let codes_per_integer = if settings()[choice]["bits"] == 8 { 4 } else { 8 };
    for tensor in checkpoint.tensors() {
        let (Some(module), &[outer, inner]) = (tensor.name.strip_suffix(".qweight"), tensor.shape.as_slice()) else {
            continue;
        };
        let name = format!("{module}.weight");
        if checkpoint.has(&name) {
            continue;
        }
        let Ok(encoding) = checkpoint.encoding(&name) else { continue };
        let (rows, cols) = if awq { (inner * 8, outer) } else { (inner, outer * codes_per_integer) };
        assert!(checkpoint.matrix(&name, rows + 1, cols).is_err() && checkpoint.matrix(&name, rows, cols + 1).is_err());
        let Ok(part) = checkpoint.matrix(&name, rows, cols) else { continue };
        assert_eq!(part.encoding, encoding);
        let Some(whole) = bytes(&part) else { continue };
        assert_eq!(Some(whole.len()), encoding.row_bytes(cols).map(|row| row * rows));
        let half = part.cut(rows / 2..rows, 0..cols).expect("rows are cut anywhere");
        assert_eq!(bytes(&half).as_deref(), Some(&whole[rows / 2 * part.row_bytes..]));
    }
}

/// All rows of a part, where its scales allow it.
fn bytes(part: &MatrixPart<'_>) -> Option<Vec<u8>> {
    part.read(0..part.rows, &mut Vec::new()).ok().map(<[u8]>::to_vec)
}

/// A folder of this process for each of the settings.
fn folders() -> &'static [PathBuf] {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let folder = |(i, quantization)| {
            let folder = std::env::temp_dir().join(format!("qwen-fuzz-packed-{}-{i}", std::process::id()));
            fs::create_dir_all(&folder).expect("a scratch folder");
            let config = json!({
                "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 1, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
                "rope_theta": 1e6, "quantization_config": quantization,
            });
            fs::write(folder.join("config.json"), config.to_string()).expect("the scratch folder takes files");
            folder
        };
        settings().into_iter().enumerate().map(folder).collect()
    })
}
