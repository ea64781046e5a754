//! One model over several processes: how they find each other, what they exchange, and what happens when one fails.
//!
//! Each process is a *rank*. [`Ranks`] says which one this process is, usually from the variables that a launcher set.
//! [`Ranks::rendezvous`] connects the ranks over TCP and returns a [`Transport`]: rank 0 listens, the others connect,
//! and each one is checked to have the same model and options, and to know the shared secret if there is one. Rank 0
//! then wraps its part of the model in a [`DistributedRunner`], which an engine drives like any other runner. The other
//! ranks run [`worker_loop`], which computes the steps that rank 0 sends. Sums go over the transport as well
//! ([`TcpGroup`]), unless the device has its own collective library. With [`Ranks::pipeline_parallel`] each rank
//! holds some of the layers, and ranks exchange activations instead of sums.
//!
//! No other module of this crate names this one: the model and its runner know a
//! [`crate::backend::collective::Collective`], and a device's collective library is initialised from a
//! [`crate::backend::collective::ProcessGroup`].
//!
//! | file | holds |
//! |---|---|
//! | `config.rs`, `environment.rs` | which rank this process is and where the ranks meet; the variables of launchers |
//! | `rendezvous.rs`, `arrivals.rs`, `handshake.rs`, `secret.rs` | rank 0 listens and the others connect; connections
//! in their handshake; the handshake; the proof of the shared secret |
//! | `transport.rs`, `link.rs`, `peer.rs`, `failure.rs` | the connections after the rendezvous; what one of them does; one
//! over TCP; which rank failed first |
//! | `mpi/` | ranks that MPI started and connects, with the feature `mpi` |
//! | `frame.rs`, `wire.rs`, `values.rs`, `deadline.rs` | messages; numbers and lists in them; activations in them;
//! reading and writing with a deadline |
//! | `distributed_runner.rs`, `worker.rs`, `tcp_group.rs` | rank 0's runner; the loop of the other ranks; sums |
//!
//! Connections are not encrypted. Without a shared secret they are not authenticated either: whoever reaches rank 0's
//! port during the rendezvous can take the place of a rank.

mod arrivals;
mod config;
mod deadline;
mod distributed_runner;
mod environment;
mod failure;
mod frame;
mod handshake;
mod link;
#[cfg(all(feature = "mpi", unix))]
mod mpi;
mod peer;
mod rendezvous;
mod secret;
mod tcp_group;
#[cfg(test)]
mod tests;
mod transport;
mod values;
mod wire;
mod worker;

pub use config::Ranks;
pub use distributed_runner::DistributedRunner;
pub use tcp_group::{TcpGroup, collective};
pub use transport::Transport;
pub use worker::worker_loop;
