//! `quantization_config` of published files, and every method and layout that is refused by name.

use qwen_core::checkpoint::config::{GptqFormat, QuantMethod, Quantization};
use qwen_core::numerics::encoding::GroupBits;
use qwen_core::{Config, Error};
use serde_json::{Value, json};

/// The 0.5B Instruct file with this `quantization_config`.
fn config(quantization: &Value) -> Result<Config, Error> {
    let mut config: Value = serde_json::from_str(include_str!("data/config-0.5b-instruct.json")).unwrap();
    config["quantization_config"] = quantization.clone();
    Config::from_json("some/config.json", &config.to_string())
}

/// `base` with keys replaced.
fn with(mut base: Value, changes: Value) -> Value {
    let (Value::Object(base_keys), Value::Object(changes)) = (&mut base, changes) else { panic!("two objects") };
    base_keys.extend(changes);
    base
}

/// What Qwen2.5-*-Instruct-GPTQ-Int4 has.
fn gptq() -> Value {
    json!({
        "batch_size": 1, "bits": 4, "block_name_to_quantize": null, "cache_block_outputs": true, "damp_percent": 0.01,
        "dataset": null, "desc_act": false, "exllama_config": {"version": 1}, "group_size": 128,
        "max_input_length": null, "model_seqlen": null, "module_name_preceding_first_block": null,
        "modules_in_block_to_quantize": null,
        "pad_token_id": null, "quant_method": "gptq", "sym": true, "tokenizer": null, "true_sequential": true,
        "use_cuda_fp16": false, "use_exllama": true
    })
}

/// What Qwen2.5-*-Instruct-AWQ has.
fn awq() -> Value {
    json!({
        "bits": 4, "group_size": 128, "modules_to_not_convert": null, "quant_method": "awq", "version": "gemm",
        "zero_point": true
    })
}

fn accept(quantization: &Value) -> Quantization {
    match config(quantization) {
        Ok(Config { quantization: Some(quantization), .. }) => quantization,
        other => panic!("{quantization}: {other:?}"),
    }
}

#[test]
fn published_files_are_read_field_by_field() {
    let plain: Quantization = accept(&gptq());
    assert_eq!(plain.bits, GroupBits::Four);
    assert_eq!(plain.group_size, Some(128));
    let v1 = |desc_act, sym| QuantMethod::Gptq { checkpoint_format: GptqFormat::V1, desc_act, sym };
    assert_eq!(plain.method, v1(false, true));
    assert!(plain.modules_to_not_convert.is_empty());

    let int8 = accept(&with(gptq(), json!({"bits": 8, "desc_act": true, "sym": false, "group_size": -1})));
    assert_eq!((int8.bits, int8.group_size, int8.method), (GroupBits::Eight, None, v1(true, false)));
    assert_eq!(accept(&with(gptq(), json!({"group_size": -1.0}))).group_size, None);
    for key in ["checkpoint_format", "format"] {
        let v2 = accept(&with(gptq(), json!({key: "gptq_v2", "is_marlin_format": false, "pack_dtype": "int32"})));
        assert!(matches!(v2.method, QuantMethod::Gptq { checkpoint_format: GptqFormat::V2, .. }));
    }

    let plain = accept(&awq());
    assert_eq!((plain.method, plain.bits, plain.group_size), (QuantMethod::Awq, GroupBits::Four, Some(128)));
    let upper = with(awq(), json!({"quant_method": "AWQ", "version": "GEMM", "modules_to_not_convert": ["lm_head"]}));
    assert_eq!(accept(&upper).modules_to_not_convert, ["lm_head"]);
    assert_eq!(accept(&with(awq(), json!({"version": null, "backend": "autoawq"}))).method, QuantMethod::Awq);
    assert_eq!(config(&Value::Null).unwrap().quantization, None);
}

#[test]
fn rules_for_modules_are_read_unless_they_change_the_packing() {
    for rules in [
        json!(null),
        json!({}),
        json!({"-:.*\\.mlp\\..*": {}, "+:.*": {"bits": 4, "group_size": 128}}),
        json!({"-:.*down_proj.*": {"bits": 8}, ".*o_proj.*": {"desc_act": true}}),
    ] {
        accept(&with(gptq(), json!({"dynamic": rules})));
    }
    for rules in [json!({"+:.*down_proj.*": {"bits": 8}}), json!({".*o_proj.*": {"group_size": 32}})] {
        let message = config(&with(gptq(), json!({"dynamic": rules}))).unwrap_err().to_string();
        assert!(message.contains("quantization_config.dynamic") && message.contains("_proj"), "{message}");
    }
}

#[test]
fn what_is_not_read_is_refused_by_name_and_says_what_to_use() {
    let methods = [
        "bitsandbytes",
        "fp8",
        "fbgemm_fp8",
        "hqq",
        "compressed-tensors",
        "torchao",
        "aqlm",
        "quanto",
        "eetq",
        "vptq",
        "marlin",
        "auto-round",
        "higgs",
        "spqr",
        "bitnet",
        "modelopt",
        "a method of next year",
    ];
    let methods =
        methods.map(|method| (json!({"quant_method": method, "bits": 4, "group_size": 128}), method, "quant_method"));
    let layouts = [
        (with(gptq(), json!({"checkpoint_format": "marlin"})), "\"marlin\"", "checkpoint_format"),
        (with(gptq(), json!({"checkpoint_format": "bitblas"})), "\"bitblas\"", "checkpoint_format"),
        (with(gptq(), json!({"format": "marlin"})), "\"marlin\"", "format"),
        (with(gptq(), json!({"is_marlin_format": true})), "\"marlin\"", "is_marlin_format"),
        (with(gptq(), json!({"bits": 3})), "3 bits", "bits"),
        (with(gptq(), json!({"bits": 2})), "2 bits", "bits"),
        (with(gptq(), json!({"group_size": 16})), "groups of 16", "group_size"),
        (with(gptq(), json!({"group_size": 100})), "groups of 100", "group_size"),
        (with(gptq(), json!({"pack_dtype": "int16"})), "\"int16\"", "pack_dtype"),
        (with(awq(), json!({"version": "gemv"})), "\"gemv\"", "version"),
        (with(awq(), json!({"version": "GEMV_FAST"})), "\"gemv_fast\"", "version"),
        (with(awq(), json!({"version": "marlin"})), "\"marlin\"", "version"),
        (with(awq(), json!({"bits": 8})), "8 bits", "bits"),
        (with(awq(), json!({"zero_point": false})), "zero points", "zero_point"),
        (with(awq(), json!({"backend": "llm-awq"})), "llm-awq", "backend"),
    ];
    for (quantization, named, key) in methods.into_iter().chain(layouts) {
        match config(&quantization) {
            Err(error @ Error::Unsupported { .. }) => {
                let message = error.to_string();
                let key = format!("(some/config.json: key `quantization_config.{key}`)");
                assert!(message.contains(named) && message.contains(&key), "{message}");
                assert!(message.contains("use"), "{message}");
            }
            other => panic!("{quantization}: {other:?}"),
        }
    }
}

#[test]
fn malformed_keys_are_named_with_what_was_found() {
    for (quantization, key, found) in [
        (with(gptq(), json!({"bits": "4"})), "bits", "\"4\""),
        (with(gptq(), json!({"bits": null})), "bits", "missing"),
        (with(gptq(), json!({"bits": 4.5})), "bits", "4.5"),
        (with(gptq(), json!({"group_size": 0})), "group_size", "0"),
        (with(gptq(), json!({"group_size": -2})), "group_size", "-2"),
        (with(gptq(), json!({"group_size": 1u64 << 60})), "group_size", "1152921504606846976"),
        (with(gptq(), json!({"group_size": "128"})), "group_size", "\"128\""),
        (with(gptq(), json!({"group_size": null})), "group_size", "missing"),
        (with(gptq(), json!({"desc_act": "true"})), "desc_act", "\"true\""),
        (with(gptq(), json!({"checkpoint_format": 2})), "checkpoint_format", "2"),
        (with(gptq(), json!({"dynamic": [1]})), "dynamic", "an object of rules"),
        (with(awq(), json!({"version": 1})), "version", "1"),
        (with(awq(), json!({"modules_to_not_convert": "lm_head"})), "modules_to_not_convert", "list of names"),
        (with(awq(), json!({"modules_to_not_convert": [1]})), "modules_to_not_convert", "list of names"),
        (json!({"quant_method": 4}), "quant_method", "4"),
    ] {
        match config(&quantization) {
            Err(Error::InvalidConfig { path, key: named, reason }) => {
                assert_eq!(path.to_str(), Some("some/config.json"));
                assert_eq!(named, format!("quantization_config.{key}"));
                assert!(reason.contains(found), "{reason}");
            }
            other => panic!("{quantization}: {other:?}"),
        }
    }
    assert!(matches!(config(&json!("gptq")), Err(Error::InvalidConfig { key, .. }) if key == "quantization_config"));
}
