//! Steps: the commands of a step's body are recorded on the host, and then queued together.
//!
//! A step of one token per sequence becomes a CUDA graph, which later steps of its shape launch in one call.
//! [`qwen_core::backend::recorder`] decides which steps are kept. The graph is captured from the recorded commands, not
//! from the body itself, so that kernels are loaded and workspace is allocated before the capture begins. Prompts are
//! queued kernel by kernel.

use std::sync::Arc;

use qwen_core::Result;
use qwen_core::backend::StepKey;
use qwen_core::backend::recorder::{self, Record, Recorder, Recording};

use super::CudaBackend;
use crate::driver::{Command, Enqueue, Graph};
use crate::nccl::LOST;

/// Lengths of prompts to run at load: each uses a different product kernel.
const PROMPT_LENGTHS: [usize; 3] = [8, 64, 256];

/// Numbers of sequences whose steps of single tokens are recorded at load.
const SEQUENCE_COUNTS: [usize; 4] = [1, 2, 4, 8];

/// A recorded step that can be replayed.
// Public as `Record::Step` of a public type; nothing outside of this crate can name it.
#[derive(Debug)]
pub struct Step {
    graph: Graph,
    /// A collective operation of the step: if one of its peers is lost, the graph would wait forever.
    call: Option<Arc<dyn Enqueue>>,
    /// Keeps the arrays of the graph alive.
    _commands: Vec<Command>,
}

/// Shapes of steps to run at load.
pub(super) fn warmup_shapes() -> Vec<StepKey> {
    recorder::warmup_shapes(&PROMPT_LENGTHS, &SEQUENCE_COUNTS)
}

impl CudaBackend {
    /// Queue `command`, or record it as a part of the step that is being recorded.
    pub(super) fn queue(&mut self, command: Option<Command>) -> Result<()> {
        let Some(command) = command else { return Ok(()) };
        match self.recorder.recording() {
            Some(_) => {
                self.recorded.push(command);
                Ok(())
            }
            None => self.gpu.issue(&command),
        }
    }

    /// Queue the commands that were recorded so far: the host is about to write, read or wait.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.recorder.submit_early();
        std::mem::take(&mut self.recorded).iter().try_for_each(|command| self.gpu.issue(command))
    }

    /// Refuse steps after the context or a rank was lost.
    pub(super) fn check_steps(&mut self) -> Result<()> {
        self.gpu.check("step")?;
        let lost = |step: &Step| step.call.as_ref().is_some_and(|call| call.is_lost());
        if self.recorder.kept().any(lost) {
            // NCCL waits until these are dropped before it frees its memory.
            self.recorder.clear();
            return Err(self.gpu.error("step", LOST));
        }
        Ok(())
    }
}

impl Record for CudaBackend {
    type Step = Step;

    fn recorder(&mut self) -> &mut Recorder<Step> {
        &mut self.recorder
    }

    fn replay(&mut self, step: &Arc<Step>) -> Result<()> {
        self.gpu.replay(&step.graph)
    }

    fn discard(&mut self) {
        self.recorded.clear();
    }

    fn submit(&mut self, recording: Recording) -> Result<Option<Arc<Step>>> {
        let commands = std::mem::take(&mut self.recorded);
        if recording.keep && !commands.is_empty() {
            if let Some(graph) = self.gpu.capture(&commands)? {
                self.gpu.replay(&graph)?;
                let call = commands.iter().find_map(|command| match command {
                    Command::Call(call) => Some(call.clone()),
                    Command::Launch(..) => None,
                });
                return Ok(Some(Arc::new(Step { graph, call, _commands: commands })));
            }
            // If the driver cannot record these kernels, they are still run.
            self.recorder.stop_keeping();
        }
        commands.iter().try_for_each(|command| self.gpu.issue(command))?;
        Ok(None)
    }
}
