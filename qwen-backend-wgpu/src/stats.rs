//! Counts of what a backend has done so far, for tests and benches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counts of a [`crate::WgpuBackend`], readable while the backend runs on another thread. Clones share their counts.
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
    allocated_bytes: AtomicU64,
    submissions: AtomicU64,
    dispatches: AtomicU64,
    weight_bytes: AtomicU64,
    kv_bytes: AtomicU64,
    read_back_bytes: AtomicU64,
    host_nanos: AtomicU64,
}

impl WgpuStats {
    /// API objects created: buffers, shaders, pipelines, bind groups and their layouts. Not counted are command
    /// buffers, one per submission, and the buffers for parameters and host writes, which are created with the device
    /// and reused by every step.
    pub fn objects(&self) -> u64 {
        self.0.objects.load(Ordering::Relaxed)
    }

    /// Bytes of the buffers among [`WgpuStats::objects`], whether they still exist or not.
    pub fn allocated_bytes(&self) -> u64 {
        self.0.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Submitted command buffers.
    pub fn submissions(&self) -> u64 {
        self.0.submissions.load(Ordering::Relaxed)
    }

    /// Submitted kernels.
    pub fn dispatches(&self) -> u64 {
        self.0.dispatches.load(Ordering::Relaxed)
    }

    /// Bytes of weights that matrix products read, once for each tile of tokens.
    pub fn weight_bytes(&self) -> u64 {
        self.0.weight_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of K/V that attention reads, once per tile of query rows. In steps of several sequences or tokens each
    /// counts as if it had the longest context.
    pub fn kv_bytes(&self) -> u64 {
        self.0.kv_bytes.load(Ordering::Relaxed)
    }

    /// Bytes copied to the host.
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

    pub(crate) fn allocated(&self, bytes: u64) {
        self.made(1);
        self.0.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
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

    /// Counts the host's time until the timer is dropped.
    pub(crate) fn host(&self) -> HostTimer {
        HostTimer { stats: self.clone(), start: Instant::now() }
    }
}

/// Counts the time from its creation to its drop as host time.
#[derive(Debug)]
pub(crate) struct HostTimer {
    stats: WgpuStats,
    start: Instant,
}

impl Drop for HostTimer {
    fn drop(&mut self) {
        self.stats.0.host_nanos.fetch_add(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}
