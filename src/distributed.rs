//! One model over several processes: the only file of the facade that knows how they work together.
//!
//! The other files see a [`Position`] (numbers), [`Peers`] (the other processes, once they are connected) and the role
//! of this process, with its part of the model ([`Loaded`]).

use std::sync::Arc;

use qwen_core::backend::collective::Collective;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::spec::ModelSpec;
use qwen_core::ranks::{DistributedRunner, Transport, collective, worker_loop};
use qwen_core::{Backend, Config, Error, Result};

pub use qwen_core::ranks::Ranks;

/// The position of this process among those that share the model.
#[derive(Debug, Clone, Copy)]
// Only the choice of an NVIDIA GPU reads all of it.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) struct Position {
    /// Its number among the processes of this machine.
    pub(crate) local_rank: usize,
    /// The processes of this machine.
    pub(crate) local_world_size: usize,
    /// The processes of all machines.
    pub(crate) world_size: usize,
}

impl Default for Position {
    fn default() -> Self {
        Position { local_rank: 0, local_world_size: 1, world_size: 1 }
    }
}

impl From<&Ranks> for Position {
    fn from(ranks: &Ranks) -> Self {
        Position {
            local_rank: ranks.local_rank(),
            local_world_size: ranks.local_world_size(),
            world_size: ranks.world_size(),
        }
    }
}

/// The part of the model that this process holds.
pub(crate) fn part_of(ranks: &Ranks, config: &Config) -> Result<ModelSpec> {
    ranks.part(config)
}

/// Refuse to load an engine in a process that has none.
pub(crate) fn check_leads(ranks: &Ranks) -> Result<()> {
    if ranks.is_leader() {
        return Ok(());
    }
    let (rank, size) = (ranks.rank(), ranks.world_size());
    let reason = format!("rank {rank} of {size} has no engine, only rank 0 has: call `EngineOptions::run_worker` here");
    Err(Error::argument("ranks", reason))
}

/// Refuse to run as a worker in the process that has the engine.
pub(crate) fn check_is_worker(ranks: &Ranks) -> Result<()> {
    if !ranks.is_leader() {
        return Ok(());
    }
    Err(Error::argument("ranks", "rank 0 has the engine and is not a worker: call `EngineOptions::load` here"))
}

/// The other processes that hold parts of the model.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    transport: Arc<Transport>,
}

impl Peers {
    /// Connect to them; `None` for a process that has the whole model. `fingerprint` lists by name what must be the same
    /// in all of them.
    pub(crate) fn connect(ranks: &Ranks, fingerprint: impl FnOnce() -> Result<Fingerprint>) -> Result<Option<Self>> {
        if ranks.world_size() == 1 {
            return Ok(None);
        }
        let mut all =
            vec![("what ranks share", if ranks.is_pipeline_parallel() { "layers" } else { "heads" }.to_owned())];
        all.extend(fingerprint()?);
        Ok(Some(Peers { transport: Arc::new(ranks.rendezvous(&all)?) }))
    }

    /// The smallest of the processes' values. It returns once all have called it.
    pub(crate) fn all_reduce_min(&self, value: u64) -> Result<u64> {
        self.transport.all_reduce_min(value)
    }

    /// Tell the other processes that this one failed.
    pub(crate) fn fail(&self, error: &Error) {
        self.transport.fail(error);
    }
}

/// What must be the same in all processes, by name.
pub(crate) type Fingerprint = Vec<(&'static str, String)>;

/// Joins the processes into a group for a backend: to sum if they share heads, otherwise to pass activations on.
pub(crate) type JoinGroup<B> = fn(&B, &Peers, by_heads: bool) -> Result<Arc<dyn Collective>>;

/// The group for backends without their own interconnect: everything goes over what connects the processes.
pub(crate) fn join_by_host<B>(_: &B, peers: &Peers, _: bool) -> Result<Arc<dyn Collective>> {
    Ok(collective(&peers.transport))
}

/// The group for NVIDIA GPUs: NCCL. Without it they cannot sum; activations then go through the hosts, in all processes.
#[cfg(feature = "cuda")]
pub(crate) fn join_by_nccl(
    backend: &qwen_backend_cuda::CudaBackend,
    peers: &Peers,
    by_heads: bool,
) -> Result<Arc<dyn Collective>> {
    let present = qwen_backend_cuda::nccl_present();
    if !by_heads && peers.all_reduce_min(u64::from(present.is_ok()))? == 0 {
        return join_by_host(backend, peers, by_heads);
    }
    present?;
    Ok(Arc::new(qwen_backend_cuda::NcclGroup::join(backend, &*peers.transport)?))
}

/// The role of this process, with its part of the model.
pub(crate) enum Loaded {
    /// It has the engine: it holds the whole model, or is rank 0.
    Engine(Box<dyn Runner>),
    /// It computes rank 0's steps, until rank 0's engine is dropped.
    Worker(Box<dyn FnOnce() -> Result<()>>),
}

impl Loaded {
    pub(crate) fn new<B: Backend>(runner: ModelRunner<B>, peers: Option<&Peers>) -> Self {
        match peers.map(|peers| peers.transport.clone()) {
            None => Loaded::Engine(Box::new(runner)),
            Some(transport) if transport.rank() == 0 => {
                Loaded::Engine(Box::new(DistributedRunner::new(runner, transport)))
            }
            Some(transport) => Loaded::Worker(Box::new(move || worker_loop(runner, &transport))),
        }
    }

    /// The runner of the engine.
    pub(crate) fn engine(self) -> Result<Box<dyn Runner>> {
        match self {
            Loaded::Engine(runner) => Ok(runner),
            Loaded::Worker(_) => Err(Error::argument("ranks", "this process is a worker of rank 0 and has no engine")),
        }
    }

    /// Compute rank 0's steps, until rank 0's engine is dropped.
    pub(crate) fn run_worker(self) -> Result<()> {
        match self {
            Loaded::Worker(run) => run(),
            Loaded::Engine(_) => Err(Error::argument("ranks", "this process has the engine and is not a worker")),
        }
    }
}

/// Which of the `seen` GPUs this process uses: the processes on a machine use one each, starting at `ordinal`. A
/// process that sees a single GPU was assigned that one by its launcher.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_of(ordinal: usize, position: Position, seen: usize) -> Result<usize> {
    let needed = position.local_world_size;
    if needed == 1 || seen <= 1 {
        return Ok(ordinal);
    }
    if ordinal.saturating_add(needed) > seen {
        let reason = format!(
            "the {needed} ranks of this machine take a GPU each, from `cuda:{ordinal}` on, and see {seen}: name a \
             lower one, start fewer ranks, or show each its own GPU (CUDA_VISIBLE_DEVICES)"
        );
        return Err(Error::argument("device", reason));
    }
    Ok(ordinal + position.local_rank)
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    fn position(rank: usize, ranks: usize) -> Position {
        Position::from(&Ranks::new(rank, ranks).unwrap())
    }

    #[test]
    fn ranks_of_a_machine_take_a_gpu_each() {
        let third = position(2, 4);
        assert_eq!(gpu_of(0, third, 4).unwrap(), 2);
        assert_eq!(gpu_of(4, third, 8).unwrap(), 6);
        // Each sees only its own.
        assert_eq!(gpu_of(0, third, 1).unwrap(), 0);
        assert_eq!(gpu_of(3, Position::default(), 8).unwrap(), 3);
        assert_eq!(gpu_of(9, Position::default(), 8).unwrap(), 9);
    }

    #[test]
    fn ranks_that_see_too_few_gpus_are_refused() {
        for (ordinal, seen) in [(6, 8), (0, 3), (usize::MAX, 8)] {
            let text = gpu_of(ordinal, position(0, 4), seen).unwrap_err().to_string();
            let expected = format!("take a GPU each, from `cuda:{ordinal}` on, and see {seen}");
            assert!(text.contains(&expected), "{text}");
        }
    }
}
