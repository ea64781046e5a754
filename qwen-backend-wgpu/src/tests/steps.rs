//! What a step creates, submits and reads, and its host time.

use qwen_conformance::{Suite, cases, published};
use qwen_core::numerics::encoding::{GroupBits, GroupEncoding};

use super::numbers::logits;
use super::*;
use crate::WgpuStats;

#[test]
fn a_decode_step_makes_nothing_and_submits_once() {
    // Embedding, rows, norm, head and argmax; six kernels per layer.
    decode(Encoding::F16, 2 * 64, 6);
}

/// Norm, product, rotation and two stores take the place of one kernel.
#[test]
fn so_does_one_with_keys_and_values_in_8_bits() {
    decode(Encoding::Q8_0, 64 + 4, 10);
}

/// Decode with K/V in `encoding`, which takes `head_bytes` for 64 channels.
fn decode(encoding: Encoding, head_bytes: usize, kernels_per_layer: u64) {
    let Some(backend) = backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let checkpoint = checkpoint();
    let spec = ModelSpec::new(checkpoint.config()).with_kv_encoding(encoding).unwrap();
    let mut runner = runner_with(backend, checkpoint.config(), &checkpoint, spec).unwrap();
    let mut id = step(&mut runner, &[1, 2, 3], 0).unwrap();
    id = step(&mut runner, &[id], 3).unwrap();
    let config = checkpoint.config();
    let layers = config.num_hidden_layers as u64;
    let weights: u64 = 2 * 3_938_560;
    let units = config.num_key_value_heads * config.head_dim * config.num_hidden_layers / 64;
    let position = 2 * (head_bytes * units) as u64;
    // Across spans of attention too: the context grows from 4 to 260.
    for computed in 4..260 {
        let before = (stats.objects(), stats.submissions(), stats.dispatches(), stats.weight_bytes(), stats.kv_bytes());
        let read_back = stats.read_back_bytes();
        id = step(&mut runner, &[id], computed).unwrap();
        assert_eq!(stats.objects(), before.0, "objects made at position {computed}");
        assert_eq!(stats.submissions(), before.1 + 1, "command buffers at position {computed}");
        let dispatches = stats.dispatches() - before.2;
        assert!(dispatches <= kernels_per_layer * layers + 5, "{dispatches} kernels for {layers} layers");
        let kv = position * (computed as u64 + 1);
        let read = (stats.weight_bytes() - before.3, stats.kv_bytes() - before.4);
        assert!(100 * read.0 >= 99 * weights && read.1 >= kv, "{read:?} bytes read, there are {weights} and {kv}");
        assert!(10 * (read.0 + read.1) <= 11 * (weights + kv), "{read:?} bytes read, there are {weights} and {kv}");
        assert_eq!(stats.read_back_bytes(), read_back + 4);
    }
}

/// On a device that computes nothing, so that a step of the 0.5B shape with two layers takes no time.
#[test]
fn a_token_reads_the_bytes_of_the_blocks() {
    let group = GroupEncoding { bits: GroupBits::Four, group_size: 64 };
    let kv_bytes = |config: &Config, positions| 2 * 2 * config.num_hidden_layers * config.head_dim * positions;
    for (encoding, reordered) in
        [(Encoding::Q4_0, false), (Encoding::Q8_0, false), (Encoding::Iq4Nl, false), (Encoding::Group(group), true)]
    {
        let backend = idle_backend(Precision::Fast);
        let stats = backend.stats();
        let (_, mut config) = published::shapes().swap_remove(0);
        (config.num_hidden_layers, config.vocab_size) = (2, 4096);
        let weights = Zeros { reordered, ..Zeros::new(encoding, 896 * 4864) };
        let shapes = ModelSpec::new(&config).weights();
        let stored: u64 = shapes.iter().map(|weight| weight.shape(&weights).unwrap().stored_bytes().unwrap()).sum();
        let mut runner = runner_of(backend, &config, &weights).unwrap();
        step(&mut runner, &[1; 8], 0).unwrap();
        for computed in 8..200 {
            let before = stats.weight_bytes() + stats.kv_bytes();
            step(&mut runner, &[1], computed).unwrap();
            let read = stats.weight_bytes() + stats.kv_bytes() - before;
            let needed = stored + (config.num_key_value_heads * kv_bytes(&config, computed + 1)) as u64;
            assert!(read >= needed, "{encoding}: {read} of {needed} bytes at position {computed}");
            assert!(100 * read <= 105 * needed, "{encoding}: {read} of {needed} bytes at position {computed}");
        }
    }
}

#[test]
fn prompts_of_any_length_share_what_was_made() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let mut runner = runner(backend).unwrap();
    step(&mut runner, &[1; 20], 0).unwrap();
    let objects = stats.objects();
    for length in 21..30 {
        step(&mut runner, &vec![1; length], 0).unwrap();
    }
    assert_eq!(stats.objects(), objects);
}

#[test]
fn after_a_warm_up_the_first_answer_makes_nothing() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let Some(cold) = self::backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let mut runner = runner(backend).unwrap();
    runner.warm_up().unwrap();
    let objects = stats.objects();
    let id = step(&mut runner, &[5; 20], 0).unwrap();
    let next = step(&mut runner, &[id], 20).unwrap();
    // Only the buffer through which results are read, if it was not planned.
    assert!(stats.objects() <= objects + 1, "{} objects", stats.objects() - objects);
    // Nor does the first token of two sequences at once.
    let objects = stats.objects();
    execute(&mut runner, &[(&[5], 0), (&[5], 0)], true).unwrap();
    assert_eq!(stats.objects(), objects);
    // The padding of the warm-up has left nothing behind.
    let mut cold = self::runner(cold).unwrap();
    assert_eq!(step(&mut cold, &[5; 20], 0).unwrap(), id);
    assert_eq!(step(&mut cold, &[id], 20).unwrap(), next);
}

#[test]
fn more_sequences_take_no_more_memory() {
    let Some(backend) = backend(Precision::Fast) else { return };
    let stats = backend.stats();
    let mut runner = runner(backend).unwrap();
    let decode = |runner: &mut dyn Runner, sequences: usize| {
        let batch: Vec<(&[u32], usize)> = (0..sequences).map(|_| (&[1][..], 0)).collect();
        execute(runner, &batch, true).unwrap().argmax
    };
    let id = decode(&mut runner, 1)[0];
    decode(&mut runner, 2);
    let objects = stats.objects();
    for sequences in 3..=4 {
        assert_eq!(decode(&mut runner, sequences), vec![id; sequences]);
    }
    assert_eq!(stats.objects(), objects);
}

/// The host time of a decode step of the 0.5B shape, on a device that computes nothing. It depends on the number of
/// layers, not on their width. The time is printed; the test asserts that the step creates nothing.
#[test]
fn the_host_time_of_a_decode_step_of_24_layers() {
    let backend = idle_backend(Precision::Fast);
    let stats = backend.stats();
    let (_, mut config) = published::shapes().swap_remove(0);
    (config.hidden_size, config.intermediate_size, config.vocab_size) = (128, 256, 512);
    (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (2, 1, 64);
    let mut runner = runner_of(backend, &config, &Zeros::new(Encoding::Bf16, 512 * 256)).unwrap();
    step(&mut runner, &[1], 0).unwrap();
    let objects = stats.objects();
    let mut times = Vec::new();
    for computed in 1..400 {
        let (before, dispatches) = (stats.host_time(), stats.dispatches());
        step(&mut runner, &[1], computed).unwrap();
        times.push(stats.host_time() - before);
        assert_eq!(stats.dispatches() - dispatches, 24 * 6 + 5);
    }
    times.sort();
    println!("host time of a step: median {:?}, {:?} to {:?}", times[200], times[0], times[398]);
    assert_eq!(stats.objects(), objects);
}

#[test]
fn prompts_of_all_lengths_and_batches_of_all_sizes_make_nothing() {
    let backend = idle_backend(Precision::Fast);
    let stats = backend.stats();
    let slots = backend.gpu.params.transient_slots();
    let mut runner = runner(backend).unwrap();
    for length in [1, 2, 9] {
        execute(&mut runner, &[(&vec![1; length], 0)], false).unwrap();
        execute(&mut runner, &[(&vec![1; length], 0), (&[1], 0)], true).unwrap();
    }
    let objects = stats.objects();
    let (mut steps, lengths) = (0, 2..120);
    for length in lengths {
        for others in 0..4 {
            let ids = vec![1; length];
            let mut batch: Vec<(&[u32], usize)> = vec![(&ids, 0)];
            batch.extend((0..others).map(|_| (&[1][..], 0)));
            execute(&mut runner, &batch, true).unwrap();
            assert_eq!(stats.objects(), objects, "{length} tokens beside {others}");
            steps += 1;
        }
    }
    // Products and attention of each step have different parameters: more than there are slots.
    assert!(2 * steps > slots, "{steps} steps, {slots} slots");
}

#[test]
fn transient_parameters_change_no_result() {
    let Some(wide) = backend(Precision::Fast) else { return };
    let Some(mut narrow) = backend(Precision::Fast) else { return };
    // Fewer slots than one step has parameters: it is submitted in parts.
    narrow.gpu.params.shrink(3, 4);
    let stats = narrow.stats();
    let [mut wide, mut narrow] = [wide, narrow].map(|backend| runner(backend).unwrap());
    let before = stats.submissions();
    for length in [40, 7, 23] {
        assert_eq!(logits(&mut narrow, &vec![3; length]), logits(&mut wide, &vec![3; length]), "{length} tokens");
    }
    assert!(stats.submissions() > before + 6, "{} submissions", stats.submissions() - before);
    let answer = |runner: &mut dyn Runner| {
        let mut ids = vec![step(runner, &[1, 2, 3], 0).unwrap()];
        (3..9).for_each(|computed| ids.push(step(runner, &ids[computed - 3..], computed).unwrap()));
        ids
    };
    assert_eq!(answer(&mut narrow), answer(&mut wide));
}

#[test]
fn long_prompts_are_submitted_in_parts_and_tokens_at_once() {
    let Some(whole) = backend(Precision::Fast) else { return };
    let Some(mut parts) = backend(Precision::Fast) else { return };
    // A prompt of 64 tokens multiplies 3.9 million weights with each.
    parts.submit_after(30_000_000);
    let stats = [whole.stats(), parts.stats()];
    let mut runners = [whole, parts].map(|backend| runner(backend).unwrap());
    let mut ids = runners.each_mut().map(|runner| step(runner, &[7; 64], 0).unwrap());
    assert_eq!(ids[0], ids[1]);
    for computed in 64..68 {
        let before = stats.each_ref().map(WgpuStats::submissions);
        ids = [0, 1].map(|i| step(&mut runners[i], &[ids[i]], computed).unwrap());
        assert_eq!(ids[0], ids[1]);
        assert_eq!(stats.each_ref().map(WgpuStats::submissions), before.map(|before| before + 1));
    }
    let prompts = [0, 1].map(|i| {
        let before = stats[i].submissions();
        step(&mut runners[i], &[7; 64], 0).unwrap();
        stats[i].submissions() - before
    });
    assert_eq!(prompts[0], 1);
    // Two products of a layer fill a part.
    assert!((4..=24).contains(&prompts[1]), "{} submissions", prompts[1]);
}

/// The conformance suite on a device that computes nothing. Each shader that it requests is checked when it is created.
#[test]
fn the_suite_requests_no_kernel_beyond_the_variants() {
    for precision in [Precision::Exact, Precision::Fast] {
        let suite = Suite::new(move || Ok(idle_backend(precision)));
        for case in cases::<WgpuBackend>() {
            suite.outcome(&case);
        }
    }
}
