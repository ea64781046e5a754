//! The CPU kernels of qwen-rs.
