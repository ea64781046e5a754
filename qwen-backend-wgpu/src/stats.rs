//! What a backend has done so far, in numbers that tests and benches look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counts of a [`crate::WgpuBackend`], readable while it works elsewhere. Clones are one.
///
/// ```no_run
/// use qwen_backend_wgpu::{WgpuBackend, WgpuOptions};
/// let backend = WgpuBackend::new(WgpuOptions::new())?;
/// let stats = backend.stats();
/// // ... the backend moves into a runner, which runs a step ...
/// println!("{} kernels in {} command buffers", stats.dispatches(), stats.submissions());
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct WgpuStats(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    objects: AtomicU64,
    submissions: AtomicU64,
    dispatches: AtomicU64,
    weight_bytes: AtomicU64,
    kv_bytes: AtomicU64,
    read_back_bytes: AtomicU64,
    host_nanos: AtomicU64,
}

impl WgpuStats {
    /// Objects of the API that were made: buffers, shaders, pipelines, bind groups and their layouts. Command buffers
    /// are not among them: there is one for each submission. Nor is what comes with the device: the buffers of parameters
    /// and inputs, which every step uses again.
    pub fn objects(&self) -> u64 {
        self.0.objects.load(Ordering::Relaxed)
    }

    /// Command buffers that were submitted.
    pub fn submissions(&self) -> u64 {
        self.0.submissions.load(Ordering::Relaxed)
    }

    /// Kernels that were submitted.
    pub fn dispatches(&self) -> u64 {
        self.0.dispatches.load(Ordering::Relaxed)
    }

    /// Bytes of weights that matrix products read, once for each tile of tokens.
    pub fn weight_bytes(&self) -> u64 {
        self.0.weight_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of K/V that attention reads, once for each tile of query rows; where several sequences or tokens are
    /// computed, as if each had the longest context.
    pub fn kv_bytes(&self) -> u64 {
        self.0.kv_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that were copied to the host.
    pub fn read_back_bytes(&self) -> u64 {
        self.0.read_back_bytes.load(Ordering::Relaxed)
    }

    /// Time that the host spent recording and submitting, without waiting for the device.
    pub fn host_time(&self) -> Duration {
        Duration::from_nanos(self.0.host_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn made(&self, objects: u64) {
        self.0.objects.fetch_add(objects, Ordering::Relaxed);
    }

    pub(crate) fn submitted(&self) {
        self.0.submissions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dispatched(&self, weight_bytes: u64, kv_bytes: u64) {
        self.0.dispatches.fetch_add(1, Ordering::Relaxed);
        self.0.weight_bytes.fetch_add(weight_bytes, Ordering::Relaxed);
        self.0.kv_bytes.fetch_add(kv_bytes, Ordering::Relaxed);
    }

    pub(crate) fn read_back(&self, bytes: u64) {
        self.0.read_back_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts the host's time until it is dropped.
    pub(crate) fn host(&self) -> HostTimer {
        HostTimer { stats: self.clone(), start: Instant::now() }
    }
}

/// Runs while the host records or submits.
pub(crate) struct HostTimer {
    stats: WgpuStats,
    start: Instant,
}

impl Drop for HostTimer {
    fn drop(&mut self) {
        self.stats.0.host_nanos.fetch_add(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}
