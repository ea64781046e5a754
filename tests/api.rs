//! The API apart from the models themselves: names, errors as values, texts, and serde.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use qwen::{
    Device, Encoding, ErrorKind, FinishReason, GenerateOptions, HumanBytes, ModelError, Precision, StoppedBy, TextError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Every type that the facade's signatures and public fields mention can be named as `qwen::Name`.
#[test]
fn every_type_of_the_interface_has_a_name_at_the_root() {
    fn named<T: ?Sized>() {}
    // Loading.
    named::<qwen::Engine>();
    named::<qwen::EngineOptions>();
    named::<qwen::Device>();
    named::<qwen::DeviceEntry>();
    named::<qwen::AdapterChoice>();
    named::<qwen::CapabilitySet>();
    named::<qwen::Precision>();
    named::<qwen::Encoding>();
    named::<(qwen::Block, qwen::GroupEncoding, qwen::GroupBits)>();
    named::<qwen::Plan>();
    named::<qwen::MemoryInfo>();
    named::<qwen::memory::MemoryInfo>();
    named::<qwen::HumanBytes>();
    named::<qwen::Ranks>();
    named::<(qwen::LoadProgress, qwen::LoadStage, qwen::LoadCanceller)>();
    named::<qwen::Warning>();
    named::<qwen::Config>();
    named::<(qwen::RopeScaling, qwen::Yarn, qwen::Quantization, qwen::QuantMethod, qwen::GptqFormat)>();
    named::<qwen::GenerationConfig>();
    // The program's own backend.
    fn backend<B: qwen::Backend>() {}
    backend::<qwen::core::backend::reference::Reference>();
    // Requests and answers.
    named::<qwen::GenerateOptions>();
    named::<qwen::Chat>();
    named::<qwen::Reply>();
    named::<qwen::TextStream>();
    named::<qwen::TokenStream>();
    named::<qwen::LogitsRows>();
    named::<qwen::Canceller>();
    named::<qwen::FinishReason>();
    named::<(qwen::Stats, qwen::PromptProgress)>();
    named::<qwen::Work>();
    // Texts.
    named::<(qwen::Tokenizer, qwen::DecodeStream, qwen::EncodedChat)>();
    named::<(qwen::ChatInput<'_>, qwen::ChatTemplate)>();
    named::<(qwen::Message, qwen::Role, qwen::Content, qwen::ContentPart)>();
    named::<(qwen::Tool, qwen::ToolCall, qwen::FunctionCall, qwen::Arguments)>();
    // Quantising.
    named::<qwen::Quantizer<'_>>();
    named::<(qwen::QuantizedFile, qwen::QuantizeProgress<'_>, qwen::Importances, qwen::TensorMix, qwen::ModelFacts)>();
    // What goes wrong.
    named::<qwen::Result<(), qwen::Error>>();
    named::<(qwen::ErrorKind, qwen::PromptLength)>();
    named::<(qwen::ModelError, qwen::TextError, qwen::ParseDeviceError)>();
}

/// What `anyhow` and others print for an error: its text, and those of its sources.
fn chain(error: &dyn StdError) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    texts
}

fn io_error() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "this was refused")
}

#[test]
fn a_chain_of_sources_says_nothing_twice() {
    let path = PathBuf::from("model.safetensors");
    let errors: [qwen::Error; 4] = [
        ModelError::Io { path: path.clone(), error: io_error() }.into(),
        TextError::Read { path, kind: io::ErrorKind::PermissionDenied, reason: io_error().to_string() }.into(),
        qwen::Engine::load("no/such/folder").unwrap_err(),
        qwen::load_tokenizer("no/such/folder").unwrap_err(),
    ];
    for error in errors {
        assert_eq!(chain(&error), [error.to_string()]);
        // Through a box, as created by `?` in `main`.
        let boxed: Box<dyn StdError + Send + Sync> = error.into();
        assert_eq!(chain(&*boxed).len(), 1);
    }
    let refused: qwen::Error = ModelError::Io { path: "a".into(), error: io_error() }.into();
    assert_eq!(refused.to_string(), "a: this was refused");
}

#[test]
fn kinds_tell_a_program_what_to_do() {
    let text = |error: TextError| qwen::Error::from(error).kind();
    let read = |kind| text(TextError::Read { path: PathBuf::new(), kind, reason: String::new() });
    assert_eq!(read(io::ErrorKind::NotFound), ErrorKind::NotFound);
    assert_eq!(read(io::ErrorKind::PermissionDenied), ErrorKind::Io);
    assert_eq!(text(TextError::NoChatTemplate { looked_for: String::new() }), ErrorKind::Unsupported);
    assert_eq!(text(TextError::Refused { message: "roles".into() }), ErrorKind::InvalidMessages);
    assert_eq!(text(TextError::ControlTokensRewritten), ErrorKind::InvalidMessages);
    assert_eq!(text(TextError::ContentPart { index: 0, kind: "image".into() }), ErrorKind::InvalidMessages);
    let damaged = TextError::TemplateSyntax { name: "default".into(), line: 1, problem: String::new() };
    assert_eq!(text(damaged), ErrorKind::InvalidModel);
    let too_large = TextError::TooLarge { file: "tokenizer.json".into(), bytes: 1 << 30, limit: 64 << 20 };
    assert_eq!(
        too_large.to_string(),
        "tokenizer.json: 1.00 GiB, more than the 64.0 MiB that are read; is it the right file?"
    );
    assert_eq!(text(too_large), ErrorKind::InvalidModel);
    let too_long: qwen::Error = TextError::TooManyTokens { limit: 63, bytes: None }.into();
    assert_eq!(too_long.kind(), ErrorKind::PromptTooLong);
    let length = too_long.prompt_length().expect("figures");
    assert_eq!((length.tokens, length.limit), (None, 63));
    let full: qwen::Error = ModelError::QueueFull { waiting: 2, max_waiting: 2 }.into();
    assert_eq!((full.kind(), full.prompt_length()), (ErrorKind::Busy, None));
    for missing in [qwen::Engine::load("no/such/folder").err(), qwen::load_tokenizer("no/such/folder").err()] {
        assert_eq!(missing.map(|error| error.kind()), Some(ErrorKind::NotFound));
    }
}

/// One function that parses whatever a command line may hold, with one error.
fn parsed(device: &str, precision: &str, encoding: &str) -> qwen::Result<(Device, Precision, Encoding)> {
    let _: qwen::AdapterChoice = "Radeon".parse()?;
    let _: qwen::Role = "user".parse()?;
    let _: qwen::CapabilitySet = "default".parse()?;
    let _: qwen::TensorMix = "q4_k_m".parse()?;
    Ok((device.parse()?, precision.parse()?, encoding.parse()?))
}

#[test]
fn what_is_parsed_from_text_has_errors_of_one_type() {
    assert_eq!(parsed("cuda:1", "exact", "q8_0").unwrap(), (Device::Cuda(1), Precision::Exact, Encoding::Q8_0));
    for (device, precision, encoding, word) in
        [("abacus", "fast", "F16", "`abacus`"), ("cpu", "slow", "F16", "`slow`"), ("cpu", "fast", "F17", "`F17`")]
    {
        let error = parsed(device, precision, encoding).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// The JSON of a value, which parses back to the same value.
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) -> serde_json::Value {
    let json = serde_json::to_value(&value).unwrap();
    assert_eq!(serde_json::from_value::<T>(json.clone()).unwrap(), value);
    json
}

#[test]
fn options_and_reasons_are_data_under_the_names_of_the_field() {
    let options = GenerateOptions::new().max_new_tokens(64).temperature(0.5).stop_token_ids([7]).seed(3);
    let json = round_trip(options);
    assert_eq!((&json["max_new_tokens"], &json["temperature"], &json["seed"]), (&json!(64), &json!(0.5), &json!(3)));
    assert_eq!(serde_json::from_str::<GenerateOptions>("{}").unwrap(), GenerateOptions::new());
    let unknown = serde_json::from_str::<GenerateOptions>(r#"{"max_tokens": 3}"#).unwrap_err().to_string();
    assert!(unknown.contains("`max_tokens`") && unknown.contains("`max_new_tokens`"), "{unknown}");

    for (reason, name) in [
        (FinishReason::Stop, "stop"),
        (FinishReason::StopString, "stop_string"),
        (FinishReason::Length, "length"),
        (FinishReason::ContextFull, "context_full"),
        (FinishReason::Cancelled, "cancelled"),
    ] {
        assert_eq!((round_trip(reason), reason.to_string()), (json!(name), name.to_owned()));
    }
    // As in OpenAI's API, one stop string needs no list.
    let one: GenerateOptions = serde_json::from_str(r#"{"stop": "User:"}"#).unwrap();
    assert_eq!(one, GenerateOptions::new().stop(["User:"]));
    assert_eq!(round_trip(one)["stop"], json!(["User:"]));
    let refused = serde_json::from_str::<GenerateOptions>(r#"{"stop": 3}"#).unwrap_err().to_string();
    assert!(refused.contains("a string or a list of strings"), "{refused}");
    assert_eq!(round_trip(StoppedBy::Token(3)), json!({"token": 3}));
    assert_eq!(round_trip(StoppedBy::String("\n".into())), json!({"string": "\n"}));
    assert_eq!(round_trip(Precision::Exact), "exact");
    assert_eq!(round_trip(Encoding::Q4K), "Q4_K");
    assert_eq!(round_trip(qwen::TensorMix::Q4KM), "q4_k_m");
    assert_eq!(round_trip(Device::Cuda(1)), "cuda:1");
    assert_eq!(round_trip(qwen::AdapterChoice::Index(2)), "2");
    assert_eq!(round_trip(qwen::CapabilitySet::Best), "best");
    assert_eq!(round_trip(ErrorKind::PromptTooLong), "prompt_too_long");
    assert_eq!(round_trip(HumanBytes(5)), 5);
    assert_eq!(round_trip(qwen::LoadStage::WarmUp), "warm_up");
    assert!(serde_json::from_value::<Device>(json!("abacus")).unwrap_err().to_string().contains("`abacus`"));

    let stats = json!({
        "prompt_tokens": 12, "cached_tokens": 0, "new_tokens": 41,
        "first_token_seconds": 0.5, "generation_seconds": 2.0,
    });
    let stats: qwen::Stats = serde_json::from_value(stats).unwrap();
    assert_eq!(round_trip(stats)["generation_seconds"], 2.0);
    assert_eq!(stats.to_string(), "12 prompt tokens, 41 new tokens, the first after 0.50 s, then 20.0 tokens/s");
    let before = qwen::Stats::default();
    assert_eq!(round_trip(before)["first_token_seconds"], json!(null));
    assert_eq!(before.to_string(), "0 prompt tokens, 0 new tokens");
}

#[cfg(feature = "cpu")]
#[test]
fn a_plan_is_a_line_and_its_refusal_names_both_figures() {
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
    let options = || qwen::EngineOptions::new().context(512);
    let plan = qwen::plan(&demo, &options().memory_budget(1 << 30)).unwrap();
    let text = plan.to_string();
    let total = HumanBytes(plan.total_bytes);
    assert!(text.starts_with(&format!("{total}: weights ")) && text.contains("(512 positions)"), "{text}");
    assert!(text.ends_with("; fits, 1.00 GiB are available"), "{text}");

    let two = options().batch(2).memory_budget(1 << 20);
    let refused = qwen::plan(&demo, &two).unwrap();
    let text = refused.to_string();
    assert!(text.contains("(2 x 512 positions)") && text.ends_with("; does not fit, 1.00 MiB are available"), "{text}");
    let error = two.load(&demo).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let needed = HumanBytes(refused.total_bytes);
    assert!(error.to_string().starts_with(&format!("needs {needed} of memory, 1.00 MiB are available")), "{error}");
    // The exact figures are in the value.
    let qwen::Error::Model(ModelError::DoesNotFit { needed, available, .. }) = error else { panic!("{error:?}") };
    assert_eq!((needed, available), (refused.total_bytes, 1 << 20));
}
