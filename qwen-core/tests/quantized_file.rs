//! 16- and 32-bit models quantised into GGUF files: each row read back equals the output of `quantize_row`, the
//! configuration is the same, and no error leaves half a file.

mod common;

use std::num::NonZero;
use std::path::{Path, PathBuf};

use common::{TempFolder, safetensors_of};
use proptest::prelude::*;
use qwen_core::checkpoint::gguf::{GgufWriter, Metadata, NewTensor, Value, describe};
use qwen_core::model::source::WeightSource;
use qwen_core::quantize::{Importances, ModelFacts, QuantizedWeights, TensorMix, write_gguf};
use qwen_core::{Checkpoint, Config, Encoding, Error, GenerationConfig, RopeScaling};

const THREADS: NonZero<usize> = NonZero::new(3).unwrap();

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model")
}

fn write(weights: &QuantizedWeights<'_>, path: &Path) -> u64 {
    let checkpoint = weights.checkpoint();
    let metadata = describe(checkpoint.config(), checkpoint.generation_config()).unwrap();
    let mut last = 0;
    let bytes = write_gguf(path, weights, metadata, THREADS, &mut |progress| {
        assert!(progress.done_bytes > last && progress.done_bytes <= progress.total_bytes);
        last = progress.done_bytes;
    });
    assert_eq!(last, weights.total_bytes().unwrap());
    bytes.unwrap()
}

/// Compare a written file with its source, tensor by tensor.
fn check(source: &Checkpoint, written: &Checkpoint, mix: TensorMix, importances: Option<&Importances>) {
    let tied = source.config().tie_word_embeddings;
    let has_importances = importances.is_some();
    let facts = ModelFacts { num_hidden_layers: source.config().num_hidden_layers, tied, has_importances };
    let mut compared = 0;
    for info in source.tensors() {
        let name = &info.name;
        if tied && name == "lm_head.weight" {
            continue;
        }
        let (read, values) = (written.tensor(name).unwrap(), source.tensor(name).unwrap().to_f32());
        assert_eq!(read.shape, info.shape, "{name}");
        compared += 1;
        if info.shape.len() == 1 {
            assert_eq!((read.encoding, read.to_f32()), (Encoding::F32, values), "{name}");
            continue;
        }
        let cols = info.shape[1];
        assert_eq!(read.encoding, mix.encoding(name, cols, facts), "{name}");
        let mut expected = Vec::new();
        for row in values.chunks_exact(cols) {
            read.encoding.quantize_row(row, importances.and_then(|all| all.get(name)), &mut expected).unwrap();
        }
        assert!(read.data == expected, "{name} in {}", read.encoding);
    }
    assert_eq!(written.tensors().len(), compared);
}

fn check_configs(source: &Config, written: &Config) {
    // The ids are in the vocabulary, and other omitted keys have no effect.
    let mut same = written.clone();
    (same.eos_token_id, same.bos_token_id) = (source.eos_token_id.clone(), source.bos_token_id);
    (same.torch_dtype, same.sliding_window) = (source.torch_dtype, source.sliding_window);
    assert_eq!(source, &same);
}

#[test]
fn a_written_file_has_the_rows_that_quantize_row_makes() {
    let folder = TempFolder::new();
    let source = Checkpoint::open(demo()).unwrap();
    for name in TensorMix::names() {
        let mix: TensorMix = name.parse().unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        let weights = QuantizedWeights::new(&source, mix).unwrap();
        let bytes = write(&weights, &path);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
        let written = Checkpoint::open(&path).unwrap();
        check(&source, &written, mix, None);
        check_configs(source.config(), written.config());
        let metadata = written.gguf_metadata().unwrap();
        assert_eq!(metadata.get_u32("general.file_type"), mix.file_type());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), TensorMix::names().count(), "nothing is left beside");
}

#[test]
fn importances_weigh_the_columns() {
    let folder = TempFolder::new();
    let source = Checkpoint::open(demo()).unwrap();
    let mut importances = Importances::default();
    for info in source.tensors().filter(|info| info.shape.len() == 2) {
        importances.insert(&info.name, (0..info.shape[1]).map(|col| ((col * 7) % 13) as f32).collect());
    }
    for mix in [TensorMix::Q4KM, TensorMix::Uniform(Encoding::Q4_0)] {
        let weights = QuantizedWeights::new(&source, mix).unwrap().with_importances(&importances).unwrap();
        let path = folder.path().join("weighed.gguf");
        write(&weights, &path);
        check(&source, &Checkpoint::open(&path).unwrap(), mix, Some(&importances));
    }
    for bad in [vec![1.0; 3], vec![-1.0; 256], vec![f32::NAN; 256]] {
        importances.insert("model.layers.0.mlp.up_proj.weight", bad);
        let weights = QuantizedWeights::new(&source, TensorMix::Q4KM).unwrap();
        let error = weights.with_importances(&importances).unwrap_err().to_string();
        assert!(error.contains("mlp.up_proj") && error.contains("256"), "{error}");
    }
}

/// Each kind of 16- and 32-bit checkpoint, and files that are already GGUF.
#[test]
fn golden_checkpoints_keep_their_configuration() {
    let Some(golden) = common::golden() else { return };
    let folder = TempFolder::new();
    for name in [
        "dense-bf16",
        "dense-f16",
        "dense-f32",
        "dense-untied-hd128-bf16",
        "dense-sharded-bf16",
        "yarn-v4-type-bf16",
        "yarn-v5-bf16",
        "outliers-hd128-f16",
        "gguf-bf16",
        "gguf-f16",
    ] {
        let source = Checkpoint::open(golden.join(name)).unwrap();
        let weights = QuantizedWeights::new(&source, TensorMix::Q5KM).unwrap();
        let path = folder.path().join("golden.gguf");
        write(&weights, &path);
        let written = Checkpoint::open(&path).unwrap();
        check(&source, &written, TensorMix::Q5KM, None);
        check_configs(source.config(), written.config());
    }
    for name in ["gguf-q4_0", "gguf-q4_k_m", "gptq-int4-sym", "awq-int4"] {
        let source = Checkpoint::open(golden.join(name)).unwrap();
        let error = QuantizedWeights::new(&source, TensorMix::Q4KM).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("16 bits"), "{error}");
    }
}

#[test]
fn encodings_without_a_quantiser_are_refused() {
    let source = Checkpoint::open(demo()).unwrap();
    let error = QuantizedWeights::new(&source, TensorMix::Uniform(Encoding::Iq3S)).unwrap_err().to_string();
    assert!(error.contains("IQ3_S") && error.contains("use one of"), "{error}");
}

#[test]
fn yarn_and_sampling_come_back() {
    let json = |text: &str| Config::from_json("config.json", text).unwrap();
    let plain = json(include_str!("data/config-0.5b-instruct.json"));
    let generation = GenerationConfig::from_json(
        "generation_config.json",
        r#"{"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}"#,
    )
    .unwrap();
    let yarn = plain.clone().with_yarn(4.0).unwrap();
    let RopeScaling::Yarn(mut odd) = yarn.rope_scaling else { panic!("no YaRN") };
    (odd.beta_fast, odd.beta_slow, odd.attention_factor) = (16.0, 2.0, Some(1.25));
    let odd = plain.clone().with_rope_scaling(RopeScaling::Yarn(odd)).unwrap();
    let folder = TempFolder::new();
    for config in [plain, yarn.clone(), odd] {
        let path = folder.path().join("described.gguf");
        let metadata = describe(&config, &generation).unwrap();
        let table = NewTensor { name: "token_embd.weight".into(), encoding: Encoding::Q8_0, shape: vec![64, 32] };
        let mut writer = GgufWriter::create(&path, &metadata, vec![table]).unwrap();
        writer.write(&[0; 64 * 34]).unwrap();
        writer.finish().unwrap();
        let written = Checkpoint::open(&path).unwrap();
        assert_eq!(written.config().max_context(), config.max_context());
        match (config.rope_scaling, written.config().rope_scaling) {
            (RopeScaling::None, RopeScaling::None) => {}
            (RopeScaling::Yarn(one), RopeScaling::Yarn(other)) => {
                assert_eq!(
                    (one.factor, one.beta_fast, one.beta_slow),
                    (other.factor, other.beta_fast, other.beta_slow)
                );
                assert!((one.attention_factor() / other.attention_factor() - 1.0).abs() < 1e-7);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(written.generation_config(), &generation);
    }
    let RopeScaling::Yarn(mut untruncated) = yarn.rope_scaling else { panic!("no YaRN") };
    untruncated.truncate = false;
    let config = yarn.with_rope_scaling(RopeScaling::Yarn(untruncated)).unwrap();
    let error = describe(&config, &generation).unwrap_err().to_string();
    assert!(error.contains("truncate"), "{error}");
}

/// A checkpoint whose last matrix has a value that no block format holds: an error that names it, and the file that was
/// there before.
#[test]
fn an_error_leaves_what_was_there() {
    let folder = TempFolder::new().with("config.json", include_str!("data/config-0.5b-instruct.json"));
    let source = Checkpoint::open(demo()).unwrap();
    let config = std::fs::read(demo().join("config.json")).unwrap();
    let tensors: Vec<_> = source
        .tensors()
        .map(|info| {
            let mut data = source.tensor(&info.name).unwrap().data;
            if info.name == "model.layers.5.mlp.down_proj.weight" {
                data[2 * 512 + 6..][..2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
            }
            (info.name.clone(), "BF16", info.shape.clone(), data)
        })
        .collect();
    let folder = folder.with("config.json", config).with("model.safetensors", safetensors_of(&tensors));
    let folder = folder.with("out.gguf", "what was there");
    let damaged = Checkpoint::open(folder.path().join(".")).unwrap();
    let weights = QuantizedWeights::new(&damaged, TensorMix::Q4KM).unwrap();
    let out = folder.path().join("out.gguf");
    let error = write_gguf(&out, &weights, Metadata::default(), THREADS, &mut |_| {}).unwrap_err().to_string();
    for word in ["model.layers.5.mlp.down_proj.weight", "NaN", "row 1"] {
        assert!(error.contains(word), "{error} does not name {word}");
    }
    assert_eq!(std::fs::read(&out).unwrap(), b"what was there");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing is left beside");
    let gone = folder.path().join("no/such/folder/out.gguf");
    let error = write_gguf(&gone, &weights, Metadata::default(), THREADS, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("no/such/folder"), "{error}");
    assert!(write_gguf(folder.path(), &weights, Metadata::default(), THREADS, &mut |_| {}).is_err());
}

#[test]
fn what_no_file_can_hold_is_refused() {
    let folder = TempFolder::new();
    let path = folder.path().join("never.gguf");
    let tensor = |name: &str, encoding, shape: &[usize]| NewTensor { name: name.into(), encoding, shape: shape.into() };
    let refused = |tensors: &[NewTensor]| {
        GgufWriter::create(&path, &Metadata::default(), tensors.to_vec()).unwrap_err().to_string()
    };
    let f32 = Encoding::F32;
    for (tensors, word) in [
        (vec![tensor("a", f32, &[2]), tensor("a", f32, &[2])], "twice"),
        (vec![tensor(&"a".repeat(64), f32, &[2])], "64 bytes"),
        (vec![tensor("", f32, &[2])], "0 bytes"),
        (vec![tensor("a", Encoding::Q4K, &[2, 128])], "whole blocks"),
        (vec![tensor("a", f32, &[1; 5])], "5 dimensions"),
        (vec![tensor("a", f32, &[])], "0 dimensions"),
        (vec![tensor("a", f32, &[usize::MAX, usize::MAX])], "whole blocks"),
    ] {
        let error = refused(&tensors);
        assert!(error.contains(word), "{error} does not name {word}");
    }
    let mut writer = GgufWriter::create(&path, &Metadata::default(), vec![tensor("a", f32, &[2])]).unwrap();
    writer.write(&[0; 3]).unwrap();
    assert!(writer.write(&[0; 6]).is_err());
    drop(writer);
    let mut writer = GgufWriter::create(&path, &Metadata::default(), vec![tensor("a", f32, &[2])]).unwrap();
    writer.write(&[0; 3]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("3 of the 8 bytes") && error.contains("`a`"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn every_type_of_metadata_comes_back() {
    use qwen_core::checkpoint::gguf::{Array, Header};
    let folder = TempFolder::new();
    let path = folder.path().join("metadata.gguf");
    let mut metadata = Metadata::default();
    for (index, value) in [
        Value::U8(200),
        Value::I8(-3),
        Value::U16(60_000),
        Value::I16(-300),
        Value::U32(1 << 31),
        Value::I32(-70_000),
        Value::F32(0.1),
        Value::Bool(true),
        Value::String("text \u{e9}".into()),
        Value::U64(1 << 60),
        Value::I64(-1 << 60),
        Value::F64(0.1),
        Value::Array(Array::U8(vec![1, 2])),
        Value::Array(Array::I8(vec![-1])),
        Value::Array(Array::U16(vec![1])),
        Value::Array(Array::I16(vec![-1])),
        Value::Array(Array::U32(vec![1])),
        Value::Array(Array::I32(vec![-1, 5])),
        Value::Array(Array::F32(vec![0.5])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::String(["a", "", "b"].into_iter().collect())),
        Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::F64(vec![])])),
        Value::Array(Array::U64(vec![1 << 60])),
        Value::Array(Array::I64(vec![-1])),
        Value::Array(Array::F64(vec![0.1])),
    ]
    .into_iter()
    .enumerate()
    {
        metadata.insert(format!("key.{index}"), value);
    }
    GgufWriter::create(&path, &metadata, vec![]).unwrap().finish().unwrap();
    let header = Header::parse(&path, &std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(header.metadata, metadata);
}

proptest! {
    /// Whatever its width, a row consists of whole blocks, and no tensor gets fewer bits than the mix specifies.
    #[test]
    fn every_width_gets_an_encoding_that_fits(
        cols in 1_usize..40_000,
        layers in 1_usize..100,
        layer in 0_usize..100,
        tied: bool,
        has_importances: bool,
        mix in prop::sample::select(TensorMix::names().collect::<Vec<_>>()),
        tensor in prop::sample::select(vec![
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj",
        ]),
    ) {
        let mix: TensorMix = mix.parse().unwrap();
        let facts = ModelFacts { num_hidden_layers: layers, tied, has_importances };
        let bits = |encoding: Encoding| encoding.block().bytes as f64 / encoding.block().values as f64;
        for name in [
            &format!("model.layers.{}.{tensor}.weight", layer % layers), "model.embed_tokens.weight", "lm_head.weight",
        ] {
            let encoding = mix.encoding(name, cols, facts);
            prop_assert!(encoding.row_bytes(cols).is_some(), "{name}: {encoding} of {cols}");
            prop_assert!(bits(encoding) >= bits(mix.base()) || mix.base() == Encoding::F32);
            if cols.is_multiple_of(256) && mix.base().block().values > 1 {
                prop_assert!(encoding != Encoding::F16);
            }
        }
    }

    /// Reading any part of a row quantised on the fly gives the same bytes as reading the whole row.
    #[test]
    fn any_part_of_a_quantised_matrix_reads_the_same(start in 0_usize..256, len in 0_usize..256, block in 0_usize..2) {
        let source = Checkpoint::open(demo()).unwrap();
        let weights = QuantizedWeights::new(&source, TensorMix::Q4KM).unwrap();
        let matrix = weights.matrix("model.layers.0.mlp.down_proj.weight", 256, 512).unwrap();
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let all = matrix.read(0..256, &mut all).unwrap();
        let rows = start..(start + len).min(256);
        let part = matrix.read(rows.clone(), &mut some).unwrap();
        prop_assert_eq!(part, &all[rows.start * 288..rows.end * 288]);
        let cut = matrix.cut(rows.clone(), block * 256..512).unwrap();
        let mut some = Vec::new();
        let part = cut.read(0..rows.len(), &mut some).unwrap();
        let expected: Vec<u8> =
            rows.flat_map(|row| all[row * 288 + block * 144..(row + 1) * 288].iter().copied()).collect();
        prop_assert_eq!(part, &expected[..]);
    }
}
