//! One model over several processes. Only this file of the facade names `qwen_core::ranks`.
//!
//! It connects the ranks, chooses how they exchange sums and activations, and wraps a loaded part of a model as the
//! runner of rank 0 or as the loop of another rank.

use std::sync::Arc;

use qwen_core::collective::Collective;
pub use qwen_core::ranks::Ranks;
pub(crate) use qwen_core::ranks::Transport;
use qwen_core::ranks::{DistributedRunner, TcpGroup, worker_loop};
use qwen_core::runner::{ModelRunner, Runner};
use qwen_core::{Backend, Error, Result};

/// Connect with the other ranks. `fingerprint` lists what must be the same on all of them.
pub(crate) fn connect(ranks: &Ranks, fingerprint: &[(&str, String)]) -> Result<Arc<Transport>> {
    Ok(Arc::new(ranks.rendezvous(fingerprint)?))
}

/// How the ranks of a backend exchange values: to sum, if they share heads, or to pass activations on.
pub(crate) type GroupOf<B> = fn(&B, &Arc<Transport>, shares_heads: bool) -> Result<Arc<dyn Collective>>;

/// Over the connections of the ranks, for a backend without an interconnect of its own.
pub(crate) fn group_over_tcp<B>(_: &B, transport: &Arc<Transport>, _: bool) -> Result<Arc<dyn Collective>> {
    Ok(Arc::new(TcpGroup::new(transport.clone())))
}

/// Over NCCL. Without it cards cannot sum; activations then go over the connections of the ranks, on all of them.
#[cfg(feature = "cuda")]
pub(crate) fn group_of_cards(
    backend: &qwen_backend_cuda::CudaBackend,
    transport: &Arc<Transport>,
    shares_heads: bool,
) -> Result<Arc<dyn Collective>> {
    let present = qwen_backend_cuda::nccl_present();
    if !shares_heads && transport.all_reduce_min(u64::from(present.is_ok()))? == 0 {
        return group_over_tcp(backend, transport, shares_heads);
    }
    present?;
    Ok(Arc::new(qwen_backend_cuda::NcclGroup::join(backend, &**transport)?))
}

/// The runner of rank 0.
pub(crate) fn leader<B: Backend>(runner: ModelRunner<B>, transport: Arc<Transport>) -> Box<dyn Runner> {
    Box::new(DistributedRunner::new(runner, transport))
}

/// The loop of another rank, which returns when rank 0's engine is dropped.
pub(crate) fn worker<B: Backend>(runner: ModelRunner<B>, transport: Arc<Transport>) -> Box<dyn FnOnce() -> Result<()>> {
    Box::new(move || worker_loop(runner, &transport))
}

/// Which of the `seen` cards a rank takes: the ranks of one machine take one each, from `ordinal` on. A rank that sees a
/// single card takes that one, since its launcher chose it.
#[cfg(feature = "cuda")]
pub(crate) fn card_of_rank(ordinal: usize, ranks: &Ranks, seen: usize) -> Result<usize> {
    let needed = ranks.local_world_size();
    if needed == 1 || seen <= 1 {
        return Ok(ordinal);
    }
    if ordinal.saturating_add(needed) > seen {
        let reason = format!(
            "the {needed} ranks of this machine take a card each, from `cuda:{ordinal}` on, and see {seen}: name a \
             lower one, start fewer ranks, or show each its own card (CUDA_VISIBLE_DEVICES)"
        );
        return Err(Error::argument("device", reason));
    }
    Ok(ordinal + ranks.local_rank())
}

/// The error of a rank that is asked for the engine.
pub(crate) fn no_engine(ranks: &Ranks) -> Error {
    let (rank, world_size) = (ranks.rank(), ranks.world_size());
    let reason =
        format!("rank {rank} of {world_size} has no engine, rank 0 has it: call `EngineOptions::run_worker` here");
    Error::argument("ranks", reason)
}

/// The error of rank 0 when it is asked to run as a worker.
pub(crate) fn no_worker() -> Error {
    Error::argument("ranks", "rank 0 has the engine and is no worker: call `EngineOptions::load` here")
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_machine_take_a_card_each() {
        let ranks = Ranks::new(2, 4).unwrap();
        let card = |ordinal: usize, ranks: &Ranks, seen: usize| card_of_rank(ordinal, ranks, seen).unwrap();
        assert_eq!(card(0, &ranks, 4), 2);
        assert_eq!(card(4, &ranks, 8), 6);
        // Each rank sees only its own card.
        assert_eq!(card(0, &ranks, 1), 0);
        assert_eq!(card(3, &Ranks::alone(), 8), 3);
        assert_eq!(card(9, &Ranks::alone(), 8), 9);
    }

    #[test]
    fn ranks_that_see_too_few_cards_are_refused() {
        for (ordinal, seen) in [(6, 8), (0, 3), (usize::MAX, 8)] {
            let text = card_of_rank(ordinal, &Ranks::new(0, 4).unwrap(), seen).unwrap_err().to_string();
            let expected = format!("take a card each, from `cuda:{ordinal}` on, and see {seen}");
            assert!(text.contains(&expected), "{text}");
        }
    }
}
