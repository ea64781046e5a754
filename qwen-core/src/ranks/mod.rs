//! One model over several processes: who this process is, how it finds the others, and what they tell each other.
//!
//! Every process is a rank. [`Ranks`] says which, from what its launcher put into the environment. [`Ranks::meet`]
//! connects the ranks over TCP: rank 0 listens, the others come to it, and each proves that it was started with the
//! same model and options. What comes out is a [`Link`]. Rank 0 wraps its part of the model in a [`LeaderRunner`],
//! which an engine drives like any runner; the other ranks call [`follow`], which computes what rank 0 sends until rank
//! 0 is done. The sums of the model go over the link as well ([`TcpGroup`]) unless a device has a better way. Ranks
//! that hold layers in place of shares of all layers ([`Ranks::by_layers`]) pass activations on instead.
//!
//! There is neither authentication nor encryption: the ranks trust each other and the network between them.

mod follower;
mod frame;
mod launch;
mod leader;
mod link;
mod meeting;
mod peer;
mod tcp_group;
#[cfg(test)]
mod tests;
mod values;
mod wire;

use std::net::IpAddr;
use std::time::Duration;

use crate::collective::Shard;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::spec::ModelSpec;
pub use follower::follow;
pub use leader::LeaderRunner;
pub use link::Link;
pub use tcp_group::TcpGroup;

/// More ranks than heads can be cut over, and a bound on what a damaged variable may ask for.
const MAX_RANKS: usize = 1024;

/// The loopback device: processes of one machine find each other, and nobody else finds them.
const DEFAULT_HOST: &str = "127.0.0.1";

/// The port that torch.distributed takes when none is named.
const DEFAULT_PORT: u16 = 29_500;

/// One of several processes that run a model together, and where they meet.
///
/// ```
/// use qwen_core::ranks::Ranks;
/// let variables = [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "10.0.0.7"), ("MASTER_PORT", "29511")];
/// let lookup = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
/// let ranks = Ranks::from_variables(lookup)?;
/// assert_eq!((ranks.rank(), ranks.world_size()), (1, 4));
/// assert_eq!(ranks.address(), "10.0.0.7:29511");
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    rank: usize,
    world_size: usize,
    local_rank: usize,
    local_world_size: usize,
    host: String,
    port: u16,
    listen_on: Option<IpAddr>,
    meet_within: Duration,
    lost_after: Duration,
    by_layers: bool,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::alone()
    }
}

impl Ranks {
    /// A process that runs its model alone.
    pub fn alone() -> Self {
        Ranks {
            rank: 0,
            world_size: 1,
            local_rank: 0,
            local_world_size: 1,
            host: DEFAULT_HOST.into(),
            port: DEFAULT_PORT,
            listen_on: None,
            meet_within: Duration::from_secs(300),
            lost_after: Duration::from_secs(30),
            by_layers: false,
        }
    }

    /// Rank `rank` of `world_size`, all on this machine.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless `rank` is below `world_size`.
    pub fn new(rank: usize, world_size: usize) -> Result<Self> {
        if rank >= world_size || world_size > MAX_RANKS {
            let reason = format!("rank {rank} of {world_size}: ranks count from 0, of at most {MAX_RANKS}");
            return Err(Error::argument("ranks", reason));
        }
        Ok(Ranks { rank, world_size, local_rank: rank, local_world_size: world_size, ..Self::alone() })
    }

    /// What the launcher of this process says in its environment; [`Ranks::alone`] when no launcher shows. The names
    /// are those of [`Ranks::from_variables`].
    ///
    /// # Errors
    /// [`Error::Launch`] naming the variables that are missing, are no numbers, or contradict each other.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Meet at this address: rank 0 listens there, the others connect to it.
    pub fn at(mut self, host: impl Into<String>, port: u16) -> Self {
        self.host = host.into();
        self.port = port;
        self
    }

    /// Let rank 0 listen on this address of its own instead of the one where the others look for it: behind a service
    /// or another translation of addresses, or on all interfaces (`0.0.0.0`).
    pub fn listen_on(mut self, address: IpAddr) -> Self {
        self.listen_on = Some(address);
        self
    }

    /// How long the ranks wait for each other to come. Default 300 seconds.
    pub fn meet_within(mut self, time: Duration) -> Self {
        self.meet_within = time;
        self
    }

    /// After how much silence a rank counts as lost; ranks that live say so four times as often, and all have to be
    /// given the same. Default 30 seconds, at least a tenth of one.
    pub fn lost_after(mut self, silence: Duration) -> Self {
        self.lost_after = silence.max(Duration::from_millis(100));
        self
    }

    /// Give each rank some of the layers in place of some of each layer. A step then goes from rank to rank: they hold
    /// more together but are no faster than one. It exchanges one row of activations a token and rank in place of two
    /// sums a layer, and takes any number of ranks up to that of the layers.
    pub fn by_layers(mut self) -> Self {
        self.by_layers = true;
        self
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Which of the ranks of this machine it is: for choosing one of its devices.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// How many ranks share this machine, its memory and its cores.
    pub fn local_world_size(&self) -> usize {
        self.local_world_size
    }

    /// Whether this is rank 0, which owns the engine.
    pub fn is_leader(&self) -> bool {
        self.rank == 0
    }

    /// Whether the ranks hold layers in place of shares of all layers.
    pub fn is_by_layers(&self) -> bool {
        self.by_layers
    }

    /// The part of the model that this rank holds. The output head is on rank 0 alone, which reads the logits: by
    /// layers rank 0 therefore has the last ones, and rank 1 the first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the model cannot be cut over so many ranks, with the numbers that it can be cut
    /// over.
    pub fn part(&self, config: &Config) -> Result<ModelSpec> {
        let spec = ModelSpec::new(config);
        if self.by_layers {
            let (layers, ranks) = (spec.num_hidden_layers, self.world_size);
            if ranks > layers {
                return Err(Error::argument("ranks", format!("{ranks} ranks cannot share {layers} layers")));
            }
            let stage = (self.rank + ranks - 1) % ranks;
            return spec.stage(stage * layers / ranks..(stage + 1) * layers / ranks);
        }
        let spec = spec.shard(Shard { rank: self.rank, ranks: self.world_size })?;
        Ok(if self.is_leader() { spec } else { spec.without_head() })
    }

    /// Where rank 0 is found.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}
