//! How much memory a model takes on a device, from the limits of its adapter alone.

use qwen_core::backend::Limits;
use qwen_core::backend::{KvSpec, ModelShape, WeightShape};
use qwen_core::numerics::size;
use qwen_core::{Error, Footprint, HumanBytes, Result};

use crate::adapter::{self, AdapterInfo};
use crate::geometry::WorkspaceSizes;
use crate::kv::StoreLayout;
use crate::runtime::{params, staging};
use crate::weight::Layout;
use qwen_core::backend::CapabilitySet;

/// How matrices and K/V are split into slabs on a device, and how much memory they take. No device is opened.
///
/// ```
/// use qwen_backend_wgpu::WgpuFootprint;
/// use qwen_core::backend::{WeightRole, WeightShape};
/// use qwen_core::{Encoding, Footprint};
/// // The embedding table of Qwen2.5-0.5B with bindings of at most 128 MiB.
/// let table = WeightShape { role: WeightRole::Embedding, parts: vec![(Encoding::Bf16, 151_936)], cols: 896 };
/// let footprint = WgpuFootprint::with_limits(128 << 20, 256 << 20);
/// assert_eq!(footprint.weight_slabs(&table)?, 3);
/// assert_eq!(footprint.weight_bytes(&table)?, table.stored_bytes()?);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WgpuFootprint {
    max_binding: u64,
    max_buffer: u64,
    /// Whether prompts are multiplied by cooperative matrices.
    cooperative: bool,
    /// Whether it has its own memory, so that the stored matrix does not take memory there in addition to the packed
    /// one.
    own_memory: bool,
}

impl WgpuFootprint {
    /// The footprint on `adapter` with these capabilities.
    pub fn on(adapter: &AdapterInfo, capabilities: CapabilitySet) -> Self {
        let offered = Self::with_capabilities(capabilities, adapter.max_binding_bytes, adapter.max_buffer_bytes);
        let cooperative = offered.cooperative && adapter.cooperative.is_some();
        WgpuFootprint { cooperative, own_memory: !adapter.shares_host_memory(), ..offered }
    }

    /// The footprint with these capabilities on a device with bindings of up to `max_binding_bytes`, buffers of up to
    /// `max_buffer_bytes`, and cooperative matrices.
    ///
    /// ```
    /// use qwen_backend_wgpu::{CapabilitySet, WgpuFootprint};
    /// let minimal = WgpuFootprint::with_capabilities(CapabilitySet::Minimal, 2 << 30, 4 << 30);
    /// assert_eq!(minimal, WgpuFootprint::with_limits(128 << 20, 256 << 20));
    /// ```
    pub fn with_capabilities(capabilities: CapabilitySet, max_binding_bytes: u64, max_buffer_bytes: u64) -> Self {
        let offered = wgpu::Limits {
            max_storage_buffer_binding_size: max_binding_bytes,
            max_buffer_size: max_buffer_bytes,
            ..wgpu::Limits::defaults()
        };
        let (limits, _) = adapter::limits_and_features(offered, wgpu::Features::empty(), capabilities);
        Self::opened(&limits, capabilities == CapabilitySet::Best)
    }

    /// The footprint on a device with bindings of up to `max_binding_bytes` and buffers of up to `max_buffer_bytes`.
    pub fn with_limits(max_binding_bytes: u64, max_buffer_bytes: u64) -> Self {
        // A slab is a buffer that is bound as a whole.
        let max_binding = max_binding_bytes.min(max_buffer_bytes);
        WgpuFootprint { max_binding, max_buffer: max_buffer_bytes, cooperative: false, own_memory: false }
    }

    /// The footprint on a device with these limits, opened with or without cooperative matrices.
    pub(crate) fn opened(limits: &wgpu::Limits, cooperative: bool) -> Self {
        let limits = Self::with_limits(limits.max_storage_buffer_binding_size, limits.max_buffer_size);
        WgpuFootprint { cooperative, ..limits }
    }

    /// The number of buffers that a matrix is split into.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when not even two of its rows can be bound.
    pub fn weight_slabs(&self, shape: &WeightShape) -> Result<usize> {
        Ok(Layout::new(shape, self.max_binding)?.num_slabs())
    }

    /// The number of pairs of buffers, of keys and of values, for all layers of a store.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the keys of one head cannot be bound.
    pub fn kv_slabs(&self, spec: &KvSpec) -> Result<usize> {
        Ok(StoreLayout::new(spec, self.max_binding)?.num_slabs())
    }

    /// The memory that kernels need in addition to the model's buffers.
    pub(crate) fn workspace(&self, limits: &Limits, shape: &ModelShape) -> WorkspaceSizes {
        WorkspaceSizes::new(limits, shape, self.max_binding, self.cooperative)
    }
}

impl Footprint for WgpuFootprint {
    fn weight_bytes(&self, shape: &WeightShape) -> Result<u64> {
        Ok(Layout::new(shape, self.max_binding)?.bytes())
    }

    fn kv_bytes(&self, spec: &KvSpec) -> Result<u64> {
        Ok(StoreLayout::new(spec, self.max_binding)?.bytes())
    }

    fn staging_bytes(&self, stored: u64) -> u64 {
        // Uploaded pieces use staging memory that is counted with the workspace.
        if self.own_memory { 0 } else { stored }
    }

    fn workspace_bytes(&self, limits: &Limits, shape: &ModelShape) -> Result<u64> {
        let buffers = [
            ("tokens", limits.max_num_batched_tokens, shape.widest_row()),
            ("rows of logits", limits.max_num_logits, shape.vocab_size),
            ("block tables", limits.max_num_seqs, limits.max_blocks_per_seq()),
        ];
        for (what, rows, width) in buffers {
            let bytes = size::bytes(4, &[rows, width]);
            if bytes > self.max_buffer {
                let most = self.max_buffer / size::bytes(4, &[width]).max(1);
                let [takes, have] = HumanBytes::compared(bytes, self.max_buffer);
                return Err(Error::unsupported(
                    format!("a step of {rows} {what}"),
                    format!("it takes {takes}, the device's buffers have {have}: {most} would fit"),
                ));
            }
        }
        Ok(self.workspace(limits, shape).bytes().saturating_add(params::SIZE + staging::BYTES))
    }

    fn fuses_gate_up(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwen_conformance::published::{self, limits};
    use qwen_core::Encoding;
    use qwen_core::backend::{HeadLayout, WeightRole};
    use qwen_core::model::spec::ModelSpec;

    /// The 0.5B shape.
    fn shape() -> ModelShape {
        ModelSpec::new(&published::shapes()[0].1).shape()
    }

    /// What every device needs in addition to the model: parameters, inputs, eight rows of activations as bytes, and 16 rows
    /// of logits.
    const BESIDE: u64 = params::SIZE + staging::BYTES + 8 * 48 * (4864 / 32) + 16 * 4 * 151_936;

    #[test]
    fn partial_results_count_as_far_as_they_can_be_bound() {
        let sequence = 4 * 14 * 256 * 66;
        let partials =
            |binding| WgpuFootprint::with_limits(binding, 1 << 28).workspace_bytes(&limits(512, 16), &shape());
        assert_eq!(partials(128 << 20).unwrap(), BESIDE + 8 * sequence);
        assert_eq!(partials(2 * sequence + 4).unwrap(), BESIDE + 2 * sequence);
        assert_eq!(partials(1 << 19).unwrap(), BESIDE);
    }

    #[test]
    fn cooperative_matrices_take_activations_as_f16() {
        let bytes = |cooperative| {
            let footprint = WgpuFootprint { cooperative, ..WgpuFootprint::with_limits(128 << 20, 1 << 28) };
            footprint.workspace_bytes(&limits(512, 16), &shape()).unwrap()
        };
        assert_eq!(bytes(true) - bytes(false), 512 * (2 * 4864 + 4));
    }

    #[test]
    fn more_rows_of_logits_than_tokens_are_planned_for() {
        let bytes = |cooperative| {
            let footprint = WgpuFootprint { cooperative, ..WgpuFootprint::with_limits(128 << 20, 1 << 28) };
            footprint.workspace_bytes(&limits(64, 100), &shape()).unwrap()
        };
        assert_eq!(bytes(true) - bytes(false), 100 * (2 * 4864 + 4));
    }

    #[test]
    fn sizes_beyond_every_memory_do_not_wrap() {
        let footprint = WgpuFootprint { cooperative: true, ..WgpuFootprint::with_limits(2 << 30, 4 << 30) };
        for huge in [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX] {
            let heads = HeadLayout { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 8 };
            let small = ModelShape { hidden_size: 1 << 12, intermediate_size: 1 << 12, vocab_size: 1 << 12, heads };
            for limits in [limits(huge, 16), limits(16, huge), Limits { max_num_seqs: huge, ..limits(16, 16) }] {
                let refusal = footprint.workspace_bytes(&limits, &small);
                assert!(matches!(refusal, Err(Error::Unsupported { .. })), "{limits:?}: {refusal:?}");
            }
            for shape in [
                ModelShape { hidden_size: huge, ..small },
                ModelShape { intermediate_size: huge, ..small },
                ModelShape { vocab_size: huge, ..small },
            ] {
                let refusal = footprint.workspace_bytes(&limits(512, 16), &shape);
                assert!(matches!(refusal, Err(Error::Unsupported { .. })), "{shape:?}: {refusal:?}");
            }
        }
    }

    #[test]
    fn buffers_beyond_the_limit_are_refused_with_what_would_fit() {
        let footprint = WgpuFootprint::with_limits(128 << 20, 256 << 20);
        let error = footprint.workspace_bytes(&limits(512, 500), &shape()).unwrap_err().to_string();
        assert!(error.contains("500 rows of logits") && error.contains("441 would fit"), "{error}");
        let error = footprint.workspace_bytes(&limits(14_000, 16), &shape()).unwrap_err().to_string();
        assert!(error.contains("14000 tokens"), "{error}");
    }

    #[test]
    fn a_slab_is_no_larger_than_a_buffer() {
        let shape = WeightShape { role: WeightRole::Linear, parts: vec![(Encoding::F32, 1 << 16)], cols: 1 << 12 };
        assert_eq!(WgpuFootprint::with_limits(u64::MAX, 1 << 28).weight_slabs(&shape).unwrap(), 4);
    }
}
