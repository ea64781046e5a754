//! An open device: its arrays, what goes to it and comes back, and the faults that the driver reports.
//!
//! A driver reports faults when it likes, not where they were caused: the first one is kept, and every operation after
//! it is refused with it. Only what makes or fills something is asked at once, so that it can be the error of that call.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qwen_core::{Error, Result};

use crate::adapter::{self, AdapterInfo, Cooperative};
use crate::options::WgpuOptions;
use crate::params::Params;
use crate::pipeline_cache::Cache;
use crate::pipelines::Made;
use crate::staging::{Mapped, Staging};
use crate::stats::{HostTimer, WgpuStats};

/// Bytes that are handed to the queue at a time while weights are uploaded.
const UPLOAD: usize = 16 << 20;

/// The first fault that the driver has reported.
type Fault = Mutex<Option<String>>;

/// An array on the device. Clones are the same array.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    pub(crate) id: u64,
    /// The device that it lies on. Two instances of wgpu would take each other's handles for their own.
    owner: u64,
    pub(crate) buffer: wgpu::Buffer,
}

/// An array, or a stretch of one, as a kernel takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binding<'a> {
    pub(crate) array: &'a Array,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) writable: bool,
}

impl Array {
    /// The 32-bit words of `range`, to read.
    pub(crate) fn read(&self, range: Range<usize>) -> Binding<'_> {
        let offset = 4 * range.start as u64;
        let bytes = bytes_of(range.len()).min(self.buffer.size().saturating_sub(offset));
        Binding { array: self, offset, bytes, writable: false }
    }

    /// The 32-bit words of `range`, to write.
    pub(crate) fn write(&self, range: Range<usize>) -> Binding<'_> {
        Binding { writable: true, ..self.read(range) }
    }

    /// All of it, to read.
    pub(crate) fn read_all(&self) -> Binding<'_> {
        Binding { array: self, offset: 0, bytes: self.buffer.size(), writable: false }
    }

    /// All of it, to write.
    pub(crate) fn write_all(&self) -> Binding<'_> {
        Binding { writable: true, ..self.read_all() }
    }
}

/// Bytes of an array of so many words: whole vectors of four, and never none.
fn bytes_of(words: usize) -> u64 {
    (words.max(1) as u64 * 4).next_multiple_of(16)
}

/// Commands on their way to the device, with the buffer that their inputs come from.
#[derive(Debug)]
pub(crate) struct Commands {
    pub(crate) encoder: wgpu::CommandEncoder,
    pub(crate) staged: Option<Mapped>,
}

/// An open device.
#[derive(Debug)]
pub(crate) struct Gpu {
    id: u64,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: AdapterInfo,
    pub(crate) limits: wgpu::Limits,
    /// The cooperative matrices that it was opened with.
    pub(crate) cooperative: Option<Cooperative>,
    fault: Arc<Fault>,
    pub(crate) made: Made,
    pub(crate) params: Params,
    pub(crate) staging: Staging,
    readback: Option<wgpu::Buffer>,
    pub(crate) stats: WgpuStats,
    pub(crate) cache: Option<Cache>,
}

impl Gpu {
    /// Open the adapter that `options` name.
    pub(crate) fn open(options: &WgpuOptions) -> Result<Self> {
        Self::open_with(options, wgpu::Features::empty())
    }

    /// Open the adapter that `options` name with those of the features `wanted` that it has, too.
    pub(crate) fn open_with(options: &WgpuOptions, wanted: wgpu::Features) -> Result<Self> {
        let (adapter, info) = adapter::choose(&options.adapter)?;
        let (limits, features) = adapter::capabilities(&adapter, options.capabilities);
        let cooperative =
            info.cooperative.filter(|_| features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX));
        let experimental_features = match cooperative {
            // SAFETY: what the token stands for is that experimental features may misbehave. They are asked for where
            // the program chose the set `Best`, whose documentation says so.
            Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
            None => wgpu::ExperimentalFeatures::disabled(),
        };
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("qwen"),
            required_features: features | (wanted & adapter.features()),
            required_limits: limits,
            experimental_features,
            ..Default::default()
        }));
        let (device, queue) = opened.map_err(|error| Error::Device {
            device: info.to_string(),
            op: "open".into(),
            reason: format!("the driver refused a device: {error}"),
        })?;
        let cache = options.pipeline_cache.then(|| Cache::open(&device, &adapter)).flatten();
        Ok(Gpu { cache, cooperative, ..Self::new(device, queue, info) })
    }

    /// A device that somebody opened.
    pub(crate) fn new(device: wgpu::Device, queue: wgpu::Queue, info: AdapterInfo) -> Self {
        let fault = Arc::new(Fault::default());
        // Without a handler an error panics.
        let seen = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| note(&seen, error.to_string())));
        let seen = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            note(&seen, format!("the device was lost ({reason:?}): {message}; load the engine again"));
        });
        let limits = device.limits();
        Gpu {
            id: next_id(),
            params: Params::new(&device, &limits),
            staging: Staging::new(&device),
            limits,
            device,
            queue,
            info,
            cooperative: None,
            fault,
            made: Made::default(),
            readback: None,
            stats: WgpuStats::default(),
            cache: None,
        }
    }

    /// The first fault that the driver reported, as an error of `op`. A device that had one is not used any further.
    pub(crate) fn check(&self, op: &str) -> Result<()> {
        match &*lock(&self.fault) {
            Some(reason) => Err(self.error(op, reason.clone())),
            None => Ok(()),
        }
    }

    /// Refuse arrays of other devices.
    pub(crate) fn own<'a>(&self, op: &str, mut arrays: impl Iterator<Item = &'a Array>) -> Result<()> {
        match arrays.all(|array| array.owner == self.id) {
            true => Ok(()),
            false => Err(self.error(op, "an array belongs to another device")),
        }
    }

    pub(crate) fn error(&self, op: &str, reason: impl Into<String>) -> Error {
        Error::Device { device: self.info.to_string(), op: op.into(), reason: reason.into() }
    }

    /// What became of a buffer that cannot be mapped: a lost device says so before anything else.
    pub(crate) fn unmapped(&self, op: &str, reason: impl Into<String>) -> Error {
        let _ = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check(op).err().unwrap_or_else(|| self.error(op, reason))
    }

    /// Run `make`, which makes or fills something of so many bytes. What the driver cannot or will not do is the error
    /// of this call then, and the device goes on.
    pub(crate) fn guarded<T>(&self, what: &str, bytes: u64, make: impl FnOnce() -> T) -> Result<T> {
        let refused = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let exhausted = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let made = make();
        let (exhausted, refused) = (pollster::block_on(exhausted.pop()), pollster::block_on(refused.pop()));
        match (exhausted, refused) {
            (Some(_), _) => Err(Error::OutOfMemory { device: self.info.to_string(), what: what.into(), bytes }),
            (None, Some(error)) => Err(self.error(what, error.to_string())),
            (None, None) => self.check(what).map(|()| made),
        }
    }

    /// A buffer that was made under guard.
    pub(crate) fn buffer(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        self.stats.made(1);
        let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        self.guarded(what, size, || self.device.create_buffer(&descriptor))
    }

    /// An array of `words` 32-bit words, all zero. `what` names it in errors.
    pub(crate) fn array(&mut self, what: &str, words: usize) -> Result<Array> {
        let size = bytes_of(words);
        if size > self.limits.max_buffer_size {
            let reason = format!("a buffer of {size} bytes exceeds the device's {}", self.limits.max_buffer_size);
            return Err(self.error(what, reason));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(what, size, usage)?;
        Ok(Array { id: next_id(), owner: self.id, buffer })
    }

    /// Fill `array` from the beginning with what `fill` appends, until it appends nothing. Memory for one piece of it is
    /// taken on the host.
    pub(crate) fn upload(
        &mut self,
        what: &str,
        array: &Array,
        mut fill: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> Result<()> {
        let (mut piece, mut at) = (Vec::new(), 0);
        loop {
            let more = fill(&mut piece);
            if piece.len() >= UPLOAD || !more {
                let whole = piece.len() / 4 * 4;
                if at + whole as u64 > array.buffer.size() {
                    return Err(self.error(what, "more data than its buffer holds"));
                }
                self.guarded(what, whole as u64, || {
                    self.queue.write_buffer(&array.buffer, at, &piece[..whole]);
                    // What was written is held on the host until it is submitted and done.
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

    /// Hand `commands` to the device.
    pub(crate) fn submit(&mut self, commands: Commands) {
        self.stats.submitted();
        let submission = self.queue.submit([commands.encoder.finish()]);
        if let Some(staged) = commands.staged {
            self.staging.reuse(&staged, submission);
        }
    }

    /// Wait for all that was submitted.
    pub(crate) fn wait(&self, op: &str) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check(op)?;
        polled.map(|_| ()).map_err(|error| self.error(op, error.to_string()))
    }

    /// Copy the first `words` of `array`, which is this device's, to the host, after `commands`, whose recording `timer`
    /// counts.
    pub(crate) fn read_back(
        &mut self,
        op: &str,
        mut commands: Commands,
        timer: HostTimer,
        array: &Array,
        words: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        let bytes = words as u64 * 4;
        if self.readback.as_ref().is_none_or(|buffer| buffer.size() < bytes) {
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            self.readback = Some(self.buffer("readback", bytes.next_multiple_of(256), usage)?);
        }
        let Some(readback) = self.readback.clone() else { return Ok(()) };
        commands.encoder.copy_buffer_to_buffer(&array.buffer, 0, &readback, 0, bytes);
        self.stats.read_back(bytes);
        self.submit(commands);
        drop(timer);
        self.check(op)?;
        let (sender, receiver) = std::sync::mpsc::channel();
        readback.slice(..bytes).map_async(wgpu::MapMode::Read, move |mapped| {
            let _ = sender.send(mapped);
        });
        self.wait(op)?;
        match receiver.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.unmapped(op, error.to_string())),
            Err(_) => return Err(self.unmapped(op, "the result was never mapped")),
        }
        match readback.slice(..bytes).get_mapped_range() {
            Ok(mapped) => take(&mapped),
            Err(error) => return Err(self.unmapped(op, error.to_string())),
        }
        readback.unmap();
        self.check(op)
    }
}

/// A number that no other array or device of this process has.
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
