//! The options of a backend: which adapter, and how much of what it offers is used.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use qwen_core::{Error, Precision};

/// Which adapter to run on. As text: `best`, an index, or a part of a name.
///
/// ```
/// use qwen_backend_wgpu::AdapterChoice;
/// assert_eq!("1".parse(), Ok(AdapterChoice::Index(1)));
/// assert_eq!("Radeon".parse(), Ok(AdapterChoice::Name("Radeon".into())));
/// assert_eq!(AdapterChoice::Best.to_string(), "best");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AdapterChoice {
    /// The best hardware adapter: discrete before integrated. Never a software one.
    #[default]
    Best,
    /// The adapter with this index in [`crate::adapters`].
    Index(usize),
    /// The first adapter whose name contains this, in any case.
    Name(String),
}

impl FromStr for AdapterChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match (text, text.parse()) {
            ("best", _) => AdapterChoice::Best,
            (_, Ok(index)) => AdapterChoice::Index(index),
            _ => AdapterChoice::Name(text.into()),
        })
    }
}

impl fmt::Display for AdapterChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdapterChoice::Best => f.write_str("best"),
            AdapterChoice::Index(index) => index.fmt(f),
            AdapterChoice::Name(name) => name.fmt(f),
        }
    }
}

/// How much of an adapter's limits and features is used. As text: the names in lower case.
///
/// ```
/// use qwen_backend_wgpu::CapabilitySet;
/// assert_eq!("best".parse::<CapabilitySet>()?, CapabilitySet::Best);
/// assert_eq!(CapabilitySet::default().to_string(), "default");
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CapabilitySet {
    /// For tests: as [`CapabilitySet::Minimal`], but 1 MiB a binding, so that everything is split.
    #[doc(hidden)]
    Tiny,
    /// For tests: what every WebGPU device has. 128 MiB a binding, 8 storage buffers, 16 KiB of workgroup memory, no
    /// features.
    #[doc(hidden)]
    Minimal,
    /// The adapter's limits, and a pipeline cache where the driver offers one. Kernels use no feature beyond WebGPU's defaults.
    #[default]
    Default,
    /// As [`CapabilitySet::Default`], with features that wgpu calls experimental: cooperative matrices (tensor cores),
    /// in [`Precision::Fast`]. A fault in wgpu or the driver may do anything there.
    Best,
}

impl FromStr for CapabilitySet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let all = [CapabilitySet::Tiny, CapabilitySet::Minimal, CapabilitySet::Default, CapabilitySet::Best];
        all.into_iter()
            .find(|set| set.to_string() == text)
            .ok_or_else(|| Error::argument("wgpu_capabilities", format!("must be default or best, is `{text}`")))
    }
}

impl fmt::Display for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CapabilitySet::Tiny => "tiny",
            CapabilitySet::Minimal => "minimal",
            CapabilitySet::Default => "default",
            CapabilitySet::Best => "best",
        })
    }
}

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

    /// Whether compiled kernels are kept in the user's cache folder (`qwen-rs`), where the driver offers pipeline caches.
    /// Default true: the next start is faster. Only files that are sound and that nobody else could have written are used;
    /// [`crate::WgpuBackend::pipeline_cache_refusal`] says why one was not.
    pub fn pipeline_cache(mut self, keep: bool) -> Self {
        self.pipeline_cache = keep;
        self
    }
}
