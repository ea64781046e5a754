//! Places for the parameters of kernels, in one uniform buffer that is made with the device.
//!
//! Equal parameters share a place. Those of recorded steps keep theirs; all others pass through a region of their own
//! that is filled anew when it is full, after what is queued has gone to the device. So however many lengths prompts
//! have, nothing is made for them.

use std::collections::HashMap;

use qwen_core::Result;

use crate::gpu::Gpu;

/// Words of a kernel's parameters.
pub(crate) const WORDS: usize = 12;
/// Bytes of the parameters of recorded steps, and of those that pass.
const KEPT: u64 = 384 << 10;
const PASSING: u64 = 128 << 10;
/// Bytes of all.
pub(crate) const SIZE: u64 = KEPT + PASSING;

type Words = [u32; WORDS];

/// Where parameters lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes from the beginning of the buffer.
    pub(crate) offset: u32,
    /// Whether they stay there.
    pub(crate) kept: bool,
}

/// The parameters of a device.
#[derive(Debug)]
pub(crate) struct Params {
    buffer: wgpu::Buffer,
    kept: Region,
    passing: Region,
}

/// A stretch of the buffer, filled from its beginning.
#[derive(Debug)]
struct Region {
    first: u64,
    end: u64,
    next: u64,
    /// From one place to the next.
    step: u64,
    places: HashMap<Words, u32>,
    /// What lies before `next` on the host alone.
    fresh: Vec<u8>,
}

impl Region {
    fn new(first: u64, bytes: u64, step: u64) -> Self {
        Region { first, end: first + bytes, next: first, step, places: HashMap::new(), fresh: Vec::new() }
    }

    fn add(&mut self, words: Words) -> Option<u32> {
        if self.next + self.step > self.end {
            return None;
        }
        let offset = self.next as u32;
        self.next += self.step;
        self.fresh.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self.fresh.resize(self.fresh.len() + self.step as usize - 4 * WORDS, 0);
        self.places.insert(words, offset);
        Some(offset)
    }

    fn fresh(&self) -> (u64, &[u8]) {
        (self.next - self.fresh.len() as u64, &self.fresh)
    }
}

impl Params {
    pub(crate) fn new(device: &wgpu::Device, limits: &wgpu::Limits) -> Self {
        let alignment = u64::from(limits.min_uniform_buffer_offset_alignment).max(4);
        let step = (4 * WORDS as u64).next_multiple_of(alignment);
        let descriptor = wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: SIZE,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let buffer = device.create_buffer(&descriptor);
        Params { buffer, kept: Region::new(0, KEPT, step), passing: Region::new(KEPT, PASSING, step) }
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// The place of `params`; one that they keep, if `keep` and there is room. None when there is room for none.
    pub(crate) fn place(&mut self, params: &[u32], keep: bool) -> Option<Place> {
        let mut words = [0; WORDS];
        words.iter_mut().zip(params).for_each(|(word, param)| *word = *param);
        let place = |kept| move |offset| Place { offset, kept };
        if let Some(offset) = self.kept.places.get(&words) {
            return Some(*offset).map(place(true));
        }
        if keep && let Some(offset) = self.kept.add(words) {
            return Some(offset).map(place(true));
        }
        self.passing.places.get(&words).copied().or_else(|| self.passing.add(words)).map(place(false))
    }

    /// Forget parameters that pass. No kernel that has some may be queued.
    pub(crate) fn restart(&mut self) {
        let Region { first, end, step, .. } = self.passing;
        self.passing = Region::new(first, end - first, step);
    }

    /// What the device has still to get: offsets and bytes.
    pub(crate) fn fresh(&self) -> [(u64, &[u8]); 2] {
        [self.kept.fresh(), self.passing.fresh()]
    }

    /// What was fresh has been handed to the device.
    pub(crate) fn written(&mut self) {
        self.kept.fresh.clear();
        self.passing.fresh.clear();
    }

    /// Leave room for so many that are kept, and that pass.
    #[cfg(test)]
    pub(crate) fn shrink(&mut self, kept: u64, passing: u64) {
        self.kept.end = self.kept.first + kept * self.kept.step;
        self.passing.end = self.passing.first + passing * self.passing.step;
    }

    /// Places of the region that parameters pass through.
    #[cfg(test)]
    pub(crate) fn passing_places(&self) -> usize {
        ((self.passing.end - self.passing.first) / self.passing.step) as usize
    }
}

impl Gpu {
    /// The place of `params`, or none where there is no room, as [`Params::place`].
    ///
    /// # Errors
    /// When there are too many.
    pub(crate) fn place_params(&mut self, op: &str, params: &[u32], keep: bool) -> Result<Option<Place>> {
        match params.len() > WORDS {
            true => Err(self.error(op, format!("{} parameters, a kernel takes {WORDS}", params.len()))),
            false => Ok(self.params.place(params, keep)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shared_kept_and_filled_anew() {
        let (device, _) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let mut params = Params::new(&device, &wgpu::Limits::defaults());
        let kept = params.place(&[1, 2], true).unwrap();
        assert!(kept.kept);
        assert_eq!(params.place(&[1, 2], false), Some(kept));
        let passing = params.place(&[3], false).unwrap();
        assert!(!passing.kept && u64::from(passing.offset) >= KEPT);
        // A step that is to be replayed needs places that stay.
        assert!(params.place(&[3], true).unwrap().kept);
        let places = params.passing_places() as u32;
        assert!((0..places - 1).all(|i| params.place(&[4, i], false).is_some()));
        assert_eq!(params.place(&[5], false), None);
        let [(_, kept_bytes), (at, bytes)] = params.fresh();
        assert_eq!((at, bytes.len() as u64, kept_bytes.len()), (KEPT, PASSING, 2 * 256));
        params.restart();
        assert_eq!(params.place(&[5], false), Some(Place { offset: KEPT as u32, kept: false }));
        assert_eq!(params.place(&[1, 2], false), Some(kept));
    }

    #[test]
    fn a_full_region_of_recorded_steps_lets_others_pass() {
        let (device, _) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let mut params = Params::new(&device, &wgpu::Limits::defaults());
        let kept = (0..).take_while(|i| params.place(&[*i], true).unwrap().kept).count();
        assert_eq!(kept as u64, KEPT / 256);
    }
}
