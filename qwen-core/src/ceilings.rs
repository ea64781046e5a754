//! The best rates that a device can reach, to compare the speed of a model or a kernel with.
//!
//! Backends measure them; benches divide by them. Nothing else uses them.

/// The best rates that a device reached. A rate is `None` if the device has no instruction for the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ceilings {
    /// Reading from memory.
    pub memory_bytes_per_second: f64,
    /// Copying within memory, counting bytes read plus bytes written; GPUs only.
    pub copy_bytes_per_second: Option<f64>,
    /// Fused multiply-adds of f32, two operations each.
    pub f32_flops_per_second: f64,
    /// Fused multiply-adds of f16.
    pub f16_flops_per_second: Option<f64>,
    /// Products of cooperative matrices of f16 that are summed in f32, on a GPU that was opened with this feature.
    pub f16_matrix_flops_per_second: Option<f64>,
    /// Dot products of bf16; on NVIDIA GPUs products of bf16 matrices by tensor cores.
    pub bf16_flops_per_second: Option<f64>,
    /// Dot products of int8.
    pub int8_ops_per_second: Option<f64>,
}
