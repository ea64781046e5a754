//! Which rank this process is, and how it reaches the others.

use std::net::IpAddr;
#[cfg(all(feature = "mpi", unix))]
use std::sync::Arc;
use std::time::Duration;

#[cfg(all(feature = "mpi", unix))]
use super::mpi::World;
use super::secret::Secret;
use crate::backend::collective::Shard;
use crate::checkpoint::config::Config;
use crate::error::{Error, Result};
use crate::model::spec::ModelSpec;

/// The most ranks: more than any model has heads, and a limit for wrong variables.
pub(super) const MAX_RANKS: usize = 1024;

/// The loopback address: only processes of this machine can connect.
pub(super) const DEFAULT_HOST: &str = "127.0.0.1";

/// The port that torch.distributed uses when none is given.
pub(super) const DEFAULT_PORT: u16 = 29_500;

/// The shortest heartbeat timeout.
const MIN_HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(100);

/// One of the processes that run a model together, and the address where they meet.
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
#[must_use]
pub struct Ranks {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) local_rank: usize,
    pub(super) local_world_size: usize,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) listen_on: Option<IpAddr>,
    pub(super) secret: Option<Secret>,
    pub(super) rendezvous_timeout: Duration,
    pub(super) heartbeat_timeout: Duration,
    pub(super) pipeline_parallel: bool,
    #[cfg(all(feature = "mpi", unix))]
    pub(super) mpi: Option<Mpi>,
}

/// The processes that MPI connects.
#[cfg(all(feature = "mpi", unix))]
#[derive(Debug, Clone)]
pub(super) struct Mpi(pub(super) Arc<World>);

#[cfg(all(feature = "mpi", unix))]
impl PartialEq for Mpi {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(all(feature = "mpi", unix))]
impl Eq for Mpi {}

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
            secret: None,
            rendezvous_timeout: Duration::from_secs(300),
            heartbeat_timeout: Duration::from_secs(30),
            pipeline_parallel: false,
            #[cfg(all(feature = "mpi", unix))]
            mpi: None,
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

    /// The ranks from the environment variables that a launcher set; [`Ranks::alone`] without a launcher. The variables
    /// are those of [`Ranks::from_variables`].
    ///
    /// # Errors
    /// [`Error::Launch`] naming the variables that are missing, malformed, or contradict each other.
    pub fn from_env() -> Result<Self> {
        // A variable that is not UTF-8 still counts as set, and is refused where it is read.
        Self::from_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// The ranks that an MPI launcher started (`mpirun -n 4 program`, `srun --mpi=pmix`); [`Ranks::alone`] without a
    /// launcher. The machine's MPI library gives their numbers and carries everything that they exchange, so there is no
    /// address, port or secret. It is opened at run time: Open MPI, or MPICH and what shares its binary interface (Intel
    /// MPI, MVAPICH, Cray MPICH). `QWEN_MPI_LIBRARY` names it; by default it is the first that is found, of the
    /// launcher's family if that is known.
    ///
    /// MPI is initialised here, unless the program has done so, and ends with the last copy of these ranks (an engine
    /// and its options hold some), which waits for the other ranks. So drop them all before the process ends: a process
    /// that ends earlier, or by `std::process::exit`, makes the launcher end the others.
    ///
    /// ```no_run
    /// use qwen_core::ranks::Ranks;
    /// let ranks = Ranks::mpi()?;
    /// println!("rank {} of {}", ranks.rank(), ranks.world_size());
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no MPI library, or one that cannot be used; [`Error::Launch`] when the
    /// launcher belongs to another MPI than the library.
    #[cfg(feature = "mpi")]
    pub fn mpi() -> Result<Self> {
        Self::of_mpi()
    }

    #[cfg(all(feature = "mpi", not(unix)))]
    fn of_mpi() -> Result<Self> {
        Err(Error::unsupported("MPI on this system", "use `Ranks::from_env`, which reads the launcher's variables"))
    }

    #[cfg(all(feature = "mpi", unix))]
    fn of_mpi() -> Result<Self> {
        let lookup = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let Some(world) = World::get(lookup)? else { return Ok(Self::alone()) };
        let place = world.place();
        let ranks = Self::new(place.rank, place.size)?;
        Ok(Ranks { local_rank: place.local_rank, local_world_size: place.local_size, mpi: Some(Mpi(world)), ..ranks })
    }

    /// Meet at this address: rank 0 listens there, the others connect to it.
    pub fn at(mut self, host: impl Into<String>, port: u16) -> Self {
        self.host = host.into();
        self.port = port;
        self
    }

    /// Let rank 0 listen on this local address instead of the one that the others connect to: behind a service or
    /// another address translation, or on all interfaces (`0.0.0.0`).
    pub fn listen_on(mut self, address: IpAddr) -> Self {
        self.listen_on = Some(address);
        self
    }

    /// A secret that all ranks share. With it, rank 0 admits only processes that know it, and the other ranks go on
    /// only with a rank 0 that knows it. The secret itself is never sent: each side proves it by an HMAC-SHA256 over
    /// fresh random bytes of both. Leading and trailing white space is removed. Default: none, or what
    /// [`Ranks::from_variables`] finds in `QWEN_RANKS_SECRET` or `QWEN_RANKS_SECRET_FILE`.
    ///
    /// Use random bytes, such as from `openssl rand -hex 32`: a process that connects to a rank learns enough to test
    /// guesses offline.
    ///
    /// ```
    /// # use qwen_core::ranks::Ranks;
    /// let ranks = Ranks::new(0, 2)?.secret("9f2c54e8d1b7a6035c8e4f7d2b90a1c6")?;
    /// assert!(Ranks::new(0, 2)?.secret("short").is_err());
    /// # Ok::<(), qwen_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when it has fewer than 16 bytes or more than 4096.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Result<Self> {
        let secret = Secret::new(secret.as_ref()).map_err(|reason| Error::argument("secret", reason))?;
        self.secret = Some(secret);
        Ok(self)
    }

    /// How long the ranks wait for each other to connect. Default 300 seconds.
    pub fn rendezvous_timeout(mut self, timeout: Duration) -> Self {
        self.rendezvous_timeout = timeout;
        self
    }

    /// The length of silence after which a rank counts as failed. Each rank sends heartbeats four times as often, so
    /// all ranks need the same timeout. Default 30 seconds, at least a tenth of one.
    pub fn heartbeat_timeout(mut self, silence: Duration) -> Self {
        self.heartbeat_timeout = silence.max(MIN_HEARTBEAT_TIMEOUT);
        self
    }

    /// Give each rank some of the layers instead of a part of every layer. A step then passes from rank to rank:
    /// together the ranks can hold a larger model, but are no faster than one. A rank sends one row of activations per
    /// token instead of two sums per layer. Any number of ranks up to the number of layers works.
    pub fn pipeline_parallel(mut self) -> Self {
        self.pipeline_parallel = true;
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

    /// This rank's number among the ranks on this machine, from 0: for choosing one of the machine's devices.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// How many ranks share this machine, its memory and its cores.
    pub fn local_world_size(&self) -> usize {
        self.local_world_size
    }

    /// Whether this is rank 0, which has the engine.
    pub fn is_leader(&self) -> bool {
        self.rank == 0
    }

    /// Whether each rank holds some of the layers instead of a part of every layer.
    pub fn is_pipeline_parallel(&self) -> bool {
        self.pipeline_parallel
    }

    /// The part of the model that this rank holds. Only rank 0, which reads the logits, has the output head: with
    /// [`Ranks::pipeline_parallel`] it therefore has the last layers, and rank 1 the first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the model cannot be split over this number of ranks, listing the numbers that
    /// work.
    pub fn part(&self, config: &Config) -> Result<ModelSpec> {
        let spec = ModelSpec::new(config);
        if self.pipeline_parallel {
            let (layers, ranks) = (spec.num_hidden_layers, self.world_size);
            if ranks > layers {
                return Err(Error::argument("ranks", format!("{ranks} ranks cannot share {layers} layers")));
            }
            let stage = (self.rank + ranks - 1) % ranks;
            return spec.stage(stage * layers / ranks..(stage + 1) * layers / ranks);
        }
        let spec = spec.shard(Shard { rank: self.rank, world_size: self.world_size })?;
        Ok(if self.is_leader() { spec } else { spec.without_head() })
    }

    /// The address of rank 0, as `host:port`; `MPI` where MPI connects the ranks.
    pub fn address(&self) -> String {
        #[cfg(all(feature = "mpi", unix))]
        if self.mpi.is_some() {
            return "MPI".into();
        }
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}
