//! Slots for the parameters of kernels, in one uniform buffer that is created with the device.
//!
//! Equal parameters share a slot. Those of recorded steps keep their slots; the others share a region that is refilled
//! from its beginning once the kernels that read it are submitted. So prompts of any length need no new buffer.

use std::collections::HashMap;

use qwen_core::Result;

use crate::runtime::device::Device;

/// Words of a kernel's parameters.
pub(crate) const WORDS: usize = 16;
/// Bytes of the slots of recorded steps.
const KEPT: u64 = 384 << 10;
/// Bytes of the slots of all other kernels.
const TRANSIENT: u64 = 128 << 10;
/// Bytes of the buffer.
pub(crate) const SIZE: u64 = KEPT + TRANSIENT;

type Words = [u32; WORDS];

/// The position of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Bytes from the beginning of the buffer.
    pub(crate) offset: u32,
    /// Whether they are kept there.
    pub(crate) kept: bool,
}

/// The parameters of a device.
#[derive(Debug)]
pub(crate) struct Params {
    buffer: wgpu::Buffer,
    kept: Region,
    transient: Region,
}

/// A region of the buffer, filled from its beginning.
#[derive(Debug)]
struct Region {
    first: u64,
    end: u64,
    next: u64,
    /// The stride of slots in bytes.
    step: u64,
    slots: HashMap<Words, u32>,
    /// The bytes before `next` that are not uploaded yet.
    fresh: Vec<u8>,
}

impl Region {
    fn new(first: u64, bytes: u64, step: u64) -> Self {
        Region { first, end: first + bytes, next: first, step, slots: HashMap::new(), fresh: Vec::new() }
    }

    fn add(&mut self, words: Words) -> Option<u32> {
        if self.next + self.step > self.end {
            return None;
        }
        let offset = self.next as u32;
        self.next += self.step;
        self.fresh.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self.fresh.resize(self.fresh.len() + self.step as usize - 4 * WORDS, 0);
        self.slots.insert(words, offset);
        Some(offset)
    }

    fn fresh(&self) -> (u64, &[u8]) {
        (self.next - self.fresh.len() as u64, &self.fresh)
    }
}

impl Params {
    pub(crate) fn new(device: &Device) -> Self {
        let alignment = u64::from(device.limits.min_uniform_buffer_offset_alignment).max(4);
        let step = (4 * WORDS as u64).next_multiple_of(alignment);
        let descriptor = wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: SIZE,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let buffer = device.handle.create_buffer(&descriptor);
        Params { buffer, kept: Region::new(0, KEPT, step), transient: Region::new(KEPT, TRANSIENT, step) }
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// A slot with `params`; with `keep` a permanent one, if there is room. `None` if no region has room.
    ///
    /// # Errors
    /// When a kernel of `op` has more parameters than a slot.
    pub(crate) fn slot(&mut self, device: &Device, op: &str, params: &[u32], keep: bool) -> Result<Option<Slot>> {
        if params.len() > WORDS {
            return Err(device.error(op, format!("{} parameters, a kernel takes {WORDS}", params.len())));
        }
        let mut words = [0; WORDS];
        words.iter_mut().zip(params).for_each(|(word, param)| *word = *param);
        Ok(self.slot_of(words, keep))
    }

    fn slot_of(&mut self, words: Words, keep: bool) -> Option<Slot> {
        let slot = |kept| move |offset| Slot { offset, kept };
        if let Some(offset) = self.kept.slots.get(&words) {
            return Some(*offset).map(slot(true));
        }
        if keep && let Some(offset) = self.kept.add(words) {
            return Some(offset).map(slot(true));
        }
        self.transient.slots.get(&words).copied().or_else(|| self.transient.add(words)).map(slot(false))
    }

    /// Forget all parameters that are not kept. No queued kernel may read them.
    pub(crate) fn restart(&mut self) {
        let Region { first, end, step, .. } = self.transient;
        self.transient = Region::new(first, end - first, step);
    }

    /// Offsets and bytes that are not uploaded yet.
    pub(crate) fn fresh(&self) -> [(u64, &[u8]); 2] {
        [self.kept.fresh(), self.transient.fresh()]
    }

    /// Record that all parameters are uploaded.
    pub(crate) fn written(&mut self) {
        self.kept.fresh.clear();
        self.transient.fresh.clear();
    }

    /// Leave room for `kept` permanent slots, and for `transient` others.
    #[cfg(test)]
    pub(crate) fn shrink(&mut self, kept: u64, transient: u64) {
        self.kept.end = self.kept.first + kept * self.kept.step;
        self.transient.end = self.transient.first + transient * self.transient.step;
    }

    /// The number of parameters in the transient region.
    #[cfg(test)]
    pub(crate) fn transient_slots(&self) -> usize {
        ((self.transient.end - self.transient.first) / self.transient.step) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::AdapterInfo;

    fn params() -> Params {
        let (handle, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        Params::new(&Device::new(handle, queue, AdapterInfo::idle(), None))
    }

    fn words(params: &[u32]) -> Words {
        std::array::from_fn(|i| params.get(i).copied().unwrap_or(0))
    }

    #[test]
    fn slots_are_shared_kept_and_refilled() {
        let mut params = params();
        let kept = params.slot_of(words(&[1, 2]), true).unwrap();
        assert!(kept.kept);
        assert_eq!(params.slot_of(words(&[1, 2]), false), Some(kept));
        let transient = params.slot_of(words(&[3]), false).unwrap();
        assert!(!transient.kept && u64::from(transient.offset) >= KEPT);
        // A step that will be replayed needs permanent slots.
        assert!(params.slot_of(words(&[3]), true).unwrap().kept);
        let slots = params.transient_slots() as u32;
        assert!((0..slots - 1).all(|i| params.slot_of(words(&[4, i]), false).is_some()));
        assert_eq!(params.slot_of(words(&[5]), false), None);
        let [(_, kept_bytes), (at, bytes)] = params.fresh();
        assert_eq!((at, bytes.len() as u64, kept_bytes.len()), (KEPT, TRANSIENT, 2 * 256));
        params.restart();
        assert_eq!(params.slot_of(words(&[5]), false), Some(Slot { offset: KEPT as u32, kept: false }));
        assert_eq!(params.slot_of(words(&[1, 2]), false), Some(kept));
    }

    #[test]
    fn when_no_more_can_be_kept_others_take_transient_slots() {
        let mut params = params();
        let kept = (0..).take_while(|i| params.slot_of(words(&[*i]), true).unwrap().kept).count();
        assert_eq!(kept as u64, KEPT / 256);
    }
}
