//! Staging buffers for host writes. They are created with the device, and mapped again once it has read them, so that
//! no step creates one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use qwen_core::Result;

use crate::runtime::device::Device;
use crate::runtime::params;

/// The capacity of a buffer for host writes, in bytes.
pub(crate) const WRITES: usize = 512 << 10;
/// One is filled while the device reads the other.
const COUNT: usize = 2;
/// Host writes plus all kernel parameters, which may all be new.
const SIZE: u64 = WRITES as u64 + params::SIZE;
/// Bytes of all buffers.
pub(crate) const BYTES: u64 = COUNT as u64 * SIZE;

/// The staging buffers of a device.
#[derive(Debug)]
pub(crate) struct Staging {
    buffers: Vec<wgpu::Buffer>,
    /// The buffers that the host may fill.
    mapped: Arc<Mutex<Vec<usize>>>,
    /// The submissions that read the buffers filled last, in order.
    reading: VecDeque<wgpu::SubmissionIndex>,
}

/// A buffer that the host may fill once.
#[derive(Debug)]
pub(crate) struct Mapped {
    index: usize,
    pub(crate) buffer: wgpu::Buffer,
}

impl Staging {
    pub(crate) fn new(device: &Device) -> Self {
        let descriptor = wgpu::BufferDescriptor {
            label: Some("step inputs"),
            size: SIZE,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        };
        Staging {
            buffers: (0..COUNT).map(|_| device.handle.create_buffer(&descriptor)).collect(),
            mapped: Arc::new(Mutex::new((0..COUNT).collect())),
            reading: VecDeque::new(),
        }
    }

    /// A buffer to fill. If the device still has to read all of them, this waits for the oldest.
    ///
    /// # Errors
    /// When the driver does not return a buffer.
    pub(crate) fn take(&mut self, device: &Device, op: &str) -> Result<Mapped> {
        // Reclaims buffers that the device has already read, without waiting.
        let _ = device.handle.poll(wgpu::PollType::Poll);
        loop {
            if let Some(mapped) = self.next() {
                return Ok(mapped);
            }
            let Some(submission) = self.reading.pop_front() else {
                return Err(device.mapping_error(op, "the driver returned no buffer for inputs"));
            };
            let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
            device.handle.poll(wait).map_err(|error| device.mapping_error(op, error.to_string()))?;
        }
    }

    fn next(&self) -> Option<Mapped> {
        let index = self.mapped.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Mapped { index, buffer: self.buffers.get(index)?.clone() })
    }

    /// Map `filled` again after the submission that reads it.
    pub(crate) fn reuse(&mut self, filled: &Mapped, submission: wgpu::SubmissionIndex) {
        let (mapped, index) = (self.mapped.clone(), filled.index);
        filled.buffer.slice(..).map_async(wgpu::MapMode::Write, move |result| {
            if result.is_ok() {
                mapped.lock().unwrap_or_else(PoisonError::into_inner).push(index);
            }
        });
        self.reading.push_back(submission);
        if self.reading.len() > COUNT {
            self.reading.pop_front();
        }
    }
}

impl Mapped {
    /// Copy `parts` into the buffer, one after another.
    pub(crate) fn fill(&self, parts: &[&[u8]]) -> std::result::Result<(), wgpu::MapRangeError> {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let mut view = self.buffer.slice(..bytes).get_mapped_range_mut()?;
        let mut at = 0;
        for part in parts {
            view.slice(at..at + part.len()).copy_from_slice(part);
            at += part.len();
        }
        drop(view);
        self.buffer.unmap();
        Ok(())
    }
}
