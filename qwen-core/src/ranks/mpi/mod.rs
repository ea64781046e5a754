//! Ranks that an MPI launcher started, connected by the machine's MPI library.
//!
//! `mpirun -n 4 program` starts the processes, on one machine or many, and the library connects them over whatever
//! connects the machines. [`super::Ranks::mpi`] asks it for the number of this process, so there is no address to
//! agree on; everything that ranks say to each other goes through it. The library is opened at run time: Open MPI, or
//! MPICH and its relatives.
//!
//! | file | holds |
//! |---|---|
//! | `abi.rs`, `library.rs` | the library's functions and constants; a safe interface to them, the only unsafe code here |
//! | `world.rs` | which library, which processes, and the end |
//! | `session.rs`, `pause.rs` | the messages of one model; how to wait for them |
//! | `link.rs`, `group.rs` | a transport's way to a rank; sums in rank order |
//! | `meet.rs` | the ranks, and how they begin |

mod abi;
mod group;
mod library;
mod link;
mod meet;
mod pause;
mod session;
mod world;

pub(super) use meet::meet;
pub(super) use world::World;
