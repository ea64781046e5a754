//! Faults of the device, and the memory of dropped models.

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::time::Duration;

use qwen_core::backend::Add;
use qwen_core::engine::{EngineCore, Event, GenerateParams, Intake, Request, SeqId};

use super::*;

#[test]
fn a_lost_device_ends_with_an_error_and_another_one_works() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let device = backend.gpu.device.handle.clone();
    let mut lost = runner(backend).unwrap();
    let id = step(&mut lost, &[1, 2, 3], 0).unwrap();
    device.destroy();
    for _ in 0..2 {
        match step(&mut lost, &[id], 3) {
            Err(Error::Device { reason, .. }) => assert!(reason.contains("lost"), "{reason}"),
            other => panic!("{other:?} on a lost device"),
        }
    }
    let mut again = runner(self::backend(Precision::Fast).unwrap()).unwrap();
    assert_eq!(step(&mut again, &[1, 2, 3], 0).unwrap(), id);
}

/// Run a step of `engine`; record its tokens, and how sequences ended.
fn step_engine(engine: &mut EngineCore, tokens: &mut HashMap<SeqId, Vec<u32>>, ended: &mut HashMap<SeqId, Error>) {
    engine.step(|id, event| match event {
        Event::Token(token) => tokens.entry(id).or_default().push(token),
        Event::Failed(error) => drop(ended.insert(id, error)),
        _ => {}
    });
}

fn request(prompt: [u32; 3]) -> Request {
    Request::generate(prompt, GenerateParams::new().max_new_tokens(50))
}

/// Two requests lose their device between two tokens; a third is added after that. Returns the ids of the first tokens.
fn lose_a_device(backend: WgpuBackend) -> Vec<Option<u32>> {
    let device = backend.gpu.device.handle.clone();
    let intake = Intake::default();
    let mut engine = EngineCore::new(Box::new(runner(backend).unwrap()), intake.clone());
    let mut add = |prompt| engine.add(request(prompt), intake.ticket().unwrap()).unwrap();
    let running = [[1, 2, 3], [4, 5, 6]].map(&mut add);
    let (mut tokens, mut ended) = (HashMap::new(), HashMap::new());
    while running.iter().any(|id| tokens.get(id).is_none_or(|tokens: &Vec<u32>| tokens.len() < 2)) {
        step_engine(&mut engine, &mut tokens, &mut ended);
    }
    assert!(ended.is_empty(), "{ended:?}");
    device.destroy();
    let mut end = |engine: &mut EngineCore, ids: &[SeqId]| {
        while !engine.is_idle() {
            step_engine(engine, &mut tokens, &mut ended);
        }
        for id in ids {
            match ended.get(id) {
                // One of the requests gets the error itself, the others its text.
                Some(Error::Device { reason, .. } | Error::StepFailed { reason, .. }) => {
                    assert!(reason.contains("lost"), "{reason}");
                }
                other => panic!("{other:?} instead of a lost device"),
            }
        }
    };
    end(&mut engine, &running);
    let late = engine.add(request([7, 8, 9]), intake.ticket().unwrap()).unwrap();
    end(&mut engine, &[late]);
    running.iter().map(|id| Some(tokens[id][0])).collect()
}

#[test]
fn requests_end_when_their_device_is_lost_and_an_engine_loads_again() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(lose_a_device(backend)));
    // A watchdog: a request that waited for a lost device would never end.
    let first = receiver.recv_timeout(Duration::from_secs(120)).expect("requests of a lost device end");
    let mut again = runner(self::backend(Precision::Fast).unwrap()).unwrap();
    let prompts: [(&[u32], usize); 2] = [(&[1, 2, 3], 0), (&[4, 5, 6], 0)];
    assert_eq!(execute(&mut again, &prompts, true).unwrap().argmax, first);
}

#[test]
fn what_exceeds_the_device_is_refused_by_name() {
    let Some(mut backend) = backend(Precision::Fast) else { return };
    let most = backend.gpu.device.limits.max_buffer_size;
    let error = backend.alloc(most as usize / 4 + 64).unwrap_err().to_string();
    assert!(error.contains("activations") && error.contains(&most.to_string()), "{error}");
    // The device is still usable.
    let mut buffer = backend.alloc(4).unwrap();
    backend.write(&mut buffer, &[1.0; 4]).unwrap();
    backend.synchronize().unwrap();
}

#[test]
fn arrays_of_another_device_are_refused() {
    let Some(mut backend) = backend(Precision::Fast) else { return };
    let mut foreign = self::backend(Precision::Fast).unwrap().alloc(64).unwrap();
    let mut x = backend.alloc(64).unwrap();
    let refused = [
        backend.add(Add { x: &mut x, y: &foreign, len: 64 }),
        backend.write(&mut foreign, &[0.0]),
        backend.read(&foreign, &mut [0.0]),
    ];
    for (refused, op) in refused.into_iter().zip(["add", "write", "read"]) {
        assert!(matches!(&refused, Err(Error::Device { op: found, .. }) if found == op), "{refused:?}");
    }
}

#[test]
fn ten_models_give_the_memory_back() {
    let Some(first) = backend(Precision::Fast) else { return };
    let (device, queue) = (first.gpu.device.handle.clone(), first.gpu.device.queue.clone());
    let info = first.adapter().clone();
    drop(first);
    let allocated = || {
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    };
    let Some(before) = allocated() else {
        eprintln!("skipped: this driver reports no allocations");
        return;
    };
    for cycle in 0..10 {
        let gpu = Gpu::new(Device::new(device.clone(), queue.clone(), info.clone(), None));
        let mut runner = runner(WgpuBackend::on(gpu, Precision::Fast)).unwrap();
        step(&mut runner, &[1, 2, 3], 0).unwrap();
        assert!(allocated().unwrap() > before + 7_000_000, "the model is not on the device");
        drop(runner);
        let after = allocated().unwrap();
        assert!(after <= before, "{} bytes left behind by cycle {cycle}", after - before);
    }
}
