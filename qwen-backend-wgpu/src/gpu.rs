//! An open device: buffers, pipelines, bind groups, parameters, and the faults that the driver reports.
//!
//! Whatever a step needs is made once and kept here: a pipeline for each shader, a bind group for each set of arrays, a
//! place in a uniform buffer for each set of parameters. A step in its steady state makes nothing.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qwen_core::{Error, Result};

use crate::adapter::{self, AdapterInfo, Cooperative};
use crate::options::WgpuOptions;
use crate::pipeline_cache::Cache;
use crate::shader::Shader;
use crate::stats::{HostTimer, WgpuStats};

/// Words of a kernel's parameters.
pub(crate) const PARAMS: usize = 12;

/// Bytes of a uniform buffer that holds parameters.
const PARAMS_BUFFER: u64 = 1 << 18;

/// Bytes that are handed to the queue at a time while weights are uploaded.
const UPLOAD: usize = 16 << 20;

/// The first fault that the driver has reported.
type Fault = Mutex<Option<String>>;

/// An array on the device. Clones are the same array.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    id: u64,
    /// The device that it lies on. Two instances of wgpu would take each other's handles for their own.
    owner: u64,
    pub(crate) buffer: wgpu::Buffer,
}

/// An array, or its beginning, as a kernel takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binding<'a> {
    array: &'a Array,
    offset: u64,
    bytes: u64,
    writable: bool,
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

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    params: usize,
    bindings: Vec<(u64, u64, u64, bool)>,
}

#[derive(Debug)]
struct Layout {
    group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// A kernel that is ready to run: everything but the size of its grid.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) group: wgpu::BindGroup,
    /// Where its parameters lie.
    pub(crate) offset: u32,
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
    layouts: HashMap<Vec<bool>, Layout>,
    pipelines: HashMap<Shader, wgpu::ComputePipeline>,
    groups: HashMap<GroupKey, wgpu::BindGroup>,
    params: HashMap<[u32; PARAMS], (usize, u32)>,
    params_buffers: Vec<wgpu::Buffer>,
    next_param: u64,
    readback: Option<wgpu::Buffer>,
    pub(crate) stats: WgpuStats,
    cache: Option<Cache>,
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
        Gpu {
            id: next_id(),
            limits: device.limits(),
            device,
            queue,
            info,
            cooperative: None,
            fault,
            layouts: HashMap::new(),
            pipelines: HashMap::new(),
            groups: HashMap::new(),
            params: HashMap::new(),
            params_buffers: Vec::new(),
            next_param: 0,
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

    /// Hand the commands of `encoder` to the device.
    pub(crate) fn submit(&self, encoder: wgpu::CommandEncoder) {
        self.stats.submitted();
        self.queue.submit([encoder.finish()]);
    }

    /// Wait for all that was submitted.
    pub(crate) fn wait(&self, op: &str) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check(op)?;
        polled.map(|_| ()).map_err(|error| self.error(op, error.to_string()))
    }

    /// Make `shader` ready to run on `bindings`, in the order of its own from 1 on. Numbers among `params` are as they
    /// lie in memory. What is made is kept for the next time with `keep`, and the arrays with it.
    pub(crate) fn prepare<'a>(
        &mut self,
        op: &str,
        shader: &Shader,
        bindings: &[Binding<'a>],
        params: &[u32],
        keep: bool,
    ) -> Result<Prepared> {
        self.own(op, bindings.iter().map(|binding| binding.array))?;
        let limit = self.limits.max_storage_buffer_binding_size;
        // The whole array where it can be bound: then steps of different lengths share their bind groups.
        let whole = |binding: &Binding<'a>| match binding.array.buffer.size() {
            size if binding.offset == 0 && size <= limit => Binding { bytes: size, ..*binding },
            _ => *binding,
        };
        let bindings: Vec<Binding<'a>> = bindings.iter().map(whole).collect();
        if let Some(binding) = bindings.iter().find(|binding| binding.bytes > limit) {
            let reason = format!("an array of {} bytes exceeds the device's {limit} a binding", binding.bytes);
            return Err(self.error(op, reason));
        }
        let access: Vec<bool> = bindings.iter().map(|binding| binding.writable).collect();
        let pipeline = self.pipeline(op, shader, &access)?;
        let (buffer, offset) = self.place_params(params)?;
        let group = self.group(op, buffer, &access, &bindings, keep)?;
        Ok(Prepared { pipeline, group, offset })
    }

    fn pipeline(&mut self, op: &str, shader: &Shader, access: &[bool]) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = self.pipelines.get(shader) {
            return Ok(pipeline.clone());
        }
        self.stats.made(2);
        self.layout(access);
        let make = || {
            let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(shader.kernel),
                source: wgpu::ShaderSource::Wgsl(shader.compose().into()),
            });
            self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.kernel),
                layout: self.layouts.get(access).map(|layout| &layout.pipeline),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Workgroup memory is written before it is read.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.cache.as_ref().map(Cache::pipelines),
            })
        };
        let pipeline = self.guarded(op, 0, make)?;
        self.pipelines.insert(shader.clone(), pipeline.clone());
        Ok(pipeline)
    }

    fn layout(&mut self, access: &[bool]) -> &Layout {
        let Gpu { device, layouts, stats, .. } = self;
        layouts.entry(access.to_vec()).or_insert_with(|| {
            stats.made(2);
            let entry =
                |binding: usize, ty: wgpu::BufferBindingType, has_dynamic_offset: bool| wgpu::BindGroupLayoutEntry {
                    binding: binding as u32,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
                    count: None,
                };
            let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
            entries.extend(
                access.iter().enumerate().map(|(i, writable)| {
                    entry(i + 1, wgpu::BufferBindingType::Storage { read_only: !writable }, false)
                }),
            );
            let group =
                device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            Layout { group, pipeline }
        })
    }

    /// The uniform buffer and offset that hold `params`. Equal parameters share a place, which is never written again.
    fn place_params(&mut self, params: &[u32]) -> Result<(usize, u32)> {
        let mut words = [0; PARAMS];
        words[..params.len()].copy_from_slice(params);
        if let Some(place) = self.params.get(&words) {
            return Ok(*place);
        }
        let alignment = u64::from(self.limits.min_uniform_buffer_offset_alignment);
        let step = (4 * PARAMS as u64).next_multiple_of(alignment.max(4));
        if self.params_buffers.is_empty() || self.next_param + step > PARAMS_BUFFER {
            let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
            self.params_buffers.push(self.buffer("parameters", PARAMS_BUFFER, usage)?);
            self.next_param = 0;
        }
        let place = (self.params_buffers.len() - 1, self.next_param as u32);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let buffer = &self.params_buffers[place.0];
        self.guarded("parameters", bytes.len() as u64, || self.queue.write_buffer(buffer, self.next_param, &bytes))?;
        self.next_param += step;
        self.params.insert(words, place);
        Ok(place)
    }

    fn group(
        &mut self,
        op: &str,
        params: usize,
        access: &[bool],
        bindings: &[Binding<'_>],
        keep: bool,
    ) -> Result<wgpu::BindGroup> {
        let key = GroupKey {
            params,
            bindings: bindings.iter().map(|b| (b.array.id, b.offset, b.bytes, b.writable)).collect(),
        };
        if let Some(group) = self.groups.get(&key) {
            return Ok(group.clone());
        }
        self.stats.made(1);
        self.layout(access);
        let binding = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) })
        };
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: binding(&self.params_buffers[params], 0, 4 * PARAMS as u64),
        }];
        entries.extend(bindings.iter().enumerate().map(|(i, b)| wgpu::BindGroupEntry {
            binding: i as u32 + 1,
            resource: binding(&b.array.buffer, b.offset, b.bytes),
        }));
        let layout = &self.layouts[access].group;
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
        let group = self.guarded(op, 0, || self.device.create_bind_group(&descriptor))?;
        if keep {
            self.groups.insert(key, group.clone());
        }
        Ok(group)
    }

    /// Copy the first `words` of `array` to the host, after the commands of `encoder`, whose recording `timer` counts.
    pub(crate) fn read_back(
        &mut self,
        op: &str,
        mut encoder: wgpu::CommandEncoder,
        timer: HostTimer,
        array: &Array,
        words: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        self.own(op, [array].into_iter())?;
        let bytes = words as u64 * 4;
        if self.readback.as_ref().is_none_or(|buffer| buffer.size() < bytes) {
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            self.readback = Some(self.buffer("readback", bytes.next_multiple_of(256), usage)?);
        }
        let Some(readback) = self.readback.clone() else { return Ok(()) };
        encoder.copy_buffer_to_buffer(&array.buffer, 0, &readback, 0, bytes);
        self.submit(encoder);
        drop(timer);
        self.check(op)?;
        let (sender, receiver) = std::sync::mpsc::channel();
        readback.slice(..bytes).map_async(wgpu::MapMode::Read, move |mapped| {
            let _ = sender.send(mapped);
        });
        self.wait(op)?;
        match receiver.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.error(op, error.to_string())),
            Err(_) => return Err(self.error(op, "the result was never mapped")),
        }
        match readback.slice(..bytes).get_mapped_range() {
            Ok(mapped) => take(&mapped),
            Err(error) => return Err(self.error(op, error.to_string())),
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
