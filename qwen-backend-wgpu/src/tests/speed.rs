//! How much faster a token is generated in blocks than in 16 bits, by the processor time that software Vulkan takes,
//! which depends less on what else a machine does than the time of a clock.

use qwen_conformance::published;

use super::*;

/// Processor time of this process in seconds.
fn processor_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    // Of the user and of the system, in hundredths.
    let ticks = [11, 12].map(|i| fields.get(i)?.parse::<f64>().ok());
    Some((ticks[0]? + ticks[1]?) / 100.0)
}

#[test]
#[ignore = "measures: by hand, in release, on Linux; software Vulkan, or a GPU whose driver takes no processor time"]
fn blocks_of_four_bits_generate_faster_than_16_bits() {
    let (_, mut config) = published::shapes().swap_remove(0);
    // A twelfth of the 0.5B shape, with the head in proportion.
    (config.num_hidden_layers, config.vocab_size) = (2, 151_936 / 12);
    let mut runners = [Encoding::Bf16, Encoding::Q4_0].map(|encoding| {
        let mut weights = Zeros::new(encoding, config.vocab_size * config.hidden_size);
        weights.bytes.fill(0x11);
        runner_of(backend(Precision::Fast)?, &config, &weights).ok()
    });
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        for (runner, times) in runners.iter_mut().zip(&mut times) {
            let (Some(runner), Some(start)) = (runner, processor_time()) else { return };
            for computed in 0..20 {
                step(runner, &[1], computed).unwrap();
            }
            times.push((processor_time().unwrap() - start) / 20.0);
        }
    }
    let [wide, blocks] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        println!("processor time of a token: median {:.4} s, {:.4} to {:.4}", times[2], times[0], times[4]);
        times[2]
    });
    assert!(1.5 * blocks <= wide, "{blocks} s with Q4_0, {wide} with BF16");
}
