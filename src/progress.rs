//! The progress of a load, and how to cancel it. The progress of a prompt is in `stats.rs`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

/// What a load is doing: see [`EngineOptions::progress`](crate::EngineOptions::progress).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoadStage {
    /// Downloading files that are not in the cache yet, before anything else. Counted in bytes.
    Downloading,
    /// Reading headers, configuration and tokenizer, and choosing a device. Nothing is counted.
    Opening,
    /// Reading weights and packing them for the device. Counted in bytes as stored in the files.
    Weights,
    /// Running the model once, so that the first request does not wait for it. Nothing is counted.
    WarmUp,
    /// Running a text, for [`EngineOptions::measure_importances`](crate::EngineOptions::measure_importances). Counted
    /// in tokens.
    Measuring,
}

impl fmt::Display for LoadStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LoadStage::Downloading => "downloading",
            LoadStage::Opening => "opening",
            LoadStage::Weights => "loading weights",
            LoadStage::WarmUp => "warming up",
            LoadStage::Measuring => "measuring",
        })
    }
}

/// The progress of a load: see [`EngineOptions::progress`](crate::EngineOptions::progress).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LoadProgress {
    /// What is being done.
    pub stage: LoadStage,
    /// How much of `total` is done, in the unit of the stage.
    pub done: u64,
    /// How much there is to do, in the unit of the stage; 0 if the stage counts nothing.
    pub total: u64,
}

impl LoadProgress {
    pub(crate) fn of(stage: LoadStage) -> Self {
        LoadProgress { stage, done: 0, total: 0 }
    }

    /// The fraction of the stage that is done, from 0 to 1; `None` if the stage counts nothing.
    pub fn share(&self) -> Option<f64> {
        (self.total > 0).then(|| self.done as f64 / self.total as f64)
    }
}

/// A handle that cancels a load from any thread: pass a clone to
/// [`EngineOptions::load_canceller`](crate::EngineOptions::load_canceller).
///
/// ```
/// use qwen::{EngineOptions, LoadCanceller};
/// let canceller = LoadCanceller::new();
/// let options = EngineOptions::new().load_canceller(canceller.clone());
/// canceller.cancel();
/// let error = options.load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model")).unwrap_err();
/// assert_eq!(error.kind(), qwen::ErrorKind::Cancelled);
/// ```
#[derive(Debug, Clone, Default)]
pub struct LoadCanceller(Arc<AtomicBool>);

impl LoadCanceller {
    /// A new handle, not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancel the load; it stops after the current matrix, or the current piece of a download. Does nothing when the load has ended.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Where a load reports its progress and checks whether it was cancelled.
#[derive(Clone, Default)]
pub(crate) struct LoadObserver {
    pub(crate) report: Option<Arc<dyn Fn(LoadProgress) + Send + Sync>>,
    pub(crate) canceller: LoadCanceller,
}

impl LoadObserver {
    /// # Errors
    /// [`qwen_core::Error::Cancelled`] when the load was cancelled.
    pub(crate) fn report(&self, progress: LoadProgress) -> qwen_core::Result<()> {
        self.check()?;
        self.report.iter().for_each(|report| report(progress));
        Ok(())
    }

    /// # Errors
    /// [`qwen_core::Error::Cancelled`] when the load was cancelled.
    pub(crate) fn check(&self) -> qwen_core::Result<()> {
        match self.canceller.0.load(Ordering::Relaxed) {
            true => Err(qwen_core::Error::Cancelled),
            false => Ok(()),
        }
    }
}
