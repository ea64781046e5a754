//! An open device: its limits, its arrays, and the faults that its driver reports.
//!
//! A driver reports faults at any later time, not where they were caused: the first one is kept, and every later
//! operation fails with it. Only calls that create or fill something wait for the driver's answer, so that the fault
//! becomes the error of that call.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qwen_core::{Error, HumanBytes, Result};

use crate::adapter::{AdapterInfo, Cooperative};
use crate::runtime::array::{Array, bytes_of};
use crate::stats::WgpuStats;

/// Bytes to pass to the queue at a time while weights are uploaded.
const UPLOAD_BYTES: usize = 16 << 20;

/// The first fault that the driver has reported.
type Fault = Mutex<Option<String>>;

/// An open device.
#[derive(Debug)]
pub(crate) struct Device {
    id: u64,
    pub(crate) handle: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: AdapterInfo,
    pub(crate) limits: wgpu::Limits,
    /// The cooperative matrices that it was opened with.
    pub(crate) cooperative: Option<Cooperative>,
    /// Threads that share a row of a matrix: as many as run in lockstep, at most 32, so that adding up their sums waits
    /// for no others.
    pub(crate) lanes: u32,
    /// Whether kernels may use `dot4I8Packed`, four products of signed bytes.
    pub(crate) integer_dots: bool,
    pub(crate) stats: WgpuStats,
    fault: Arc<Fault>,
}

impl Device {
    /// Take ownership of an open device, described by `info`.
    pub(crate) fn new(
        handle: wgpu::Device,
        queue: wgpu::Queue,
        info: AdapterInfo,
        cooperative: Option<Cooperative>,
    ) -> Self {
        let fault = Arc::new(Fault::default());
        // Without a handler wgpu panics on an error.
        let noted = fault.clone();
        handle.on_uncaptured_error(Arc::new(move |error: wgpu::Error| note(&noted, error.to_string())));
        let noted = fault.clone();
        handle.set_device_lost_callback(move |reason, message| {
            note(&noted, format!("the device was lost ({reason:?}): {message}; load the engine again"));
        });
        let limits = handle.limits();
        let (lanes, integer_dots) = (info.subgroup.clamp(8, 32), info.integer_dots);
        let stats = WgpuStats::default();
        Device { id: next_id(), handle, queue, info, limits, cooperative, lanes, integer_dots, stats, fault }
    }

    /// The first fault that the driver reported, as an error of `op`. A device with a fault is no longer used.
    pub(crate) fn check(&self, op: &str) -> Result<()> {
        match &*lock(&self.fault) {
            Some(reason) => Err(self.error(op, reason.clone())),
            None => Ok(()),
        }
    }

    /// Refuse arrays of other devices.
    pub(crate) fn check_owner<'a>(&self, op: &str, mut arrays: impl Iterator<Item = &'a Array>) -> Result<()> {
        match arrays.all(|array| array.owner == self.id) {
            true => Ok(()),
            false => Err(self.error(op, "an array belongs to another device")),
        }
    }

    /// An [`Error::Device`] of this device.
    pub(crate) fn error(&self, op: &str, reason: impl Into<String>) -> Error {
        Error::Device { device: self.info.to_string(), op: op.into(), reason: reason.into() }
    }

    /// The error of a buffer that cannot be mapped: device lost, if it was, otherwise `reason`.
    pub(crate) fn mapping_error(&self, op: &str, reason: impl Into<String>) -> Error {
        let _ = self.handle.poll(wgpu::PollType::wait_indefinitely());
        self.check(op).err().unwrap_or_else(|| self.error(op, reason))
    }

    /// Run `make`, which creates or fills something of `bytes` bytes. A refusal by the driver becomes the error of this
    /// call, and the device stays usable.
    pub(crate) fn guarded<T>(&self, what: &str, bytes: u64, make: impl FnOnce() -> T) -> Result<T> {
        let refused = self.handle.push_error_scope(wgpu::ErrorFilter::Validation);
        let exhausted = self.handle.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let made = make();
        let (exhausted, refused) = (pollster::block_on(exhausted.pop()), pollster::block_on(refused.pop()));
        match (exhausted, refused) {
            (Some(_), _) => Err(Error::OutOfMemory { device: self.info.to_string(), what: what.into(), bytes }),
            (None, Some(error)) => Err(self.error(what, error.to_string())),
            (None, None) => self.check(what).map(|()| made),
        }
    }

    /// A buffer of `size` bytes. `what` names it in errors.
    pub(crate) fn buffer(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let most = self.limits.max_buffer_size;
        if size > most {
            let [size, most] = HumanBytes::compared(size, most);
            return Err(self.error(what, format!("{size} exceed the device's {most} a buffer")));
        }
        self.stats.allocated(size);
        let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        self.guarded(what, size, || self.handle.create_buffer(&descriptor))
    }

    /// An array of `words` 32-bit words, all zero. `what` names it in errors.
    pub(crate) fn array(&self, what: &str, words: u64) -> Result<Array> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(what, bytes_of(words), usage)?;
        Ok(Array { id: next_id(), owner: self.id, buffer })
    }

    /// Refuse what is larger than the device's memory, before allocating any of it: many small arrays could fill the
    /// whole memory before the driver refuses one.
    pub(crate) fn check_memory(&self, what: &str, bytes: u64) -> Result<()> {
        match self.info.memory {
            Some(memory) if bytes > memory => {
                Err(Error::OutOfMemory { device: self.info.to_string(), what: what.into(), bytes })
            }
            _ => Ok(()),
        }
    }

    /// Fill `array` from the beginning with what `fill` appends, until `fill` returns false. The host holds one piece
    /// at a time.
    ///
    /// # Errors
    /// The errors of `fill`, and what the driver reports.
    pub(crate) fn upload(
        &self,
        what: &str,
        array: &Array,
        mut fill: impl FnMut(&mut Vec<u8>) -> Result<bool>,
    ) -> Result<()> {
        let (mut piece, mut at) = (Vec::new(), 0);
        loop {
            let more = fill(&mut piece)?;
            if piece.len() >= UPLOAD_BYTES || !more {
                let whole = piece.len() / 4 * 4;
                if at + whole as u64 > array.buffer.size() {
                    return Err(self.error(what, "more data than its buffer holds"));
                }
                self.guarded(what, whole as u64, || {
                    self.queue.write_buffer(&array.buffer, at, &piece[..whole]);
                    // The host holds written data until it is submitted and done.
                    self.queue.submit([]);
                })?;
                self.wait(what)?;
                at += whole as u64;
                piece.drain(..whole);
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Wait for everything submitted.
    pub(crate) fn wait(&self, op: &str) -> Result<()> {
        let polled = self.handle.poll(wgpu::PollType::wait_indefinitely());
        self.check(op)?;
        polled.map(|_| ()).map_err(|error| self.error(op, error.to_string()))
    }
}

/// A number that no other array or device in this process has.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn lock(fault: &Fault) -> MutexGuard<'_, Option<String>> {
    fault.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(fault: &Fault, reason: String) {
    lock(fault).get_or_insert(reason);
}
