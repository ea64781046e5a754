//! What the host writes and reads, and when queued kernels go to the device for it.

use qwen_core::Result;

use super::{Numbers, WgpuBackend};

impl WgpuBackend {
    /// A write or read by the host: within a step, what was recorded cannot be replayed then.
    fn host_access(&mut self, op: &str, writes: bool) -> Result<()> {
        if let Some(recording) = &mut self.recording {
            recording.whole = false;
        }
        if writes && self.queued.has_kernels() {
            self.queued.flush(&mut self.gpu, op)?;
        }
        Ok(())
    }

    /// Hand what is queued to the device in the midst of a step, whose parts cannot be replayed then.
    pub(super) fn submit_early(&mut self, op: &str) -> Result<()> {
        if let Some(recording) = &mut self.recording {
            recording.whole = false;
        }
        self.queued.flush(&mut self.gpu, op)
    }

    pub(super) fn write_words(
        &mut self,
        op: &str,
        numbers: &Numbers,
        words: impl Iterator<Item = [u8; 4]>,
    ) -> Result<()> {
        let bytes: Vec<u8> = words.flatten().collect();
        self.need(op, "dst", numbers, bytes.len() / 4)?;
        self.host_access(op, true)?;
        self.queued.write(&mut self.gpu, &numbers.array, &bytes)
    }

    pub(super) fn read_words(
        &mut self,
        op: &str,
        numbers: &Numbers,
        words: usize,
        take: impl FnMut(&[u8]),
    ) -> Result<()> {
        self.need(op, "src", numbers, words)?;
        self.gpu.own(op, [&numbers.array].into_iter())?;
        self.host_access(op, false)?;
        if words == 0 {
            return self.queued.flush(&mut self.gpu, op);
        }
        let timer = self.gpu.stats.host();
        let commands = self.queued.encode(&mut self.gpu)?;
        self.gpu.read_back(op, commands, timer, &numbers.array, words, take)
    }
}

pub(super) fn each_word(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks().0.iter().copied()
}
