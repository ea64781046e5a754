//! How operations become a step: kernels are queued within the device's limits, and steps of single tokens recorded and
//! replayed.

use std::ops::Range;
use std::sync::Arc;

use qwen_core::backend::{Interrupt, StepKey};
use qwen_core::{Error, Result};

use super::WgpuBackend;
use crate::gpu::Binding;
use crate::record::{Dispatch, Grid, Work};
use crate::shader::Shader;

/// Steps of a token for each sequence that are kept for replay. Prompts are recorded anew: they have many lengths.
const KEPT_STEPS: usize = 64;
/// Multiply-adds after which a prompt's kernels go to the device: a second where a tenth of a Tflop/s is reached. Drivers
/// reset a GPU whose submission runs for some seconds.
pub(super) const MULTIPLY_ADDS: u64 = 50_000_000_000;

/// A step that is being recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recording {
    /// Whether it is to be kept.
    pub(super) keep: bool,
    /// Whether all of it is still queued, so that it can be replayed.
    pub(super) whole: bool,
}

impl WgpuBackend {
    pub(super) fn run_step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.gpu.check("step")?;
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        if let Some(step) = self.steps.get(&key) {
            self.queued.push_step(step.clone());
            return Ok(());
        }
        // What is recorded from here on is the step alone; its inputs may wait for it.
        if self.queued.has_kernels() {
            self.queued.flush(&mut self.gpu, "step")?;
        }
        let _timer = self.gpu.stats.host();
        let keep = key.max_seqlen_q <= 1 && self.steps.len() < KEPT_STEPS;
        self.recording = Some(Recording { keep, whole: true });
        let result = body(self);
        let recorded = self.recording.take().filter(|recording| recording.whole);
        if result.is_err() || interrupt.is_raised() {
            drop(self.queued.take_kernels());
            return result.and(Err(Error::Cancelled));
        }
        if let Some(Recording { keep, .. }) = recorded {
            let step = Arc::new(self.queued.take_kernels());
            if keep {
                self.steps.insert(key, step.clone());
            }
            self.queued.push_step(step);
        }
        Ok(())
    }

    /// Queue a kernel.
    pub(super) fn queue(
        &mut self,
        op: &str,
        shader: &Shader,
        bindings: &[Binding<'_>],
        params: &[u32],
        grid: Grid,
        work: Work,
    ) -> Result<()> {
        let most = self.gpu.limits.max_compute_workgroups_per_dimension;
        let largest = match &grid {
            Grid::Fixed(grid) => grid.iter().copied().max().unwrap_or(0),
            Grid::Spans { x, y, .. } => *x.max(y),
        };
        if largest > most {
            return Err(self.misfit(op, format!("{largest} workgroups along one dimension, the device takes {most}")));
        }
        let offset = self.place(op, params)?;
        // Arrays of a step stay; those of single operations may go.
        let kernel = self.gpu.prepare(op, shader, bindings, offset, self.recording.is_some())?;
        self.queued.push(Dispatch { kernel, grid, work });
        // What is to be replayed is one submission: a token's work is little.
        let keep = self.recording.is_some_and(|recording| recording.keep);
        match !keep && self.queued.multiply_adds() >= self.multiply_adds_per_submission {
            true => self.submit_early(op),
            false => Ok(()),
        }
    }

    /// Where `params` lie. What is queued goes to the device first where there is no room left.
    fn place(&mut self, op: &str, params: &[u32]) -> Result<u32> {
        let keep = self.recording.is_some_and(|recording| recording.keep);
        let mut place = self.gpu.place_params(op, params, keep)?;
        if place.is_none() {
            self.submit_early(op)?;
            self.gpu.params.restart();
            place = self.gpu.place_params(op, params, keep)?;
        }
        let Some(place) = place else { return Err(self.misfit(op, "no room for parameters".into())) };
        if let Some(recording) = &mut self.recording {
            // Parameters that pass may be gone when the step is replayed.
            recording.keep &= place.kept;
        }
        Ok(place.offset)
    }

    /// Queue a kernel with a thread for each of `width` items of each of `rows` rows.
    pub(super) fn queue_rows(
        &mut self,
        op: &str,
        shader: &Shader,
        bindings: &[Binding<'_>],
        params: &[usize],
        (width, rows): (usize, usize),
    ) -> Result<()> {
        if width == 0 {
            return Ok(());
        }
        let params: Vec<u32> = params.iter().map(|param| *param as u32).collect();
        self.queue(
            op,
            shader,
            bindings,
            &params,
            Grid::Fixed([width.div_ceil(64) as u32, rows as u32, 1]),
            Work::default(),
        )
    }

    /// `rows` in pieces: arrays with so many words a row can be bound for each, from where a binding may begin.
    pub(super) fn pieces(&self, op: &str, rows: usize, widths: &[usize]) -> Result<Vec<Range<usize>>> {
        let most = self.gpu.limits.max_storage_buffer_binding_size as usize / 4;
        let widest = widths.iter().copied().max().unwrap_or(0).max(1);
        if rows * widest <= most {
            return Ok((rows > 0).then_some(0..rows).into_iter().collect());
        }
        let alignment = (self.gpu.limits.min_storage_buffer_offset_alignment as usize / 4).max(1);
        let aligned = |step: &usize| widths.iter().all(|width| (step * width).is_multiple_of(alignment));
        let step = (1..alignment).find(aligned).unwrap_or(alignment);
        let size = most / widest / step * step;
        if size == 0 {
            return Err(self.misfit(op, format!("{step} rows of {widest} values exceed what the device binds")));
        }
        Ok((0..rows).step_by(size).map(|first| first..(first + size).min(rows)).collect())
    }
}

/// The words of the rows `piece` in an array with `width` words a row.
pub(super) fn words(piece: &Range<usize>, width: usize) -> Range<usize> {
    piece.start * width..piece.end * width
}
