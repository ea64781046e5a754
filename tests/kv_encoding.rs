//! The option for the K/V encoding: its memory, what it refuses, and that an engine answers with it.
#![cfg(feature = "cpu")]

mod common;

use common::{Folder, SMALL, Shape, demo, options, write_checkpoint};
use qwen::core::Error as ModelError;
use qwen::core::backend::reference::Reference;
use qwen::{Encoding, Engine, EngineOptions, Error, GenerateOptions, Precision};

fn kv_bytes(folder: &Folder, options: &EngineOptions) -> u64 {
    qwen::plan(&folder.0, options).unwrap().kv_bytes
}

#[test]
fn it_is_planned_for_by_layer() {
    // Two layers with heads of 32: the keys of the second one have a bias of 10, or of 100.
    let (plain, biased, wide) = (Folder::new("kv-plain"), Folder::new("kv-biased"), Folder::new("kv-wide"));
    write_checkpoint(&plain.0, SMALL, |_, _| {});
    for (folder, bias) in [(&biased, [0x20, 0x41]), (&wide, [0xc8, 0x42])] {
        write_checkpoint(&folder.0, SMALL, |name, bytes| {
            if name == "model.layers.1.self_attn.k_proj.bias" {
                bytes[6..8].copy_from_slice(&bias);
            }
        });
    }
    // Values of a layer's keys: 1024 positions of a head.
    let values = 1024 * 32;
    let of = |encoding| options().context(1024).kv_encoding(encoding);
    let (f32, f16, q8_0) = (values * 4, values * 2, values / 32 * 34);
    for precision in [Precision::Fast, Precision::Exact] {
        let of = |encoding| of(encoding).precision(precision);
        assert_eq!(kv_bytes(&plain, &of(Encoding::F32)), 4 * f32);
        assert_eq!(kv_bytes(&plain, &of(Encoding::F16)), 4 * f16);
        assert_eq!(kv_bytes(&plain, &of(Encoding::Q8_0)), 4 * q8_0);
        assert_eq!(kv_bytes(&biased, &of(Encoding::F16)), 4 * f16);
        assert_eq!(kv_bytes(&biased, &of(Encoding::Q8_0)), 3 * q8_0 + f16);
        assert_eq!(kv_bytes(&wide, &of(Encoding::F16)), 3 * f16 + f32);
        assert_eq!(kv_bytes(&wide, &of(Encoding::Q8_0)), 3 * q8_0 + f32);
    }
    // In the same memory there is room for a longer context.
    let budget = qwen::plan(&plain.0, &of(Encoding::F16)).unwrap().total_bytes;
    let longest = |encoding| {
        let options = options().context(1024).kv_encoding(encoding).memory_budget(budget);
        qwen::plan(&plain.0, &options).unwrap().max_context.unwrap()
    };
    assert!(longest(Encoding::Q8_0) > longest(Encoding::F16), "{budget}");
}

#[test]
fn an_engine_answers_with_it() {
    let options = || options().context(512).kv_encoding(Encoding::Q8_0);
    let answer = |engine: &Engine| {
        let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(32));
        chat.send("Hello! What is 3 + 4?").unwrap().text().unwrap()
    };
    let exact = answer(&options().precision(Precision::Exact).load(demo()).unwrap());
    let reference = answer(&options().load_with_backend(Reference::new(), demo()).unwrap());
    assert_eq!(exact, reference);
    assert!(!answer(&options().load(demo()).unwrap()).is_empty());
}

#[test]
fn what_it_cannot_be_is_refused_by_name() {
    for encoding in [Encoding::Bf16, Encoding::Q4_0] {
        match qwen::plan(demo(), &options().kv_encoding(encoding)) {
            Err(Error::Model(ModelError::InvalidArgument { name: "kv_encoding", reason })) => {
                assert!(reason.contains(&encoding.to_string()) && reason.contains("Q8_0"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    // Heads of 16 are not whole blocks.
    let folder = Folder::new("kv-heads");
    write_checkpoint(&folder.0, Shape { hidden: 32, ..SMALL }, |_, _| {});
    match options().kv_encoding(Encoding::Q8_0).load(&folder.0) {
        Err(Error::Model(ModelError::InvalidArgument { name: "kv_encoding", reason })) => {
            assert!(reason.contains("16 values") && reason.contains("F16"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(options().kv_encoding(Encoding::F16).load(&folder.0).is_ok());
}
