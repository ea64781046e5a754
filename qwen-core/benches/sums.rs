//! The time of a sum over ranks, by MPI and by TCP, of the sizes that models have: hidden states of one token, and of a
//! prompt of 512.
//!
//! ```text
//! cargo bench -p qwen-core --features mpi --bench sums --no-run
//! mpirun -n 2 target/release/deps/sums-...
//! ```
//!
//! Ranks on several machines need `MASTER_ADDR` for TCP, see `docs/ranks.md`.

use std::sync::Arc;
use std::time::Instant;

use qwen_core::backend::collective::Collective;
use qwen_core::ranks::{Ranks, collective};

/// The name of a size, its values, and how often they are summed.
const SIZES: [(&str, usize, usize); 4] = [
    ("896 (0.5B, one token)", 896, 2000),
    ("5120 (14B and 32B, one token)", 5120, 1000),
    ("512 x 896 (0.5B, a prompt)", 512 * 896, 40),
    ("512 x 5120 (14B and 32B, a prompt)", 512 * 5120, 10),
];

fn main() -> qwen_core::Result<()> {
    let mpi = Ranks::mpi()?;
    if mpi.world_size() == 1 {
        // As `cargo bench` and `cargo test --benches` start it.
        println!("sums are measured between ranks: start this program by mpirun");
        return Ok(());
    }
    for (name, ranks) in [("MPI", mpi), ("TCP", Ranks::from_env()?)] {
        let transport = Arc::new(ranks.rendezvous(&[("the bench", "sums".into())])?);
        let group = collective(&transport);
        for (size, len, times) in SIZES {
            let [median, p95] = measure(&*group, len, times)?;
            if ranks.is_leader() {
                println!("{name}, {} ranks, {size}: median {median:.1} us, p95 {p95:.1} us", ranks.world_size());
            }
        }
        // Nobody leaves before all have finished.
        transport.all_reduce_min(0)?;
    }
    Ok(())
}

/// The median and the 95th percentile of the microseconds that a sum takes.
fn measure(group: &dyn Collective, len: usize, times: usize) -> qwen_core::Result<[f64; 2]> {
    let mut values = vec![1.0; len];
    let mut took = Vec::with_capacity(times);
    // The first ones allocate and connect.
    for number in 0..times + times / 10 {
        values.fill(1.0);
        let started = Instant::now();
        group.all_reduce(&mut values)?;
        if number >= times / 10 {
            took.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    took.sort_by(f64::total_cmp);
    Ok([took[took.len() / 2], took[took.len() * 95 / 100]])
}
