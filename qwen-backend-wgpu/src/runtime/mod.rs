//! The device below the operations: its memory, what runs on it, and how commands reach it. Nothing here knows a model,
//! a matrix or an operation of the trait.
//!
//! From the bottom up: [`device`] is the open device with the faults that its driver reports, and [`array`] its memory;
//! [`params`], [`staging`] and [`pipelines`] keep what kernels need, each made with a [`device::Device`] only;
//! [`commands`] says what is queued; [`gpu`] holds all of them and submits.

pub(crate) mod array;
pub(crate) mod commands;
pub(crate) mod device;
pub(crate) mod gpu;
pub(crate) mod params;
pub(crate) mod pipeline_cache;
pub(crate) mod pipelines;
pub(crate) mod staging;
