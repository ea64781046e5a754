//! Which of a machine's GPUs a program asks for, and how much of its features: plain data, the same in every build,
//! with or without the backend that opens adapters.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Which adapter to run on. As text: `best`, an index, or part of a name.
///
/// ```
/// use qwen_core::backend::AdapterChoice;
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
    /// The adapter with this index in the backend's list.
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

serde_by_text!(AdapterChoice);

/// How much of an adapter's limits and features is used. As text: the names in lower case.
///
/// ```
/// use qwen_core::backend::CapabilitySet;
/// assert_eq!("best".parse::<CapabilitySet>()?, CapabilitySet::Best);
/// assert_eq!(CapabilitySet::default().to_string(), "default");
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CapabilitySet {
    /// For tests: as [`CapabilitySet::Minimal`], but 1 MiB per binding, so that everything is split.
    #[doc(hidden)]
    Tiny,
    /// For tests: what every WebGPU device has. 128 MiB per binding, 8 storage buffers, 16 KiB of workgroup memory, no
    /// features.
    #[doc(hidden)]
    Minimal,
    /// The adapter's limits, and a pipeline cache where the driver offers one. Kernels use no feature beyond WebGPU's defaults.
    #[default]
    Default,
    /// As [`CapabilitySet::Default`], with features that wgpu calls experimental: cooperative matrices (tensor cores),
    /// in [`Precision::Fast`](crate::Precision::Fast). A bug in wgpu or the driver may cause undefined behaviour there.
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

serde_by_text!(CapabilitySet);
