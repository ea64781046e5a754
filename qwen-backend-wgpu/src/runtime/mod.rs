//! The device layer below the operations: memory, pipelines, and command submission. Nothing here knows about models,
//! matrices or operations of the trait.
//!
//! From the bottom up: [`device`] is the open device with the faults that its driver reports, and [`array`] its memory;
//! [`params`], [`staging`] and [`pipelines`] hold what kernels need, and depend only on a [`device::Device`];
//! [`commands`] is the queue; [`gpu`] holds all of them and submits.

pub(crate) mod array;
pub(crate) mod commands;
pub(crate) mod device;
pub(crate) mod gpu;
pub(crate) mod params;
pub(crate) mod pipeline_cache;
pub(crate) mod pipelines;
pub(crate) mod staging;
