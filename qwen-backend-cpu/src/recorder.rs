//! Checks operands and collects operations until they run.
//!
//! In a step, operations are collected in a list that runs when the step's body returns, or earlier if something has to
//! be read. Outside of a step each runs immediately. The list, the packed activations and the attention schedule keep
//! their memory from step to step.

use qwen_core::backend::Limits;
use qwen_core::backend::{HeadLayout, Interrupt, ModelShape};
use qwen_core::numerics::size;
use qwen_core::{Error, Precision, Result};

use crate::error::device_error;
use crate::exec::Executor;
use crate::footprint::workspace;
use crate::inputs::InputReader;
use crate::kernels::Op;
use crate::kernels::epilogue::Epilogue;
use crate::kernels::linear::{Linear, Split};
use crate::kernels::panel::{Pack, Panel, Rounding, Tiles};
use crate::kv::Store;
use crate::matrix::{Class, MOST_INPUTS, Matrix};
use crate::memory::{Array, Element};
use crate::simd::{Isa, LANES};

/// Checks and records the operations of one backend, and runs them.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Distinguishes the arrays of this backend from those of others.
    pub(crate) id: u64,
    pub(crate) isa: Isa,
    pub(crate) precision: Precision,
    pub(crate) executor: Executor,
    pub(crate) reader: InputReader,
    /// Kernels' workspace: packed activations, partial results of attention, partial argmax of logits.
    pub(crate) panel: Array<u32>,
    pub(crate) partials: Array<f32>,
    pub(crate) best: Array<u32>,
    ops: Vec<Op>,
    /// The interrupt of the step being recorded.
    step: Option<Interrupt>,
    /// Whether a pending operation writes indices.
    writes_indices: bool,
}

/// An operand and how many of its elements the operation needs; `None` if that exceeds the address space.
pub(crate) type Need<'a, T> = (&'static str, &'a Array<T>, Option<usize>);

impl Recorder {
    pub(crate) fn new(id: u64, isa: Isa, precision: Precision, executor: Executor) -> Result<Recorder> {
        Ok(Recorder {
            id,
            isa,
            precision,
            executor,
            reader: InputReader::default(),
            panel: Array::zeroed(0, id)?,
            partials: Array::zeroed(0, id)?,
            best: Array::zeroed(0, id)?,
            ops: Vec::new(),
            step: None,
            writes_indices: false,
        })
    }

    /// Allocate the memory that kernels need in addition to their operands in the largest step.
    ///
    /// # Errors
    /// When it is not available.
    pub(crate) fn reserve(&mut self, limits: &Limits, shape: &ModelShape) -> Result<()> {
        let [panel, best] = workspace(limits, shape);
        grow(&mut self.panel, size::values("max_num_batched_tokens", &panel)?)?;
        grow(&mut self.best, size::values("max_num_logits", &best)?)?;
        Ok(())
    }

    /// Begin a step: operations are recorded from now on.
    ///
    /// # Errors
    /// [`Error::Device`] within another step.
    pub(crate) fn begin(&mut self, interrupt: &Interrupt) -> Result<()> {
        if self.step.is_some() {
            return Err(device_error("step", "a step within a step".into()));
        }
        self.step = Some(interrupt.clone());
        Ok(())
    }

    /// End the step: run the recorded operations, unless the body failed or the interrupt is raised, and clear them.
    ///
    /// # Errors
    /// Those of the body; [`Error::Cancelled`] when the interrupt is raised before the end; errors of running.
    pub(crate) fn end(&mut self, body: Result<()>) -> Result<()> {
        let interrupted = self.step.as_ref().is_some_and(Interrupt::is_raised);
        let result = match body {
            Ok(()) if interrupted => Err(Error::Cancelled),
            Ok(()) => self.flush(),
            Err(error) => Err(error),
        };
        self.step = None;
        self.ops.clear();
        self.writes_indices = false;
        result
    }

    /// Record an operation; outside of a step, run it now.
    pub(crate) fn record(&mut self, op: Op) -> Result<()> {
        self.ops.push(op);
        if self.step.is_some() { Ok(()) } else { self.flush() }
    }

    /// Record two operations, the second of which needs the first.
    pub(crate) fn record_both(&mut self, first: Op, second: Op) -> Result<()> {
        self.ops.push(first);
        self.record(second)
    }

    /// Run what is recorded.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.writes_indices = false;
        // SAFETY: operands belong to this backend, as `operand` checks for each operation, and are accessed only
        // through `&mut self`; operations depend only on earlier ones.
        unsafe { self.executor.run(self.isa, &mut self.ops, self.step.as_ref()) }
    }

    /// Note that the next recorded operation writes indices.
    pub(crate) fn will_write_indices(&mut self) {
        self.reader.note_write();
        self.writes_indices = true;
    }

    /// Ensure that the host may read any indices: run the recorded operations if one of them writes indices.
    pub(crate) fn settle_indices(&mut self) -> Result<()> {
        if self.writes_indices { self.flush() } else { Ok(()) }
    }

    /// A handle to an operand of `op` with at least as many elements as it needs.
    pub(crate) fn operand<T: Element>(&self, op: &str, (name, array, need): Need<'_, T>) -> Result<Array<T>> {
        let Some(need) = need else {
            return Err(device_error(op, format!("the size of `{name}` exceeds the address space")));
        };
        if array.owner() != self.id {
            return Err(device_error(op, format!("`{name}` belongs to another backend")));
        }
        if array.len() < need {
            return Err(device_error(op, format!("`{name}` has {} elements, {need} are needed", array.len())));
        }
        Ok(array.clone())
    }

    /// Check that `kv` has `layer` and matches `heads`.
    pub(crate) fn store(&self, op: &str, kv: &Store, layer: usize, heads: &HeadLayout) -> Result<Store> {
        let spec = &kv.spec;
        self.operand(op, ("kv", &kv.array, Some(0)))?;
        if !spec.serves(layer, heads) {
            return Err(device_error(op, format!("layer {layer} and {heads:?} do not fit a store of {spec:?}")));
        }
        Ok(kv.clone())
    }

    /// The slots of `rows` tokens, checked.
    pub(crate) fn slots(&mut self, op: &str, slots: &Array<u32>, kv: &Store, rows: usize) -> Result<Array<u32>> {
        let slots = self.operand(op, ("slot_mapping", slots, Some(rows)))?;
        self.settle_indices()?;
        // SAFETY: nothing runs, no recorded operation writes indices, and all else that does takes `&mut self`.
        self.reader.check_slots(op, unsafe { slots.slice(0, rows) }, &kv.spec)?;
        Ok(slots)
    }

    /// Record a product of `rows` rows of `x` with `w`; `together` units of rows stay in one piece.
    pub(crate) fn product(
        &mut self,
        op: &str,
        x: &Array<f32>,
        w: &std::sync::Arc<Matrix>,
        rows: usize,
        together: usize,
        epilogue: Epilogue,
    ) -> Result<()> {
        let layout = &w.layout;
        let x = self.operand(op, ("x", x, rows.checked_mul(layout.cols)))?;
        if rows == 0 || layout.rows == 0 {
            return Ok(());
        }
        let fast = self.precision == Precision::Fast;
        let rounding = |class| match class {
            Class::Bf16 if fast && self.isa.has_bf16_dot() => Rounding::Pairs,
            Class::Blocks if fast => Rounding::Int8,
            _ => Rounding::Full,
        };
        let int8 = layout.inputs.iter().any(|input| rounding(input.class) == Rounding::Int8);
        let most = if int8 { self.isa.tile_tokens().min(self.isa.int8_tile_tokens()) } else { self.isa.tile_tokens() };
        let (tiles, cols) = (Tiles::new(rows, most), layout.padded_cols());
        let mut starts = [0; MOST_INPUTS + 1];
        for (i, input) in layout.inputs.iter().enumerate() {
            starts[i + 1] = starts[i] + Panel::words(rows, cols, rounding(input.class)).next_multiple_of(LANES);
        }
        let array = grow(&mut self.panel, starts[layout.inputs.len()])?;
        let mut panels = [const { None }; MOST_INPUTS];
        for (i, input) in layout.inputs.iter().enumerate() {
            let panel = Panel { array: array.clone(), start: starts[i], tiles, cols, rounding: rounding(input.class) };
            panels[i] = Some(panel.clone());
            let (x, column_order) = (x.clone(), input.column_order.clone());
            self.ops.push(Op::Pack(Pack { x, cols: layout.cols, column_order, panel }));
        }
        let split = Split::new(w, &tiles, together, self.executor.threads());
        self.record(Op::Linear(Linear { w: w.clone(), panels, tiles, epilogue, split }))
    }
}

/// Grow `array` to at least `len` elements.
pub(crate) fn grow<T: Element>(array: &mut Array<T>, len: usize) -> Result<Array<T>> {
    if array.len() < len {
        *array = Array::zeroed(len, array.owner())?;
    }
    Ok(array.clone())
}

/// The sizes of all query heads of a token, and of a row of the q|k|v buffer, unless they exceed the address space.
pub(crate) fn head_sizes(heads: &HeadLayout) -> (Option<usize>, Option<usize>) {
    let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
    let all = num_key_value_heads.checked_mul(2).and_then(|kv| kv.checked_add(num_attention_heads));
    (num_attention_heads.checked_mul(head_dim), all.and_then(|all| all.checked_mul(head_dim)))
}
