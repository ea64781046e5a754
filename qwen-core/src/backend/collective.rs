//! Tensor parallelism: a model split over several ranks, and the sums that combine their results.
//!
//! A [`Shard`] is one of several ranks, which holds some of the attention heads and some of the MLP's inner width
//! (Shoeybi et al. 2019). A [`Collective`] adds up what the ranks computed. [`ThreadGroup`] is one over the threads of a
//! process, for tests and for several devices in one process; a backend with its own interconnect overrides
//! [`crate::Backend::all_reduce`], and initialises its collective library over a [`ProcessGroup`]. Which processes
//! there are and how they are connected is decided elsewhere.

use std::any::Any;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::error::{Error, Result};

/// One of the ranks that a model is split over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// This rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
}

impl Shard {
    /// The only rank.
    pub const WHOLE: Shard = Shard { rank: 0, world_size: 1 };
}

/// Sums values over all ranks.
///
/// It is [`Any`], so that a backend can recognise its own kind of group, whose sums it computes on the device.
pub trait Collective: Any + Send + Sync + std::fmt::Debug {
    /// Replace `values` by their sum over the ranks, added in rank order. Every rank calls it with the same length, and
    /// gets the same bits.
    ///
    /// # Errors
    /// When another rank has left, or called with another length.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()>;
}

/// Connected processes: what a device's collective library needs for its initialisation, and to stop waiting when a
/// process fails.
///
/// All ranks make the same calls in the same order.
pub trait ProcessGroup {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world_size(&self) -> usize;

    /// Replace `bytes` on every rank by those of rank 0.
    ///
    /// # Errors
    /// [`Error::RankFailed`] when a rank fails or makes another call.
    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()>;

    /// The smallest of the ranks' numbers. It is also a barrier: no rank returns before all have called it.
    ///
    /// # Errors
    /// [`Error::RankFailed`] when a rank fails or makes another call.
    fn all_reduce_min(&self, number: u64) -> Result<u64>;

    /// Call `hook` once, from another thread, as soon as a rank fails, or immediately if one already has. It replaces
    /// an earlier hook.
    fn on_peer_failure(&self, hook: Box<dyn FnOnce() + Send>);
}

/// A [`Collective`] over the threads of one process.
#[derive(Debug)]
pub struct ThreadGroup {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    inputs: Vec<Option<Vec<f32>>>,
    // How many ranks still have to fetch the sum of the current round.
    to_fetch: usize,
    sum: Vec<f32>,
    is_broken: bool,
}

impl ThreadGroup {
    /// One handle for each of `world_size` threads.
    ///
    /// ```
    /// use qwen_core::backend::collective::{Collective, ThreadGroup};
    /// let handles = ThreadGroup::new(2);
    /// std::thread::scope(|s| {
    ///     for (rank, group) in handles.into_iter().enumerate() {
    ///         s.spawn(move || {
    ///             let mut values = [rank as f32 + 1.0];
    ///             group.all_reduce(&mut values).unwrap();
    ///             assert_eq!(values, [3.0]);
    ///         });
    ///     }
    /// });
    /// ```
    pub fn new(world_size: usize) -> Vec<ThreadGroup> {
        let state = State { inputs: vec![None; world_size], to_fetch: 0, sum: Vec::new(), is_broken: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        (0..world_size).map(|rank| ThreadGroup { rank, shared: shared.clone() }).collect()
    }
}

impl Drop for ThreadGroup {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).is_broken = true;
        self.shared.changed.notify_all();
    }
}

impl Collective for ThreadGroup {
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let failed = |reason: &str| {
            let op = "all_reduce".into();
            Err(Error::Device { device: format!("rank {}", self.rank), op, reason: reason.into() })
        };
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        // All ranks must have fetched the previous sum before this one begins the next round.
        while state.to_fetch > 0 && !state.is_broken {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.inputs[self.rank] = Some(values.to_vec());
        if state.inputs.iter().all(Option::is_some) {
            let inputs: Vec<Vec<f32>> = state.inputs.iter_mut().filter_map(Option::take).collect();
            if inputs.iter().any(|input| input.len() != values.len()) {
                state.is_broken = true;
                self.shared.changed.notify_all();
                return failed("the ranks disagree on the length");
            }
            let mut sum = vec![0.0; values.len()];
            for input in &inputs {
                for (sum, value) in sum.iter_mut().zip(input) {
                    *sum += value;
                }
            }
            state.to_fetch = inputs.len();
            state.sum = sum;
            self.shared.changed.notify_all();
        } else {
            while state.to_fetch == 0 && !state.is_broken {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.to_fetch == 0 {
                return failed("another rank has left");
            }
        }
        values.copy_from_slice(&state.sum);
        state.to_fetch -= 1;
        if state.to_fetch == 0 {
            self.shared.changed.notify_all();
        }
        Ok(())
    }
}
