//! The engine on a wgpu device: software Vulkan, if it is installed. `$QWEN_WGPU_ADAPTER` names another adapter.
#![cfg(feature = "wgpu")]

mod common;

use common::{Folder, demo, options};
use qwen::{
    AdapterChoice, CapabilitySet, ChatInput, Device, Encoding, Engine, EngineOptions, GenerateOptions, Message,
    Precision, Split, Tool,
};
use serde_json::Value;

/// The adapter to test on, if this machine has it.
fn device() -> Option<Device> {
    let name = std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
    let device = Device::Wgpu(AdapterChoice::Name(name.clone()));
    let names: Vec<String> = qwen::devices().into_iter().map(|entry| entry.name).collect();
    let found = names.iter().any(|found| found.to_lowercase().contains(&name.to_lowercase()));
    if !found {
        println!("skipped: there is no adapter named `{name}` among {names:?}");
    }
    found.then_some(device)
}

fn on(device: &Device) -> EngineOptions {
    options().device(device.clone()).precision(Precision::Exact).context(512).max_num_batched_tokens(128)
}

/// The prompts of some held-out questions, one of each kind.
fn prompts(engine: &Engine) -> Vec<Vec<u32>> {
    let questions: Vec<Value> = serde_json::from_str(include_str!("data/demo_questions.json")).unwrap();
    let mut seen = Vec::new();
    let mut prompts = Vec::new();
    for question in &questions {
        if seen.contains(&&question["category"]) {
            continue;
        }
        seen.push(&question["category"]);
        let messages: Vec<Message> = serde_json::from_value(question["messages"].clone()).unwrap();
        let tools: Option<Vec<Tool>> =
            serde_json::from_value(question.get("tools").cloned().unwrap_or_default()).unwrap();
        let tools = tools.unwrap_or_default();
        prompts.push(engine.tokenizer().unwrap().encode_chat(&ChatInput::new(&messages).tools(&tools)).unwrap().ids);
    }
    prompts.truncate(4);
    prompts
}

fn answer(engine: &Engine, prompt: &[u32]) -> Vec<u32> {
    let options = GenerateOptions::new().greedy().max_new_tokens(24);
    engine.generate_ids(prompt, &options).unwrap().collect::<qwen::Result<_>>().unwrap()
}

#[test]
fn answers_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let cpu = on(&Device::Cpu).load(demo()).unwrap();
    let prompts = prompts(&cpu);
    let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| answer(&cpu, prompt)).collect();
    assert!(expected.iter().all(|answer| answer.len() > 1));
    for capabilities in [CapabilitySet::Tiny, CapabilitySet::Default] {
        let wgpu = on(&device).wgpu_capabilities(capabilities).load(demo()).unwrap();
        assert_eq!(wgpu.device(), Some(&device));
        for (prompt, expected) in prompts.iter().zip(&expected) {
            assert_eq!(&answer(&wgpu, prompt), expected, "{capabilities:?}");
        }
    }
}

/// As on the CPU with the same K/V; and a conversation that was saved with it goes on in another engine.
#[test]
fn keys_and_values_in_8_bits_answer_and_are_saved() {
    let Some(device) = device() else { return };
    let load = |device: &Device| on(device).kv_encoding(Encoding::Q8_0).load(demo()).unwrap();
    let (cpu, wgpu) = (load(&Device::Cpu), load(&device));
    for prompt in prompts(&cpu) {
        assert_eq!(answer(&wgpu, &prompt), answer(&cpu, &prompt));
    }
    let folder = Folder::new("wgpu-kv");
    let path = folder.0.join("one.chat");
    let mut chat = wgpu.chat().options(GenerateOptions::new().greedy().max_new_tokens(24));
    chat.send("Hello! What is 3 + 4?").unwrap().text().unwrap();
    let saved = chat.save(&path).unwrap();
    assert!(saved > 0);
    let mut restored = load(&device).restore(&path).unwrap();
    let question = "And what is 2 + 2?";
    let expected = chat.send(question).unwrap().text().unwrap();
    let mut reply = restored.send(question).unwrap();
    let found: String = reply.by_ref().map(Result::unwrap).collect();
    assert_eq!((found, reply.stats().cached_tokens), (expected, saved));
}

#[test]
fn engines_on_both_devices_run_side_by_side() {
    let Some(device) = device() else { return };
    let engines = [&device, &Device::Cpu, &device].map(|device| on(device).load(demo()).unwrap());
    assert!(engines[0].device_name().starts_with("wgpu") && engines[1].device_name().starts_with("cpu"));
    let prompts = prompts(&engines[1]);
    let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| answer(&engines[1], prompt)).collect();
    std::thread::scope(|scope| {
        for engine in &engines {
            scope.spawn(|| {
                for (prompt, expected) in prompts.iter().zip(&expected) {
                    assert_eq!(&answer(engine, prompt), expected, "{}", engine.device_name());
                }
            });
        }
    });
}

#[test]
fn a_split_answers_as_one_device_does_alone_and_in_company() {
    let Some(device) = device() else { return };
    let cpu = on(&Device::Cpu).load(demo()).unwrap();
    let prompts = prompts(&cpu);
    let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| answer(&cpu, prompt)).collect();
    for (split, placed) in [
        (Split::new().layers(device.clone(), 4).fill(Device::Cpu), [4, 2]),
        (Split::new().fill(Device::Cpu).layers(device.clone(), 3), [3, 3]),
    ] {
        let engine = on(&Device::Split(split.clone())).batch(4).load(demo()).unwrap();
        let Some(Device::Split(found)) = engine.device() else { panic!("{:?}", engine.device()) };
        assert_eq!(found.parts().iter().filter_map(|part| part.layers).collect::<Vec<_>>(), placed);
        assert!(engine.device_name().contains("wgpu") && engine.device_name().contains("cpu"));
        let options = GenerateOptions::new().greedy().max_new_tokens(24);
        let streams: Vec<_> =
            prompts.iter().map(|prompt| engine.generate_ids(prompt.clone(), &options).unwrap()).collect();
        for (stream, expected) in streams.into_iter().zip(&expected) {
            assert_eq!(&stream.collect::<qwen::Result<Vec<_>>>().unwrap(), expected, "{}", engine.device_name());
        }
        // Sampled answers depend on the last bits of logits, and not on the company, nor on what is cached.
        let wild = |seed| GenerateOptions::new().temperature(2.0).seed(seed).max_new_tokens(16).ignore_eos(true);
        let ask = |seed: u64| engine.generate_ids(prompts[seed as usize % prompts.len()].clone(), &wild(seed)).unwrap();
        let streams: Vec<_> = (0..4).map(ask).collect();
        let together: Vec<Vec<u32>> =
            streams.into_iter().map(|stream| stream.collect::<qwen::Result<_>>().unwrap()).collect();
        for (seed, together) in (0..4).zip(together) {
            assert_eq!(ask(seed).collect::<qwen::Result<Vec<_>>>().unwrap(), together, "{}", engine.device_name());
        }
    }
    // One memory for both: all layers fit the first device.
    let by_plan = on(&Device::Split(Split::new().fill(device.clone()).fill(Device::Cpu))).load(demo()).unwrap();
    assert_eq!(by_plan.device(), Some(&device));
}

#[test]
fn engines_come_and_go() {
    let Some(device) = device() else { return };
    let mut answers = (0..10).map(|_| {
        let engine = on(&device).load(demo()).unwrap();
        let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(8));
        chat.send("Hello!").unwrap().text().unwrap()
    });
    let first = answers.next().unwrap();
    assert!(!first.is_empty());
    answers.for_each(|answer| assert_eq!(answer, first));
}

#[test]
fn auto_runs_on_no_software_adapter_and_says_why() {
    let plan = qwen::plan(demo(), &options().device(Device::Auto).context(512)).unwrap();
    assert!(plan.fits);
    let engine = options().device(Device::Auto).context(512).load(demo()).unwrap();
    let hardware = qwen::devices().iter().any(|entry| !matches!(entry.kind, "processor" | "software"));
    match engine.device() {
        Some(Device::Cpu) if !hardware => assert_eq!(engine.selection_reason(), "no hardware GPU was found"),
        placed => println!("{placed:?}: {}", engine.selection_reason()),
    }
    assert!(hardware || engine.device() == Some(&Device::Cpu));
}

#[test]
fn what_a_device_cannot_bind_is_refused_with_what_would_fit() {
    let Some(device) = device() else { return };
    let tiny = || options().device(device.clone()).wgpu_capabilities(CapabilitySet::Tiny);
    let error = tiny().context(512).batch(4096).load(demo()).unwrap_err().to_string();
    assert!(error.contains("the device binds 1.00 MiB"), "{error}");
    // A budget applies to GPUs, too.
    let error = options().device(device.clone()).context(512).memory_budget(1000).load(demo()).unwrap_err().to_string();
    assert!(error.contains("1000 bytes are available"), "{error}");
    let none = "wgpu:no such adapter".parse::<Device>().unwrap();
    let error = options().device(none).load(demo()).unwrap_err().to_string();
    assert!(error.contains("`no such adapter`") && error.contains("llvmpipe"), "{error}");
}
