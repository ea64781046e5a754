//! The options of a backend: which adapter, and how much of what it offers is used.

use qwen_core::Precision;
use qwen_core::backend::{AdapterChoice, CapabilitySet};

/// Options of a [`crate::WgpuBackend`].
///
/// ```
/// use qwen_backend_wgpu::{AdapterChoice, WgpuOptions};
/// use qwen_core::Precision;
/// let options = WgpuOptions::new().adapter(AdapterChoice::Name("radeon".into())).precision(Precision::Exact);
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
pub struct WgpuOptions {
    pub(crate) adapter: AdapterChoice,
    pub(crate) precision: Precision,
    pub(crate) capabilities: CapabilitySet,
    pub(crate) pipeline_cache: bool,
}

impl Default for WgpuOptions {
    fn default() -> Self {
        WgpuOptions {
            adapter: AdapterChoice::default(),
            precision: Precision::default(),
            capabilities: CapabilitySet::default(),
            pipeline_cache: true,
        }
    }
}

impl WgpuOptions {
    /// The best hardware adapter, its limits, fast precision.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which adapter to run on. Default [`AdapterChoice::Best`].
    pub fn adapter(mut self, adapter: AdapterChoice) -> Self {
        self.adapter = adapter;
        self
    }

    /// What may be rounded. Default [`Precision::Fast`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// How much of the adapter is used. Default [`CapabilitySet::Default`].
    pub fn capabilities(mut self, capabilities: CapabilitySet) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Whether compiled kernels are kept in the user's cache folder (`qwen-rs`), if the driver offers pipeline caches.
    /// Default true: the next start is faster. Only intact files that nobody else could have written are used;
    /// [`crate::WgpuBackend::pipeline_cache_refusal`] says why one was not.
    pub fn pipeline_cache(mut self, keep: bool) -> Self {
        self.pipeline_cache = keep;
        self
    }
}
