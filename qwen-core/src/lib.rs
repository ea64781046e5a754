//! Checkpoints, the transformer over a `Backend` trait, batches, K/V and sampling.
