//! A device with everything that its commands need, and the submission of commands.
//!
//! Operations only queue. Queued commands are submitted in one command buffer with one compute pass: when the host
//! waits for a result, when it overwrites the input of a queued kernel, or when more work is queued than one submission
//! should have. Host writes go through a buffer of [`crate::runtime::staging`], before the kernels.

use std::sync::Arc;

use qwen_core::{Error, Result};

use crate::adapter;
use crate::options::WgpuOptions;
use crate::runtime::array::Array;
use crate::runtime::commands::{Dispatch, LargestValue, PendingCommands, Write};
use crate::runtime::device::Device;
use crate::runtime::params::{Params, Slot};
use crate::runtime::pipeline_cache::PipelineCache;
use crate::runtime::pipelines::{Kernel, KernelRequest, Pipelines};
use crate::runtime::staging::{Mapped, Staging, WRITES};

/// A part of an array: where it begins, and its length, in bytes that are multiples of four.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) array: Array,
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

/// An encoded command buffer, with the staging buffer that it copies from.
#[derive(Debug)]
struct Encoded {
    encoder: wgpu::CommandEncoder,
    staged: Option<Mapped>,
}

/// An open device, its cached objects, and its queued commands.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) device: Device,
    pub(crate) params: Params,
    pub(crate) pipelines: Pipelines,
    pub(crate) pending: PendingCommands,
    staging: Staging,
    readback: Option<wgpu::Buffer>,
    /// Whether `readback` has its planned size: longer results are read in parts.
    readback_planned: bool,
}

impl Gpu {
    /// Open the adapter that `options` name, with the available ones of the features `optional`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no such adapter; [`Error::Device`] when the driver refuses.
    pub(crate) fn open(options: &WgpuOptions, optional: wgpu::Features) -> Result<Self> {
        let (adapter, info) = adapter::choose(&options.adapter)?;
        let (limits, features) = adapter::capabilities(&adapter, options.capabilities);
        let cooperative =
            info.cooperative.filter(|_| features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX));
        let experimental_features = match cooperative {
            // SAFETY: the token acknowledges that experimental features may misbehave. They are requested only
            // if the program chose the set `Best`, whose documentation says so.
            Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
            None => wgpu::ExperimentalFeatures::disabled(),
        };
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("qwen"),
            required_features: features | (optional & adapter.features()),
            required_limits: limits,
            experimental_features,
            ..Default::default()
        }));
        let (handle, queue) = opened.map_err(|error| Error::Device {
            device: info.to_string(),
            op: "open".into(),
            reason: format!("the driver refused a device: {error}"),
        })?;
        let cache = options.pipeline_cache.then(|| PipelineCache::open(&handle, &adapter)).flatten();
        let mut gpu = Self::new(Device::new(handle, queue, info, cooperative));
        gpu.pipelines.cache = cache;
        Ok(gpu)
    }

    pub(crate) fn new(device: Device) -> Self {
        Gpu {
            params: Params::new(&device),
            pipelines: Pipelines::default(),
            pending: PendingCommands::default(),
            staging: Staging::new(&device),
            readback: None,
            readback_planned: false,
            device,
        }
    }

    /// A slot with `params`, as [`Params::slot`].
    pub(crate) fn slot(&mut self, op: &str, params: &[u32], keep: bool) -> Result<Option<Slot>> {
        self.params.slot(&self.device, op, params, keep)
    }

    /// Prepare a kernel, as [`Pipelines::prepare`].
    pub(crate) fn prepare(&mut self, request: KernelRequest<'_>) -> Result<Kernel> {
        self.pipelines.prepare(&self.device, &self.params, request)
    }

    /// Queue a write to `array` from byte `offset` on, a multiple of four. No kernel may be queued.
    pub(crate) fn write(&mut self, op: &str, array: &Array, mut offset: u64, bytes: &[u8]) -> Result<()> {
        self.device.check_owner(op, [array].into_iter())?;
        for piece in bytes.chunks(WRITES) {
            if self.pending.staged.len() + piece.len() > WRITES {
                self.flush(op)?;
            }
            let (staged, bytes) = (self.pending.staged.len() as u64, piece.len() as u64);
            self.pending.writes.push(Write { array: array.clone(), offset, staged, bytes });
            self.pending.staged.extend_from_slice(piece);
            offset += bytes;
        }
        self.device.check(op)
    }

    /// Submit everything queued.
    pub(crate) fn flush(&mut self, op: &str) -> Result<()> {
        if self.pending.has_kernels() || !self.pending.staged.is_empty() {
            let _timer = self.device.stats.host();
            let encoded = self.encode()?;
            self.submit(encoded);
        }
        self.device.check(op)
    }

    /// Encode everything queued.
    fn encode(&mut self) -> Result<Encoded> {
        self.pending.seal();
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some("step") };
        let mut encoder = self.device.handle.create_command_encoder(&descriptor);
        let staged = self.encode_writes(&mut encoder)?;
        let steps = std::mem::take(&mut self.pending.steps);
        if !steps.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for Dispatch { kernel, grid, cost } in steps.iter().flat_map(|step| step.0.iter()) {
                let [x, y, z] = grid.size();
                pass.set_pipeline(&kernel.pipeline);
                pass.set_bind_group(0, &kernel.group, &[kernel.offset]);
                pass.dispatch_workgroups(x, y, z);
                let kv = |(each, longest): &(u64, Arc<LargestValue>)| each.saturating_mul(longest.get().into());
                self.device.stats.dispatched(cost.weight_bytes, cost.kv.as_ref().map_or(0, kv));
            }
        }
        Ok(Encoded { encoder, staged })
    }

    /// Encode all host writes and the new parameters; returns the staging buffer that they are copied from.
    fn encode_writes(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<Option<Mapped>> {
        let Gpu { device, params, pending, staging, .. } = self;
        let what = "step inputs";
        if pending.staged.is_empty() && params.fresh().iter().all(|(_, bytes)| bytes.is_empty()) {
            return Ok(None);
        }
        let from = staging.take(device, what)?;
        let fresh = params.fresh();
        let filled = from.fill(&[&pending.staged, fresh[0].1, fresh[1].1]);
        filled.map_err(|error| device.mapping_error(what, error.to_string()))?;
        for Write { array, offset, staged, bytes } in pending.writes.drain(..) {
            encoder.copy_buffer_to_buffer(&from.buffer, staged, &array.buffer, offset, bytes);
        }
        let mut at = pending.staged.len() as u64;
        for (offset, bytes) in fresh.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
            encoder.copy_buffer_to_buffer(&from.buffer, at, params.buffer(), offset, bytes.len() as u64);
            at += bytes.len() as u64;
        }
        pending.staged.clear();
        params.written();
        Ok(Some(from))
    }

    fn submit(&mut self, encoded: Encoded) {
        self.device.stats.submitted();
        let submission = self.device.queue.submit([encoded.encoder.finish()]);
        if let Some(staged) = encoded.staged {
            self.staging.reuse(&staged, submission);
        }
    }

    /// Allocate the buffer through which results are read, once.
    ///
    /// # Errors
    /// When the device lacks the memory.
    pub(crate) fn reserve_readback(&mut self, bytes: u64) -> Result<()> {
        self.readback = Some(self.readback_buffer(bytes)?);
        self.readback_planned = true;
        Ok(())
    }

    fn readback_buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        self.device.buffer("readback", bytes.max(4), usage)
    }

    /// Copy the first `words` of `array`, which belongs to this device, to the host, after everything queued. `take`
    /// gets the bytes in order, in one or more parts.
    pub(crate) fn read_back(
        &mut self,
        op: &str,
        array: &Array,
        words: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        self.read_pieces(op, &[Piece { array: array.clone(), at: 0, bytes: words as u64 * 4 }], &mut take)
    }

    /// Copy pieces of arrays of this device to the host, in order, after everything queued. `take` gets the bytes, in one
    /// or more parts.
    pub(crate) fn read_pieces(&mut self, op: &str, pieces: &[Piece], mut take: impl FnMut(&[u8])) -> Result<()> {
        self.device.check_owner(op, pieces.iter().map(|piece| &piece.array))?;
        let bytes: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        let buffer = match self.readback.take() {
            Some(buffer) if self.readback_planned || buffer.size() >= bytes => buffer,
            _ => self.readback_buffer(bytes.next_multiple_of(256))?,
        };
        self.readback = Some(buffer.clone());
        let room = buffer.size() / 4 * 4;
        // As many as fit are copied at once.
        let (mut copies, mut used) = (Vec::new(), 0);
        for piece in pieces {
            let mut done = 0;
            while done < piece.bytes {
                if used == room {
                    self.read_part(op, &copies, &buffer.slice(..used), &mut take)?;
                    copies.clear();
                    used = 0;
                }
                let length = (room - used).min(piece.bytes - done);
                copies.push(Piece { at: piece.at + done, bytes: length, array: piece.array.clone() });
                (done, used) = (done + length, used + length);
            }
        }
        if used > 0 {
            self.read_part(op, &copies, &buffer.slice(..used), &mut take)?;
        }
        self.device.check(op)
    }

    /// Read pieces, which are as long as `slice` together, through it.
    fn read_part(
        &mut self,
        op: &str,
        pieces: &[Piece],
        slice: &wgpu::BufferSlice<'_>,
        take: &mut impl FnMut(&[u8]),
    ) -> Result<()> {
        let timer = self.device.stats.host();
        let mut encoded = self.encode()?;
        let length = slice.size();
        let mut to = 0;
        for Piece { array, at, bytes } in pieces {
            encoded.encoder.copy_buffer_to_buffer(&array.buffer, *at, slice.buffer(), to, *bytes);
            to += bytes;
        }
        self.device.stats.read_back(length);
        self.submit(encoded);
        drop(timer);
        let device = &self.device;
        device.check(op)?;
        let (sender, receiver) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |mapped| {
            let _ = sender.send(mapped);
        });
        device.wait(op)?;
        match receiver.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(device.mapping_error(op, error.to_string())),
            Err(_) => return Err(device.mapping_error(op, "the result was never mapped")),
        }
        match slice.get_mapped_range() {
            Ok(mapped) => take(&mapped),
            Err(error) => return Err(device.mapping_error(op, error.to_string())),
        }
        slice.buffer().unmap();
        Ok(())
    }
}
